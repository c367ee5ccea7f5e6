"""The clips that the grid learns from: a generated set, and UT-Interaction's, where they lie beside the project."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.children import environment
from pipeline.version import CHECKOUT

MOTIONS, TRAIN, VAL, TEST = 10, 6000, 500, 1500  # clips
SIDE, FRAMES, FPS = 40, 12, "7.5"  # pixels; frames, and how many a second: what a view takes, so nothing else is decoded
# what figures hang on besides commands; raise a number where clips are drawn otherwise, or a `micro` recipe changes
CLIPS = f"{MOTIONS} motions, {TRAIN} + {VAL} + {TEST} clips of {FRAMES} frames, {SIDE} px, {FPS}/s; drawing 1, recipes 2"
SHARES = {5: 25, 20: 100, 100: 600}  # percent of the labels -> clips of a class
REAL_FOLDS = (("seq1", "seq2"), ("seq3", "seq4"), ("seq5", "seq6"), ("seq7", "seq8"))


def generated(folder: Path, seeds: Iterable[int]) -> None:
    """FOLDER/all, with splits train, val and test, and FOLDER/labels-SHARE-SEED, the part of train whose labels a seed is given
    (no clip's are given to two), with val. What is there is kept. Raises RuntimeError if a command fails."""
    size = ["--motions", str(MOTIONS), "--size", f"{SIDE}x{SIDE}", "--frames", str(FRAMES), "--fps", FPS]
    for seed, (split, clips) in enumerate({"train": TRAIN, "val": VAL, "test": TEST}.items()):
        if not (folder / split / "done").exists():
            tubecell("generate-clips", "--out", folder / split, "--clips", clips, "--seed", seed, *size)
            (folder / split / "done").touch()
    build(folder / "all", {split: folder / split for split in ("train", "val", "test")})
    for seed in seeds:
        for share, clips in SHARES.items():
            if share == 100:
                continue
            part = folder / f"train-{share}-{seed}"
            for motion in sorted(path for path in (folder / "train").iterdir() if path.is_dir()):
                link(part / motion.name, sorted(motion.glob("*.mp4"))[seed * clips : (seed + 1) * clips])
            build(folder / f"labels-{share}-{seed}", {"train": part, "val": folder / "val"})


def labelled(folder: Path, share: int, seed: int) -> Path:
    """The dataset of so many percent of the labels."""
    return folder / ("all" if share == 100 else f"labels-{share}-{seed}")


def shared_clips() -> Path | None:
    """Where real clips are, if they are."""
    shared = Path(os.environ.get("TUBECELL_SHARED", (CHECKOUT or Path()).parent / "shared")) / "clips"
    return shared if (shared / "INDEX.tsv").exists() else None


def real(folder: Path, shared: Path) -> list[Path]:
    """FOLDER/fold-N of UT-Interaction, set 1: two sequences are the test, the others are trained on."""
    with (shared / "INDEX.tsv").open(newline="") as file:
        clips = [row for row in csv.DictReader(file, delimiter="\t") if "/ut_interaction/set1/" in f"/{row['path']}"]
    datasets = []
    for number, held_out in enumerate(REAL_FOLDS):
        for clip in clips:
            split = "test" if clip["group"] in held_out else "train"
            link(folder / f"videos-{number}" / split / clip["label"], [shared / clip["path"]])
        datasets.append(folder / f"fold-{number}")
        sources = {split: folder / f"videos-{number}" / split for split in ("train", "test")}
        build(datasets[-1], sources, "--preset", "h264-fast", "--short-side", "64", "--max-seconds", "60")
    return datasets


def build(dataset: Path, sources: dict[str, Path], *flags: str) -> None:
    """A labelled dataset, as its clips are unless flags say otherwise."""
    if (dataset / "manifest.parquet").exists():
        return
    given = [
        word
        for split, folder in sources.items()
        for word in ("--folder", f"own={folder}" if split == "train" else f"own:{split}={folder}")
    ]
    tubecell("build", *given, "--labels-from-folder", "--out", dataset, *(flags or ("--preset", "copy", "--min-frames", "8")))


def link(folder: Path, files: Iterable[Path]) -> None:
    """Files beside each other, without copies."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (target := folder / file.name).exists():
            target.symlink_to(file.resolve())


def tubecell(*words: object) -> None:
    """A command. Raises RuntimeError if it fails."""
    line = [sys.executable, "-m", "tubecell", *map(str, words)]
    done = subprocess.run(line, env=environment(), stdout=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"tubecell {' '.join(map(str, words))} ended with status {done.returncode}")
