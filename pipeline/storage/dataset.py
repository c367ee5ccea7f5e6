"""What order, splits and the training loop ask of a dataset, be it a manifest of clips or something else."""

from typing import Protocol

import numpy as np


class Keyed(Protocol):
    """An item of a dataset."""

    @property
    def key(self) -> str:
        """Its name."""
        ...


class Dataset(Protocol):
    """Items in rows, in one version."""

    place: str
    """As a user knows it."""
    version: int
    fingerprint: str
    split: np.ndarray
    """(N,), each row's place in `splits`, -1 without one."""
    splits: list[str]
    source: np.ndarray
    """(N,), each row's place in `sources`."""
    sources: list[str]

    def __len__(self) -> int: ...
    def __hash__(self) -> int: ...

    def clip(self, row: int) -> Keyed:
        """What is known of an item."""
        ...
