#!/usr/bin/env python3
"""Say what videos show, and in long ones when.

    tubecell predict VIDEO ... --weights W [--labels FILE] [--views 5x3]

VIDEO is any file that FFmpeg reads; W are weights with a head of classes: official files, a Hugging Face folder, a run. Every
4th frame of a video is looked at, in windows that lie end to end, each in the middle of the frame; or, with --views SxC, in S
windows that are spread over it and C crops (the official tests: 5x3 for Kinetics, 2x3 --sparse for Something-Something). The
probabilities are means over the views. Of several windows OUT/VIDEO.png is a time line. Ends with 1 if there was a video of
which nothing can be said.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from pipeline.console import check_printed, exit_status
from pipeline.decoding.video_file import read_video
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from train.demos import weights as released
from train.demos.prediction import Prediction, class_names, needs_classes, predict
from train.demos.time_line import clock, draw


@exit_status(name="predict")
def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=on_disk, nargs="+", metavar="VIDEO", help="files")
    released.add_options(parser)
    parser.add_argument(
        "--labels", type=on_disk, metavar="FILE", help="names of the classes, if not the weights': JSON, or a line each"
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to name (default: 5)")
    parser.add_argument("--views", type=windows_and_crops, metavar="SxC", help="windows and crops (default: end to end, 1)")
    parser.add_argument("--stride", type=int, default=4, metavar="N", help="look at every N-th frame (default: 4)")
    parser.add_argument("--sparse", action="store_true", help="spread the frames of each window over the whole video")
    parser.add_argument(
        "--out", type=on_disk, default=Path("predictions"), metavar="FOLDER", help="for time lines (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each video")
    options = parser.parse_args(arguments)
    refuse_dataset("--out", options.out)
    for name in ("top", "stride"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
    weights = released.read(options)
    needs_classes(weights)
    names = class_names(options.labels, weights)
    if not options.json:
        unnamed = "\n  its classes have no names: --labels FILE gives them" if not (weights.labels or options.labels) else ""
        print(f"{weights}{unnamed}\n")
    model = released.build(weights, options)
    failed, drawn = 0, Counter[str]()
    for path in options.videos:
        try:
            prediction = predict(model, read_video(path), options.stride, options.views, sparse=options.sparse)
        except released.REFUSED as error:
            released.tell("predict", path, error)
            failed += 1
            continue
        picture = None
        if prediction.timed:
            drawn[path.name] += 1
            again = f"-{drawn[path.name]}" if drawn[path.name] > 1 else ""  # another video of that name
            picture = options.out / f"{path.name}{again}.png"
            options.out.mkdir(parents=True, exist_ok=True)
        report(path, prediction, names, options, picture)
    check_printed()
    return 1 if failed else 0


def windows_and_crops(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WINDOWSxCROPS, such as 5x3")
    return int(found[1]), int(found[2])


def report(path: Path, prediction: Prediction, names: Sequence[str], options: argparse.Namespace, picture: Path | None) -> None:
    """Print it, and draw the time line into a file if one is given."""
    video, line, clip = prediction.video, prediction.line, prediction.video.clip
    rows = line.rows(options.top) if prediction.timed else line.rows(options.top)[: options.top]
    if picture:
        best = f"{released.short(names[rows[0].index])} {rows[0].probability:.0%}"
        told = "probability of each class over time, from 0 to 1, and at the right its mean"
        title = f"{released.short(path.name)}: {best}\n{told}"
        draw(picture, title, line, rows, [released.printable(names[row.index]) for row in rows], prediction.pictures)
    if options.json:
        classes = [{"class": names[row.index], **asdict(row)} for row in rows]
        found = {"video": str(path), "seconds": video.seconds, "frames": clip.num_frames, "windows": line.spans.tolist()}
        print(json.dumps({**found, "classes": classes, "time_line": str(picture) if picture else None}), flush=True)
        return
    windows, num_frames = prediction.frames.shape
    crops = (options.views or (0, 1))[1]
    across = "the middle of the frame" if crops == 1 else f"{crops} crops"
    span = "spread over it" if options.sparse else f"of {num_frames * options.stride} frames"
    shown = f"{count(clip.num_frames, 'frame')} of {clip.width} x {clip.height}"
    print(released.printable(f"{path}: {video.seconds:.1f} s, {shown}; {count(windows, 'window')} {span}, {across}"))
    if repeated := num_frames - len(np.unique(prediction.frames[0])):
        print(f"  too short for {num_frames} different frames: {repeated} of them repeat the one before")
    if prediction.timed:
        print("    mean    peak  when")
    for row in rows:
        when = f"{clock(row.begin, video.seconds)} to {clock(row.end, video.seconds)}"
        told = f"{row.peak:8.1%}  {when:<18}" if prediction.timed else ""
        print(f"{row.probability:8.1%}{told}  {released.printable(names[row.index])}")
    print(released.printable(f"  time line: {picture}") + "\n" if picture else "", flush=True)


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
