"""How good is what was found: mean average precision of a split, what it is made of, and files that say so.

FOLDER/predictions.json    {"results": {VIDEO: [{"label", "segment", "score"}]}}, and what else ActivityNet's have
FOLDER/evaluation.json     the figures, and each class at each overlap
FOLDER/evaluation.html     the same for people, with pictures
FOLDER/timelines/VIDEO.png what is annotated, and what was found
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from model.segment_nms import fused
from pipeline.console import may_fail
from pipeline.settings import setting
from pipeline.storage.files import write_durably
from train.localization.action_lines import Span, draw
from train.localization.feature_set import FeatureSet
from train.localization.inference import Found
from train.localization.mean_precision import ACTIVITYNET, THUMOS, TOP_K, MeanPrecision, Predicted, Segment, mean_precision
from train.localization.outcome_page import page
from train.localization.video_scores import read_video_scores

SHOWN = 2  # time lines that go to TensorBoard
TIOUS = {"thumos": THUMOS, "activitynet": ACTIVITYNET}


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """What is made of what was found."""

    tious: Literal["thumos", "activitynet"] = "thumos"
    """Overlaps: 0.3 to 0.7 in steps of 0.1, or 0.5 to 0.95 in steps of 0.05 (ActivityNet, FineAction)."""
    external_scores: Path | None = None
    """JSON with scores of whole videos by somebody else, which give segments their classes: see
    train/localization/video_scores.py. For --one-class."""
    external_classes: int = 2
    """Of a video, the best ones; each segment is taken for each of them."""
    external_most: int = 200
    """Segments of a video that are, the best ones."""
    pictures: int = setting(8, may_change=True)
    """Time lines to draw, of the first videos."""

    def __post_init__(self) -> None:
        for name in ("external_classes", "external_most"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.pictures < 0:
            raise ValueError(f"judge pictures {self.pictures} must be at least 0")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a split."""

    precision: MeanPrecision
    names: Sequence[str]
    """Of the classes that labels are places in."""
    found: Mapping[int, Found]
    """By row, seconds; with classes of their own if scores of whole videos were asked for."""
    unread: Mapping[str, str]
    """Videos whose features could not be read, and why."""
    unknown: int
    """Videos without external scores, in which nothing was found."""

    @property
    def figures(self) -> dict[str, float]:
        """By name: `map` is the mean over the overlaps."""
        found, precision = {"map": self.precision.average}, self.precision
        for tiou, value in zip(precision.tious, precision.per_tiou.tolist(), strict=True):
            found[f"map_{tiou:.2f}"] = value
        middle = int(np.abs(np.array(precision.tious) - 0.5).argmin())
        for which, k in enumerate(TOP_K):
            found[f"recall_{k}x_{precision.tious[middle]:.2f}"] = float(precision.recall.mean(0)[middle, which])
        return found


