"""A dataset to measure on where the user names none."""

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from pipeline.manifest import Manifest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data" / "throughput"  # git ignores it


def generated_dataset() -> Path:
    """64 generated clips of 160 x 128, made into a dataset by the builder: 25 s on two cores the first time, then kept.

    Raises RuntimeError if they cannot be made.
    """
    dataset = FOLDER / "dataset"
    with suppress(ValueError):  # there is none, its build was interrupted, or another version of tubecell made it
        Manifest(dataset)
        return dataset
    shutil.rmtree(dataset, ignore_errors=True)
    print(f"making 64 clips and a dataset of them in {FOLDER}, once", flush=True)
    videos = FOLDER / "videos"
    # processes of their own, because the builder's workers import the main module: torch is not to be among it
    for script, *arguments in (
        ("generate_clips.py", "--out", videos, "--clips", "64"),
        ("build_unlabeled_hybrid.py", "--folder", f"generated={videos}", "--out", dataset),
    ):
        command = [sys.executable, *map(str, (ROOT / "dataset_builders" / script, *arguments))]
        if status := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise RuntimeError(f"{script} ended with status {status}: {FOLDER} could not be filled; or give --data DATASET")
    return dataset
