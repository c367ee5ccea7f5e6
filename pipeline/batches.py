"""What a training loop asks of a loader and its batches, whatever is in them."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from pipeline.sampling.recipe import SamplingRecipe
from pipeline.stage_meters import StageMeters
from pipeline.storage.dataset import Dataset
from pipeline.workers.delivery import FailedClip
from pipeline.workers.tuning import Tuning


class AnyBatch(Protocol):
    """B items at positions of an epoch."""

    @property
    def epoch(self) -> int: ...
    @property
    def positions(self) -> torch.Tensor:
        """int64 (B,), on the CPU."""
        ...

    @property
    def rows(self) -> torch.Tensor:
        """int64 (B,) of the dataset, on the CPU."""
        ...


class AnyLoader(Protocol):
    """An endless iterator over a rank's batches, resumable after any step."""

    @property
    def manifest(self) -> Dataset: ...
    @property
    def recipe(self) -> SamplingRecipe: ...

    steps_per_epoch: int
    notices: list[str]
    failures: list[FailedClip]
    num_failures: int
    wait_seconds: float
    meters: StageMeters | None

    @property
    def label_map(self) -> list[str]: ...
    @property
    def tuning(self) -> Tuning | None:
        """What it works with now, where that is found while it works."""
        ...

    @property
    def decoder_choice(self) -> Any:
        """In words."""
        ...

    def __next__(self) -> Any: ...
    def state(self) -> Mapping[str, Any]: ...
    def keys(self, epoch: int, step: int, part: int | None = None) -> list[str]: ...
    def close(self) -> None: ...
