"""Mean average precision of boxes with actions, as the three public codes of AVA compute it (Pascal VOC's, at an IoU of 0.5).

On the same files they say three things; so every figure says whose it is, its `Style`. R rows of boxes, C classes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from train.accuracy.average_precision import average_precision

IOU = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """What the public codes do not agree on."""

    whose: str
    most_rows: int | None = None
    """Of an image; of more the best count, whatever their classes."""
    other_images: bool = False
    """Whether what is detected on images without truth counts, as wrong."""
    without_detections: bool = True
    """Whether a class that has truth and no detections is in the mean, as 0."""
    excluded_truth: bool = False
    """Whether the truth of excluded images stays: as never found."""


STYLES = {
    "activitynet": Style(whose="ActivityNet's script of 2019, the benchmark's", most_rows=50),
    "slowfast": Style(whose="SlowFast's and VideoMAE's action detection", other_images=True),
    "mmaction2": Style(whose="mmaction2", without_detections=False, excluded_truth=True),
}
DEFAULT = "activitynet"


@dataclass(frozen=True, slots=True)
class Rows:
    """Boxes, each with one action; a person who does three things has three rows."""

    images: np.ndarray
    """Int64 (R,), of which image; the same numbers in truth and detections."""
    corners: np.ndarray
    """Float64 (R, 4): x0, y0, x1, y1, in any unit."""
    actions: np.ndarray
    """Int64 (R,), numbers of classes."""
    scores: np.ndarray
    """Float64 (R,); of truth they mean nothing."""

    def __len__(self) -> int:
        return len(self.images)

    def of(self, which: np.ndarray) -> Self:
        """Some of them, bool (R,) or places."""
        return type(self)(*(getattr(self, each.name)[which] for each in fields(self)))

    def sorted(self) -> Self:
        """By image."""
        return self.of(np.argsort(self.images, kind="stable"))

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """One after the other; of none, none."""
        every = [cls(*(np.empty((0, 4) if n == 1 else 0, np.int64 if n in (0, 2) else float) for n in range(4))), *parts]
        return cls(*(np.concatenate([getattr(each, field.name) for each in every]) for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class MeanPrecision:
    """What was found."""

    style: str
    mean: float
    """Over the classes that have truth, a share of 1; NaN if none has."""
    classes: Mapping[int, float]
    """Average precision by number; NaN without truth, or, in mmaction2's style, without detections."""
    truths: Mapping[int, int]
    """Rows of truth that count."""
    detections: Mapping[int, int]
    """Rows of detections that count."""
    ignored: Mapping[str, int]
    """Why rows of detections do not count, and how many."""
    lost: int = 0
    """Rows of truth that do not: of excluded images, or of other classes."""

    @property
    def in_mean(self) -> int:
        """Classes."""
        return sum(not math.isnan(each) for each in self.classes.values())


def mean_precision(
    truth: Rows, found: Rows, classes: Iterable[int], style: str = DEFAULT, excluded: np.ndarray | None = None
) -> MeanPrecision:
    """Of the classes of these numbers; `excluded` are images. The order of the rows means nothing.

    Of equal scores the original codes' order is undefined, and so their figure. Here all rows of a class with equal scores are
    let in at once, as by a threshold: wrong ones are never counted behind right ones, which is the least that any order gives.

    Two million rows, of 33,000 boxes and 60 classes, take 2 s of a core and 100 bytes each beside the 56 of their own; AVA's
    validation has five times as many. Raises ValueError for another style, and for what is not finite.
    """
    if style not in STYLES:
        raise ValueError(f"--style {style} must be one of {', '.join(STYLES)}")
    rules, wanted, ignored = STYLES[style], np.array(sorted(set(classes)), np.int64), dict[str, int]()
    excluded = np.empty(0, np.int64) if excluded is None else excluded
    for rows, what in ((truth, "truth"), (found, "detections")):
        if not (np.isfinite(rows.corners).all() and np.isfinite(rows.scores).all()):
            raise ValueError(f"the {what} have boxes or scores that are not finite")

    def left(rows: Rows, which: np.ndarray, why: str) -> Rows:
        ignored[why] = int((~which).sum())
        return rows if which.all() else rows.of(which)

    all_of_it = len(truth)
    truth = truth.of(np.isin(truth.actions, wanted))
    if not rules.excluded_truth:
        truth = truth.of(~np.isin(truth.images, excluded))
    truth = truth.sorted()
    found = left(found, np.isin(found.actions, wanted), "of other classes")
    if rules.most_rows is not None:
        found = left(found, best_of_images(found, rules.most_rows), f"beyond the {rules.most_rows} best of an image")
    found = left(found, ~np.isin(found.images, excluded), "on excluded images")
    if not rules.other_images:
        found = left(found, np.isin(found.images, truth.images), "on images without truth")
    x0, y0, x1, y1 = found.corners.T
    found = left(found, (x1 > x0) & (y1 > y0), "without an area")
    precisions, truths, detections = dict[int, float](), dict[int, int](), dict[int, int]()
    for number in wanted.tolist():
        of_truth, of_found = truth.of(truth.actions == number), found.of(found.actions == number)
        truths[number], detections[number] = len(of_truth), len(of_found)
        counts = len(of_truth) > 0 and (len(of_found) > 0 or rules.without_detections)
        precisions[number] = of_class(of_truth, of_found) if counts else math.nan
    known = [each for each in precisions.values() if not math.isnan(each)]
    mean = float(np.mean(known)) if known else math.nan
    return MeanPrecision(style, mean, precisions, truths, detections, ignored, all_of_it - len(truth))


