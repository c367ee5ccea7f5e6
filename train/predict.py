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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from model.classifier import VideoClassifier
from model.weights import Weights
from pipeline.console import check_printed, exit_status
from pipeline.decoding.video_file import VideoFile, read_video
from pipeline.progress import Progress
from pipeline.sampling import segment_frames
from pipeline.sampling.frames import tsn_test_frames
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from train.accuracy.scores import view_probabilities
from train.demos import weights as released
from train.demos.time_line import THUMBNAILS, TimeLine, clock, draw, spans_of

WINDOWS_AT_ONCE = 32  # decoded: 77 MB with one crop of 16 x 224²
VIEWS_AT_ONCE = {"cpu": 4, "cuda": 32}
SPARSE_WINDOWS = 2  # official, of Something-Something


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
    if weights.kind != "classifier":
        others = {"autoencoder": "; `tubecell reconstruct` takes it", "detector": ": its classes are of boxes"}
        instead = others.get(weights.kind, "")
        raise ValueError(f"{weights.place} has no head of classes: give weights of a fine-tuned model{instead}")
    names = class_names(options.labels, weights)
    if not options.json:
        unnamed = "\n  its classes have no names: --labels FILE gives them" if not (weights.labels or options.labels) else ""
        print(f"{weights}{unnamed}\n")
    model = released.build(weights, options)
    failed, drawn = 0, Counter[str]()
    for path in options.videos:
        try:
            prediction = predict(model, path, options)
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


def class_names(file: Path | None, weights: Weights) -> list[str]:
    """Of the head's classes: from a file, from the weights, or their numbers.

    A file is a JSON list, {"0": name} or {name: 0}, also as id2label in a config.json, or text with a name a line. Raises
    ValueError for anything else, and for as many names as the head has not.
    """
    number = weights.num_classes
    if file is None:
        return list(weights.labels or (f"class {index}" for index in range(number)))
    text = file.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith(("[", "{")):
        names: Any = [line.strip() for line in text.strip().splitlines()]
    else:
        try:
            names = json.loads(text)
        except ValueError as error:
            raise ValueError(f"--labels {file} is no JSON: {error}") from None
        if isinstance(names, dict):
            names = names.get("id2label", names)
            pairs = [(index, name) if isinstance(name, str) else (name, index) for index, name in names.items()]
            by_index = {int(index): name for index, name in pairs if str(index).isdecimal()}
            names = [by_index.get(index) for index in range(len(pairs))]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"--labels {file} does not give every class, from 0 on, a name: a JSON list of names, a dictionary")
    if len(names) != number:
        raise ValueError(f"--labels {file} names {len(names)} classes, and the head of {weights.place} has {number}")
    return names


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model makes of a video."""

    video: VideoFile
    frames: np.ndarray
    """Int64 (S, T), of the windows."""
    line: TimeLine
    timed: bool
    """Whether the windows are of different times."""
    pictures: np.ndarray
    """Uint8 (n, height, width, 3): frames, equally spaced in time."""


@torch.inference_mode()
def predict(model: VideoClassifier, path: Path, options: argparse.Namespace) -> Prediction:
    """Raises what REFUSED names."""
    video, device = read_video(path), model.head.weight.device
    size, num_frames, length = (model.config.input_size,) * 2, model.config.num_frames, video.clip.num_frames
    end_to_end = -(-length // (num_frames * options.stride))
    windows, crops = options.views or (SPARSE_WINDOWS if options.sparse else end_to_end, 1)
    if options.sparse:
        frames = tsn_test_frames(length, num_frames, windows)
        spans = np.tile([video.times[0], video.seconds], (windows, 1))
    else:
        frames = segment_frames(length, num_frames, options.stride, windows)
        spans = spans_of(video, frames, options.stride)
    # the window and the frame of it that stand for each of some moments
    moments = spans[0, 0] + (np.arange(THUMBNAILS) + 0.5) / THUMBNAILS * (spans[-1, 1] - spans[0, 0])
    shown = [np.unravel_index(np.abs(video.times[frames] - moment).argmin(), frames.shape) for moment in moments]
    pictures = np.empty((THUMBNAILS, *size, 3), np.uint8)
    boxes, scores = video.boxes(size, crops), []
    with Progress(total=windows * crops, unit="view", desc=path.name, leave=False, delay=2) as bar:
        for first in range(0, windows, WINDOWS_AT_ONCE):
            part = frames[first : first + WINDOWS_AT_ONCE]
            views = video.views(np.repeat(part, crops, axis=0), np.tile(boxes, (len(part), 1)), size)
            for i, (window, frame) in enumerate(shown):
                if first <= window < first + len(part):
                    pictures[i] = views[(window - first) * crops + crops // 2, frame]
            for some in torch.from_numpy(views).split(VIEWS_AT_ONCE[device.type]):
                scores.append(view_probabilities(model, some, len(some)))
                bar.update(len(some))
    probabilities = np.concatenate(scores).reshape(windows, crops, -1).mean(1)
    return Prediction(video, frames, TimeLine(spans, probabilities), windows > 1 and not options.sparse, pictures)


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
