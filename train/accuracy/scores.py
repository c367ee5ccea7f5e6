"""From views to clips: a clip's probabilities are the mean of its views' softmax, and a view counts once.

R views of one clip, C classes.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


def view_probabilities(model: nn.Module, views: Tensor, at_once: int, columns: Tensor | None = None) -> np.ndarray:
    """uint8 views (n, T, H, W, 3) -> softmax, float64 (n, C): of all the model's classes, or over its `columns` alone. They
    pass through it `at_once` at a time, on the device of its weights. Raises ValueError for what is not finite."""
    device, found = next(model.parameters()).device, []
    for some in views.split(at_once):
        logits = model(some.to(device, non_blocking=True)).float()
        found.append((logits if columns is None else logits[:, columns]).softmax(-1))
    probabilities = torch.cat(found).cpu().double().numpy()
    if not np.isfinite(probabilities).all():
        raise ValueError("the probabilities are not finite; try --precision fp32")
    return probabilities


@dataclass(frozen=True, slots=True)
class Merged:
    """N clips, in the order in which they came."""

    keys: list[Hashable]
    labels: np.ndarray
    """Int64 (N,), -1 without one."""
    probabilities: np.ndarray
    """Float64 (N, C)."""
    views: np.ndarray
    """Int64 (N,): how many each is the mean of."""


class ClipScores:
    """Sums over the views of clips. What other ranks saw may be added in any order: a view that is there is not added again.
    (The original takes two views for one whose segment and crop, written together, read alike: 1, 10 and 11, 0.)"""

    def __init__(self) -> None:
        self._sums: dict[Hashable, np.ndarray] = {}
        self._seen: dict[Hashable, set[Hashable]] = {}
        self._labels: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, key: Hashable, label: int, views: Iterable[Hashable], probabilities: np.ndarray) -> None:
        """A clip, the names of R of its views, (R, C)."""
        seen = self._seen.setdefault(key, set())
        for view, each in zip(views, probabilities, strict=True):
            if view not in seen:
                seen.add(view)
                self._sums[key] = self._sums[key] + each if key in self._sums else each
        self._labels.setdefault(key, label)

    def merged(self) -> Merged:
        """Raises ValueError if there is no clip."""
        if not self._sums:
            raise ValueError("no clip was evaluated")
        views = np.array([len(self._seen[key]) for key in self._sums])
        labels = np.array([self._labels[key] for key in self._sums], np.int64)
        return Merged([*self._sums], labels, np.stack([*self._sums.values()]) / views[:, None], views)
