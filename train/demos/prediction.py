"""What a classifier says of a single video."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.classifier import VideoClassifier
from model.weights import Weights
from pipeline.decoding.video_file import VideoFile
from pipeline.progress import Progress
from pipeline.sampling import segment_frames
from pipeline.sampling.frames import tsn_test_frames
from train.accuracy.scores import view_probabilities
from train.demos.time_line import THUMBNAILS, TimeLine, spans_of

WINDOWS_AT_ONCE = 32  # decoded: 77 MB with one crop of 16 x 224²
VIEWS_AT_ONCE = {"cpu": 4, "cuda": 32}
SPARSE_WINDOWS = 2  # official, of Something-Something


def needs_classes(weights: Weights) -> None:
    """Raises ValueError for weights that cannot tell classes of videos."""
    if weights.kind != "classifier":
        others = {"autoencoder": "; `tubecell reconstruct` takes it", "detector": ": its classes are of boxes"}
        instead = others.get(weights.kind, "")
        raise ValueError(f"{weights.place} has no head of classes: give weights of a fine-tuned model{instead}")


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
def predict(
    model: VideoClassifier,
    video: VideoFile,
    stride: int,
    views: tuple[int, int] | None = None,
    *,
    sparse: bool = False,
    done: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Every `stride`-th frame is looked at, in `views`: windows and crops, or as many windows as lie end to end, in the middle
    of the frame. `sparse`: the frames of each window are spread over the whole video. `done` is told of how many views how many
    are. Raises DecodeError for a video that is damaged, ValueError for probabilities that are not finite."""
    device, size, num_frames = model.head.weight.device, (model.config.input_size,) * 2, model.config.num_frames
    length = video.clip.num_frames
    windows, crops = views or (SPARSE_WINDOWS if sparse else end_to_end(length, num_frames, stride), 1)
    if sparse:
        frames = tsn_test_frames(length, num_frames, windows)
        spans = np.tile([video.times[0], video.seconds], (windows, 1))
    else:
        frames = segment_frames(length, num_frames, stride, windows)
        spans = spans_of(video, frames, stride)
    # the window and the frame of it that stand for each of some moments
    moments = spans[0, 0] + (np.arange(THUMBNAILS) + 0.5) / THUMBNAILS * (spans[-1, 1] - spans[0, 0])
    shown = [np.unravel_index(np.abs(video.times[frames] - moment).argmin(), frames.shape) for moment in moments]
    pictures = np.empty((THUMBNAILS, *size, 3), np.uint8)
    boxes, scores = video.boxes(size, crops), []
    with Progress(total=windows * crops, unit="view", desc=video.clip.key, leave=False, delay=2) as bar:
        for first in range(0, windows, WINDOWS_AT_ONCE):
            part = frames[first : first + WINDOWS_AT_ONCE]
            pixels = video.views(np.repeat(part, crops, axis=0), np.tile(boxes, (len(part), 1)), size)
            for i, (window, frame) in enumerate(shown):
                if first <= window < first + len(part):
                    pictures[i] = pixels[(window - first) * crops + crops // 2, frame]
            for some in torch.from_numpy(pixels).split(VIEWS_AT_ONCE[device.type]):
                scores.append(view_probabilities(model, some, len(some)))
                bar.update(len(some))
                if done:
                    done(sum(map(len, scores)), windows * crops)
    probabilities = np.concatenate(scores).reshape(windows, crops, -1).mean(1)
    return Prediction(video, frames, TimeLine(spans, probabilities), windows > 1 and not sparse, pictures)


def end_to_end(length: int, num_frames: int, stride: int) -> int:
    """Windows that a video of so many frames fills, at least one."""
    return -(-length // (num_frames * stride))
