"""Mean average precision of actions in time, as ActivityNet's evaluation has it and ActionFormer's reports it.

Predictions of a class without truth count for no class. (The public code renumbers the classes of the truth and leaves other
labels as they are, so that such predictions count for another class: 0.32 where 0.40 is right.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train.accuracy.average_precision import average_precision

Segment = tuple[float, float, int]
"""Begin, end, class."""
TOP_K = (1, 5)
# as the public codes compute them, to the last bit: an overlap may be just as large
THUMOS = tuple(np.linspace(0.3, 0.7, 5).tolist())
ACTIVITYNET = tuple(np.linspace(0.5, 0.95, 10).tolist())
SAME = 1e-3  # as in annotations


@dataclass(frozen=True, slots=True)
class Predicted:
    """Of all videos, n segments."""

    videos: np.ndarray
    """Of each its video's name, (n,)."""
    segments: np.ndarray
    """float64 (n, 2)."""
    labels: np.ndarray
    """int64 (n,)."""
    scores: np.ndarray
    """float64 (n,)."""


@dataclass(frozen=True, slots=True)
class MeanPrecision:
    """At Q overlaps (tIoU), of C classes that have truth."""

    tious: Sequence[float]
    classes: Sequence[int]
    precision: np.ndarray
    """(C, Q): average precision."""
    recall: np.ndarray
    """(C, Q, len(TOP_K)): of the k N best predictions of a video with N actions of a class."""
    actions: np.ndarray
    """(C,), in the truth."""

    @property
    def per_tiou(self) -> np.ndarray:
        """(Q,)."""
        return self.precision.mean(0)

    @property
    def average(self) -> float:
        """Over overlaps and classes: the figure that papers report."""
        return float(self.per_tiou.mean())


def mean_precision(
    truth: Mapping[str, Sequence[Segment]], found: Predicted, tious: Sequence[float], top_k: Sequence[int] = TOP_K
) -> MeanPrecision:
    """Raises ValueError for a truth without actions: there is no mean of nothing."""
    by_class: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for video, segments in truth.items():
        for begin, end, label in segments:
            there = by_class.setdefault(label, {}).setdefault(video, [])
            if not any(abs(begin - b) <= SAME and abs(end - e) <= SAME for b, e in there):
                there.append((begin, end))
    if not by_class:
        raise ValueError("there is no action in the truth, so no mean average precision; look at the split and the label map")
    classes = sorted(by_class)
    precision, recall = np.zeros((len(classes), len(tious))), np.zeros((len(classes), len(tious), len(top_k)))
    for place, label in enumerate(classes):
        among = np.flatnonzero(found.labels == label)
        among = among[np.argsort(-found.scores[among], kind="stable")]
        one = [found.videos[among].tolist(), found.segments[among]]
        precision[place], recall[place] = of_class(by_class[label], one[0], one[1], np.asarray(tious), top_k)
    actions = np.array([sum(map(len, by_class[label].values())) for label in classes])
    return MeanPrecision(tuple(tious), classes, precision, recall, actions)


def of_class(
    truth: Mapping[str, Sequence[tuple[float, float]]],
    videos: Sequence[str],
    segments_n2: np.ndarray,
    tious_Q: np.ndarray,
    top_k: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Of one class, predictions the best first -> average precision (Q,) and recall (Q, len(top_k))."""
    places: dict[str, list[int]] = {}
    for place, video in enumerate(videos):
        places.setdefault(video, []).append(place)
    right_Qn = np.zeros((len(tious_Q), len(videos)), bool)
    recalled, number = np.zeros((len(tious_Q), len(top_k))), 0
    for video, actions in truth.items():
        number += len(actions)
        if video not in places:
            continue
        at = np.array(places[video])
        overlap_nN = overlaps(segments_n2[at], np.array(actions))
        for quality, tiou in enumerate(tious_Q):
            right_Qn[quality, at[matched(overlap_nN, tiou)]] = True
            for which, k in enumerate(top_k):
                recalled[quality, which] += (overlap_nN[: k * len(actions)] >= tiou).any(0).sum()
    hits_Qn = right_Qn.cumsum(1)
    recall_Qn, precision_Qn = hits_Qn / number, hits_Qn / np.arange(1, len(videos) + 1)
    return np.array([average_precision(*each) for each in zip(precision_Qn, recall_Qn, strict=True)]), recalled / number


def overlaps(segments_n2: np.ndarray, actions_N2: np.ndarray) -> np.ndarray:
    """IoU (n, N)."""
    begin = np.maximum(segments_n2[:, None, 0], actions_N2[:, 0])
    end = np.minimum(segments_n2[:, None, 1], actions_N2[:, 1])
    common = (end - begin).clip(min=0)
    lengths = (segments_n2[:, 1] - segments_n2[:, 0])[:, None] + actions_N2[:, 1] - actions_N2[:, 0]
    return common / np.maximum(lengths - common, 1e-12)


def matched(overlap_nN: np.ndarray, tiou: float) -> np.ndarray:
    """Which predictions of a video, the best first, take an action that none before took: each that action, of those left,
    which it overlaps most. Bool (n,)."""
    taken, right = np.zeros(overlap_nN.shape[1], bool), np.zeros(len(overlap_nN), bool)
    for place in np.flatnonzero(overlap_nN.max(1) >= tiou).tolist():
        left = np.where(taken, -1.0, overlap_nN[place])
        best = int(left.argmax())
        if left[best] >= tiou:
            taken[best] = right[place] = True
    return right
