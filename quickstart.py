#!/usr/bin/env python3
"""The main job from end to end: build a dataset, pre-train a tiny model on it, draw what it learned.

    python quickstart.py [--videos FOLDER]

Without a folder of videos it generates 64 clips. It only calls the commands that you would call, and prints them. What it
makes lies in runs/quickstart/; run again it goes on where it was, or says that it is done.
"""

import argparse
import hashlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

from pipeline.console import prepare

ROOT = Path(__file__).resolve().parent
MADE = """
  runs/quickstart/reconstruction.png   input, what the encoder saw, what it made of it
  runs/quickstart/loss.png             from metrics.jsonl; or: .venv/bin/tensorboard --logdir runs/quickstart
  runs/quickstart/dataset/             shards, manifest.parquet, rejects.parquet
  runs/quickstart/checkpoints/         to go on from; the weights alone: runs/quickstart/model.safetensors"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="your own videos, of any format that FFmpeg decodes")
    videos: Path | None = parser.parse_args().videos
    began = time.monotonic()
    try:
        if videos and not videos.is_dir():
            raise ValueError(f"--videos {videos} is no folder")
        run = run_folder(videos)
        dataset = run / "dataset"
        if videos and not dataset.exists() and dataset.is_relative_to(videos.resolve()):
            raise ValueError(f"--videos {videos} holds {relative(run)}, where the dataset goes; give a folder in it")
        if (run / "complete").exists() and (run / "reconstruction.png").exists():
            print(f"Already done; delete {relative(run)} to start over.{MADE}")
            return 0
        if videos is None:
            call("generating clips", "generate-clips", "--out", run / "videos")
            folder = f"generated={run / 'videos'}"
        else:
            folder = f"videos={videos.resolve()}"
        call("building the dataset", "build-unlabeled-hybrid", "--folder", folder, "--out", dataset)
        call("pre-training", "pretrain", "tiny", "--data", dataset, "--out", run, *fewer_views(dataset))
        call("drawing", "visualize", run)
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1
    except ValueError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"\nDone in {time.monotonic() - began:.0f} s.{MADE}")
    return 0


def run_folder(videos: Path | None) -> Path:
    """A folder per source of videos, and runs/quickstart as a link to the one in use: trying another loses nothing."""
    name = "generated"
    if videos:
        path = videos.resolve()
        name = f"{path.name}-{hashlib.blake2b(bytes(path), digest_size=3).hexdigest()}"
    run = ROOT / "runs" / f"quickstart-{name}"
    run.mkdir(parents=True, exist_ok=True)
    link = ROOT / "runs" / "quickstart"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(run.name)
    return run


def fewer_views(dataset: Path) -> list[str]:
    """Flags for a dataset that has fewer clips than a step of the recipe takes."""
    from pipeline.storage.manifest import Manifest
    from train.recipes.pretraining import tiny

    clips, views = len(Manifest(dataset)), tiny().views
    if clips == 0:
        raise ValueError("none of the videos could be used; the reasons are above, and in dataset/rejects.parquet")
    if clips * views.views_per_clip >= views.views_per_step:
        return []
    return ["--views.views-per-step", str(clips * views.views_per_clip)]


def call(what: str, *command: str | Path) -> None:
    """Run one of the programs, after printing how to call it."""
    arguments = [str(relative(part)) if isinstance(part, Path) else part for part in command]
    print(f"\n\033[1m{what}\033[0m" if sys.stdout.isatty() else f"\n{what}")
    print(f"$ tubecell {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "tubecell", *arguments], cwd=ROOT, check=True)


def relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    prepare()
    sys.exit(main())
