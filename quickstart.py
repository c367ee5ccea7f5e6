#!/usr/bin/env python3
"""The main job from end to end: build a dataset, pre-train a small model on it, draw what it learned, fine-tune it, and see
what the pre-training was good for.

    python quickstart.py [--videos FOLDER]

Without a folder of videos it generates 256 clips of eight motions, of which it holds 64 out. With one, labels are the names of
the folders of FOLDER/train and FOLDER/val, if there are such. It only calls the commands that you would call, and prints them.
What it makes lies in runs/quickstart/; run again it goes on where it was, or says that it is done.
"""

import argparse
import hashlib
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console import prepare

if TYPE_CHECKING:
    from pipeline.sampling import PlainViews

ROOT = Path(__file__).resolve().parent
MADE = """
  runs/quickstart/reconstruction.png   input, what the encoder saw, what it made of it
  runs/quickstart/loss.png             from metrics.jsonl; or: .venv/bin/tensorboard --logdir runs/quickstart
  runs/quickstart/dataset/             shards, manifest.parquet, rejects.parquet
  runs/quickstart/checkpoints/         to go on from; the weights alone: runs/quickstart/model.safetensors"""
TOLD = """  runs/quickstart/fine-tuned/held-out/examples.png   clips that it told right, and wrong; evaluation.html has all"""
CLIPS, HELD_OUT = 192, 64
SMALL = ("--size", "40x40", "--frames", "16", "--fps", "7.5")  # what the model sees: 8 frames of 32 px, 2/15 s apart
METHODS = ("from-scratch", "fine-tuned")
PRETRAINING, FINETUNING = 1000, 200  # steps of `micro`: minutes on two cores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="your own videos, of any format that FFmpeg decodes")
    videos: Path | None = parser.parse_args().videos
    began = time.monotonic()
    try:
        if videos and not videos.is_dir():
            raise ValueError(f"--videos {videos} is no folder")
        labelled = videos is None or has_labels(videos)
        run = run_folder(videos, labelled)
        dataset = run / "dataset"
        if videos and not dataset.exists() and dataset.is_relative_to(videos.resolve()):
            raise ValueError(f"--videos {videos} holds {relative(run)}, where the dataset goes; give a folder in it")
        last = run / "fine-tuned" / "held-out" / "evaluation.json" if labelled else run / "reconstruction.png"
        if last.exists():
            print(f"Already done; delete {relative(run)} to start over.{MADE}")
            print_accuracy(run, labelled)
            return 0
        if videos is None:
            for part, clips, seed in (("train", CLIPS, 0), ("val", HELD_OUT, 1)):
                target = run / "videos" / part
                call(f"generating clips: {part}", "generate-clips", "--out", target, "--clips", clips, "--seed", seed, *SMALL)
        if labelled:
            folder = run / "videos" if videos is None else videos.resolve()
            train, val = (relative(folder / part) for part in ("train", "val"))
            sources = ("--folder", f"own={train}", "--folder", f"own:val={val}", "--labels-from-folder")
            call("building the dataset", "build", *sources, "--out", dataset)
        else:
            call("building the dataset", "build-unlabeled-hybrid", "--folder", f"videos={videos.resolve()}", "--out", dataset)
        from train.recipes import finetuning, pretraining  # not before it is said what is being done

        recipe, views = ("micro", pretraining.micro().views) if labelled else ("tiny", pretraining.tiny().views)
        length = ("--steps", PRETRAINING) if labelled else ()
        call("pre-training", "pretrain", recipe, "--data", dataset, "--out", run, *length, *fewer_views(dataset, views))
        call("drawing", "visualize", run)
        views = finetuning.micro().views
        for method in METHODS if labelled else ():
            init = ("--init", run) if method == "fine-tuned" else ()
            how = (*init, "--steps", FINETUNING, *fewer_views(dataset, views))
            call(f"a classifier, {method}", "finetune", "micro", "--data", dataset, *how, "--out", run / method)
            held_out = ("--split", "val", "--views", "1x1", "--out", run / method / "held-out")
            call("how good it is", "evaluate", run / method, "--data", dataset, *held_out)
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1
    except ValueError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"\nDone in {time.monotonic() - began:.0f} s.{MADE}")
    print_accuracy(run, labelled)
    return 0


def has_labels(videos: Path) -> bool:
    """Whether both parts have folders, of classes."""
    return all(
        (videos / part).is_dir() and any(path.is_dir() for path in (videos / part).iterdir()) for part in ("train", "val")
    )


def print_accuracy(run: Path, labelled: bool) -> None:
    """What pre-training was good for; or that it cannot be told."""
    if not labelled:
        print(
            "\nThese videos have no labels, so there is nothing to fine-tune on. For that, put them into folders that are "
            "named as their classes: FOLDER/train/CLASS/ to learn from, FOLDER/val/CLASS/ to be tested on."
        )
        return
    print()
    for method in METHODS:
        found = json.loads((run / method / "held-out" / "evaluation.json").read_text())
        low, high = found["top1_interval"]
        said = {"from-scratch": "from scratch", "fine-tuned": "from the pre-trained encoder"}[method]
        print(f"  top-1, {said:<30}{found['top1']:>6.1%}   95 %: {low:.0%} to {high:.0%}, of {found['clips']} clips held out")
    print(TOLD)


def run_folder(videos: Path | None, labelled: bool) -> Path:
    """A folder per source of videos and what is made of it, and runs/quickstart as a link to the one in use: trying another
    loses nothing."""
    name = "motions"  # "generated" was an older one's
    if videos:
        path = videos.resolve()
        name = f"{path.name}-{hashlib.blake2b(bytes(path), digest_size=3).hexdigest()}{'-labelled' if labelled else ''}"
    run = ROOT / "runs" / f"quickstart-{name}"
    run.mkdir(parents=True, exist_ok=True)
    link = ROOT / "runs" / "quickstart"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(run.name)
    return run


def fewer_views(dataset: Path, usual: "PlainViews") -> list[str]:
    """Flags for a dataset that has fewer clips to train on than a step of a recipe takes. Raises ValueError if it has none."""
    from pipeline.sampling.splits import count_clips
    from pipeline.storage.manifest import Manifest

    clips = count_clips(Manifest(dataset), "train")
    if clips == 0:
        raise ValueError("none of the videos could be used; the reasons are above, and in dataset/rejects.parquet")
    if clips * usual.views_per_clip >= usual.views_per_step:
        return []
    return ["--views.views-per-step", str(clips * usual.views_per_clip)]


def call(what: str, *command: str | int | Path) -> None:
    """Run one of the programs, after printing how to call it."""
    arguments = [str(relative(part) if isinstance(part, Path) else part) for part in command]
    print(f"\n\033[1m{what}\033[0m" if sys.stdout.isatty() else f"\n{what}")
    print(f"$ tubecell {shlex.join(arguments)}", flush=True)
    program = subprocess.Popen([sys.executable, "-m", "tubecell", *arguments], cwd=ROOT)
    asked = []  # to stop: a program that trains saves first

    def stop(number: int, _: object) -> None:
        asked.append(number)
        if number == signal.SIGTERM or len(asked) > 1:  # a terminal sends its Ctrl-C to both
            program.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    status = program.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if asked:
        raise SystemExit(128 + asked[0])
    if status:
        raise subprocess.CalledProcessError(status, arguments)


def relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    prepare()
    sys.exit(main())
