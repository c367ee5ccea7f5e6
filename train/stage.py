"""What a stage is: ten answers, which the one loop (`train/loop.py`) asks for. A stage lives in a file of `train/stages/`.

A stage is composed, not inherited: most answers of a new one are functions of `train/parts.py`, taken over by a line such as
`groups = plain_groups`. `train/stages/pretraining.py` is the first and the fullest example.

It never sees a step, a checkpoint, a rank's share or a signal: those are the loop's. What it must leave alone in return is
randomness that is no function of the seed: everything random in a step comes from `draws`, and from the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from model.config import Implementation
from model.trainable import Trainable
from model.weights import Transfer
from pipeline.batches import AnyLoader
from pipeline.loader import LoaderState
from pipeline.sampling.draws import Draws
from train.compute.memory import Cost
from train.compute.parallel import Ranks
from train.config import ComputeConfig, LoopConfig, RunConfig


@dataclass(frozen=True, slots=True)
class Frozen:
    """A model that is run and never trained: a teacher, an encoder under a probe."""

    model: nn.Module
    """Built on meta; its `blocks`, if it has any, are gathered one by one."""
    weights: Callable[[], Mapping[str, Tensor]]
    """All its parameters, whole, on the CPU, under its own names. Rank 0 alone is asked, and hands them out."""
    compiled: bool = False
    """Its blocks are, where the model's are."""
    stands_for: str | None = None
    """Fingerprint of a model that is not here, because all that it has to say was kept: then nothing is run."""
    settle: Callable[[], None] | None = None
    """Called on every rank before a checkpoint: what is kept of the steps until then must be on disk."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    figures: Mapping[str, float] = field(default_factory=dict)
    """By name, the same on every rank."""
    pictures: Mapping[str, tuple[Path, np.ndarray]] = field(default_factory=dict)
    """By name, on rank 0: the file, and its pixels, uint8 (height, width, 3)."""
    clips: int = 0
    """That the figures are of, over all ranks."""
    of: int = 0
    """Clips that there were."""
    missing: Sequence[str] = ()
    """Keys of those that could not be decoded."""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Something to be found out now and then. All ranks call it, and make the same number of forward passes."""

    every: int
    """Steps between two; the last step always counts, if `last`."""
    call: Callable[[Any, int], Evaluation]
    """(model, step) -> what it found. Without gradients; the model has its weights, or their running mean."""
    last: bool = True
    best: str | None = None
    """One of its figures, the higher the better: the weights of the step with the best one are kept by name."""

    def due(self, step: int, total: int) -> bool:
        return step % self.every == 0 or (self.last and step == total)


class Stage(Protocol):
    """The ten answers. It is made with its configuration, on every rank; the first answer is its class's."""

    name: ClassVar[str]
    """The command, and what a run's folder says it is: "pretrain"."""

    def __init__(self, config: Any) -> None: ...

    @property
    def config(self) -> LoopConfig:
        """A `LoopConfig` with the stage's own fields and groups. The loop works with a copy of the stage whose `config` leaves
        nothing open (`train/compute/plan.py`)."""
        ...

    def loader(self, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None) -> AnyLoader:
        """This rank's batches from the state on; labels are places in the run's `label_map`, or the dataset's own."""
        ...

    def model(self, how: Implementation) -> Trainable:
        """It is called on the meta device."""
        ...

    def frozen(self) -> Mapping[str, Frozen]:
        """Models that the loss runs, by name; called once, on the meta device. They get their weights where they are."""
        ...

    def start_from(self, model: Any) -> Transfer | None:
        """What a new run's parameters begin with, of earlier weights, or None: see `parts.from_init`. What is `taken`, by the
        model's names, is rank 0's, whole, on the CPU; the rest keeps `initial_value`. A dry run asks, too, on meta."""
        ...

    def groups(self, model: Any) -> list[dict[str, Any]]:
        """The optimizer's, each with `params`, `weight_decay` and `lr_scale`."""
        ...

    def loss(self, model: Any, batch: Any, draws: Draws | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A forward pass over a batch of the loader -> the loss (), float32, and other named scalars (), means over the batch,
        on the device. In an evaluation there are no `draws`, and no noise."""
        ...

    def cost(self, compute: ComputeConfig) -> Cost:
        """Of a view: what memory, FLOPs, dry run and out-of-memory advice reckon with."""
        ...

    def evaluators(self, model: Any, ranks: Ranks, run: Path, manifest: Any) -> Sequence[Evaluator]:
        """What is to be found out while it trains, see `evaluation.held_out`. `run` is its folder, `manifest` its dataset, as
        `config.dataset` opened it."""
        ...


class ClipStage(Stage, Protocol):
    """A stage whose batches are views of clips."""

    @property
    def config(self) -> RunConfig: ...
