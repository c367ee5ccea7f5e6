"""Top-1, top-5 and mean-class accuracy, of counts for each class that ranks may add up."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOP = 5


def places(scores: Tensor, labels: Tensor) -> Tensor:
    """(N, C), labels (N,) -> int64 (N,): how many classes come before a clip's own; of equal ones the first comes first, as
    for argmax. What a clip without a label, -1, gets means nothing."""
    own = scores.gather(1, labels.clamp(min=0)[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Counts of C classes, int64 (C,): clips that have it as their label, of these the `right` ones and those whose label is
    among the first five, `within`; and `taken`, clips that were taken for it."""

    clips: np.ndarray
    right: np.ndarray
    within: np.ndarray
    taken: np.ndarray

    @staticmethod
    def of(labels: np.ndarray, predictions: np.ndarray, places: np.ndarray, num_classes: int) -> "Accuracy":
        """(N,) each. Clips without a label count nowhere."""
        known = labels >= 0
        labels, predictions, places = labels[known], predictions[known], places[known]
        counted = (labels, labels[places == 0], labels[places < TOP], predictions)
        return Accuracy(*(np.bincount(each, minlength=num_classes) for each in counted))

    @property
    def num_clips(self) -> int:
        """With a label."""
        return int(self.clips.sum())

    @property
    def top1(self) -> float:
        """A fraction; NaN without clips, as the others."""
        return _share(self.right.sum(), self.clips.sum())

    @property
    def top1_interval(self) -> tuple[float, float]:
        """In which the accuracy on more such clips lies with 95 % confidence (Wilson, 1927)."""
        return interval(int(self.right.sum()), self.num_clips)

    @property
    def top5(self) -> float | None:
        """None for five classes and fewer, of which every clip would be right."""
        return _share(self.within.sum(), self.clips.sum()) if len(self.clips) > TOP else None

    @property
    def mean_class(self) -> float:
        """Mean over the classes that clips have, or were taken for: of the latter, without a clip of theirs, nothing is right
        (official)."""
        there = (self.clips > 0) | (self.taken > 0)
        return float((self.right[there] / np.maximum(1, self.clips[there])).mean()) if self.num_clips else math.nan

    def figures(self) -> dict[str, float]:
        """By name, without what is None."""
        found = {"top1": self.top1, "top5": self.top5, "mean_class": self.mean_class}
        return {name: value for name, value in found.items() if value is not None}


def interval(right: int, clips: int) -> tuple[float, float]:
    """Wilson's, of 95 %, for a share of clips; (0, 1) without clips."""
    if not clips:
        return 0.0, 1.0
    z = 1.96
    middle = (right + z**2 / 2) / (clips + z**2)
    half = z / (clips + z**2) * math.sqrt(right * (clips - right) / clips + z**2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else math.nan