def judge(dataset: FeatureSet, found: Mapping[int, Found | str], config: JudgeConfig) -> Verdict:
    """`found` of every row of a split, or why it could not be read. Raises ValueError for a split without truth, and for scores
    that cannot be read."""
    seen = {row: each for row, each in found.items() if isinstance(each, Found)}
    unread = {dataset.clip(row).key: each for row, each in found.items() if isinstance(each, str)}
    names, unknown = list(dataset.names), 0
    truth: dict[str, list[Segment]] = {}
    place = {name: number for number, name in enumerate(dataset.annotations.classes)}
    if config.external_scores is not None:
        names = list(dataset.annotations.classes)
        scores = read_video_scores(config.external_scores, names)
        classed = {}
        for row, each in seen.items():
            of_video = scores.get(dataset.clip(row).key)
            unknown += of_video is None
            few = {"classes": config.external_classes, "most": config.external_most}
            none = Found(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
            if of_video is None:
                classed[row] = none
                continue
            values, segments, labels = fused(each.scores, each.segments, of_video, **few)
            best = values.argsort(descending=True, stable=True)
            classed[row] = Found(segments[best], values[best], labels[best])
        seen = classed
    for row in seen:
        video = dataset.clip(row)
        known = [dataset.label(action) if config.external_scores is None else place[action.label] for action in video.actions]
        pairs = zip(video.actions, known, strict=True)
        truth[video.key] = [(action.begin, action.end, label) for action, label in pairs if label >= 0]
    return Verdict(mean_precision(truth, predicted(dataset, seen), TIOUS[config.tious]), names, seen, unread, unknown)


def predicted(dataset: FeatureSet, found: Mapping[int, Found]) -> Predicted:
    """Of all videos, in the order of the rows."""
    rows = sorted(found)
    parts = [found[row] for row in rows]
    return Predicted(
        np.repeat([dataset.clip(row).key for row in rows], [len(each.scores) for each in parts]) if rows else np.array([], str),
        np.concatenate([each.segments.double().numpy() for each in parts] or [np.zeros((0, 2))]),
        np.concatenate([each.labels.numpy() for each in parts] or [np.zeros(0, np.int64)]),
        np.concatenate([each.scores.double().numpy() for each in parts] or [np.zeros(0)]),
    )


def write(
    folder: Path, dataset: FeatureSet, verdict: Verdict, about: Mapping[str, Any], pictures: int
) -> tuple[dict[str, Any], dict[str, tuple[Path, np.ndarray]]]:
    """Everything into a folder; `about` is said besides. -> what evaluation.json holds, and of the first SHOWN time lines, by
    name, the file and its pixels. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        dataset.clip(row).key: [
            {"label": verdict.names[label], "segment": [round(end, 4) for end in segment], "score": score}
            for segment, score, label in zip(each.segments.tolist(), each.scores.tolist(), each.labels.tolist(), strict=True)
        ]
        for row, each in sorted(verdict.found.items())
    }
    whole = {"version": "tubecell", "results": results, "external_data": {}}
    write_durably(folder / "predictions.json", (json.dumps(whole) + "\n").encode())
    drawn, shown = list[Path](), dict[str, tuple[Path, np.ndarray]]()
    for row in sorted(verdict.found)[:pictures]:
        with may_fail("timelines"):
            file, pixels = picture(folder, dataset, verdict, row)
            drawn.append(file)
            if len(shown) < SHOWN:
                shown[f"time line {row}"] = file, pixels
    precision = verdict.precision
    found = {
        **about,
        **verdict.figures,
        "tious": list(precision.tious),
        "videos": len(verdict.found),
        "actions": int(precision.actions.sum()),
        "unread": dict(verdict.unread),
        "without_external_scores": verdict.unknown,
        "notices": dataset.notices,
        "classes": [
            {"name": verdict.names[label], "actions": int(actions), "map": float(each.mean()), "per_tiou": each.tolist()}
            for label, actions, each in zip(precision.classes, precision.actions, precision.precision, strict=True)
        ],
    }
    write_durably(folder / "evaluation.json", (json.dumps(found, indent=1) + "\n").encode())
    write_durably(folder / "evaluation.html", page(found, drawn).encode())
    return found, shown


def picture(folder: Path, dataset: FeatureSet, verdict: Verdict, row: int) -> tuple[Path, np.ndarray]:
    """The time line of a video: its file, and its pixels."""
    video, each = dataset.clip(row), verdict.found[row]
    file = folder / "timelines" / f"{video.key.replace('/', '_')}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    one = verdict.names[0] if dataset.one_class and len(verdict.names) == 1 else None
    truth = [Span(action.begin, action.end, one or action.label) for action in video.actions]
    found = [
        Span(begin, end, verdict.names[label], score)
        for (begin, end), score, label in zip(each.segments.tolist(), each.scores.tolist(), each.labels.tolist(), strict=True)
    ]
    return file, draw(file, video.key, video.duration, truth, found)