def best_of_images(rows: Rows, most: int) -> np.ndarray:
    """Bool (R,): the best `most` of each image; of equal scores the higher class, then the box further down and right."""
    _, of_image, counts = np.unique(rows.images, return_inverse=True, return_counts=True)
    kept = np.ones(len(rows), np.bool_)
    full = np.flatnonzero(counts[of_image] > most)
    x0, y0, x1, y1 = rows.corners[full].T
    order = full[np.lexsort((x1, y1, x0, y0, rows.actions[full], rows.scores[full], rows.images[full]))]
    ends = np.cumsum(counts[counts > most])
    from_the_end = np.repeat(ends, counts[counts > most]) - np.arange(len(order))
    kept[order[from_the_end > most]] = False
    return kept


def of_class(truth: Rows, found: Rows) -> float:
    """The average precision of one class. Of no detections 0. `truth` is by image."""
    order = np.argsort(-found.scores, kind="stable")
    right = found_right(truth, found.of(order))
    scores = found.scores[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], np.ones(min(len(scores), 1), np.bool_)))
    hits = np.cumsum(right)[ends]
    return average_precision(hits / (ends + 1), hits / len(truth))


def found_right(truth: Rows, found: Rows) -> np.ndarray:
    """Bool (R,) of detections of one class, the best first: whether the truth that each overlaps most, by `IOU` at least, was
    not found before. One whose own truth is taken is wrong, even if it overlaps another."""
    most, best = np.full(len(found), -1.0), np.zeros(len(found), np.int64)
    for some, at in of_same_image(found, truth):
        overlap = overlaps(truth.corners[at], found.corners[some])
        better = overlap > most[some]
        most[some[better]], best[some[better]] = overlap[better], at[better]
    hits = np.flatnonzero(most >= IOU)
    _, earliest = np.unique(best[hits], return_index=True)
    right = np.zeros(len(found), np.bool_)
    right[hits[earliest]] = True
    return right


def best_scores(truth: Rows, found: Rows) -> np.ndarray:
    """Float64 (R,) of truth of one class: the highest score of a detection that overlaps it by `IOU` at least, 0 without.
    `found` is by image."""
    scores = np.zeros(len(truth))
    for some, at in of_same_image(truth, found):
        near = overlaps(truth.corners[some], found.corners[at]) >= IOU
        scores[some[near]] = np.maximum(scores[some[near]], found.scores[at[near]])
    return scores


def of_same_image(rows: Rows, others: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of a row and one of the `others`, which are by image: places (n,) in both, each row at most once at a time."""
    first = np.searchsorted(others.images, rows.images)
    there = np.searchsorted(others.images, rows.images, "right") - first
    for number in range(there.max(initial=0)):
        some = np.flatnonzero(there > number)
        yield some, first[some] + number


def overlaps(corners: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs of boxes (R, 4) -> (R,); 0 where both are points."""
    low, high = np.maximum(corners[:, :2], others[:, :2]), np.minimum(corners[:, 2:], others[:, 2:])
    both = np.maximum(high - low, 0).prod(1)
    union = (corners[:, 2:] - corners[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1) - both
    return np.divide(both, union, out=np.zeros(len(both)), where=union > 0)
