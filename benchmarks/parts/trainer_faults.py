#!/usr/bin/env python3
"""Faults that are made in a trainer, to see what it does: by replacing what it calls, so that it needs no switch for them.

torchrun --nproc-per-node 2 benchmarks/parts/trainer_faults.py \
    '[{"kind": "exception", "steps": [5], "rank": 1}]' tiny --data ...
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[2])]

    from pipeline.console import prepare

    prepare()

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.tensor import DTensor

from pipeline.loader import Batch, ClipLoader
from train import parts, pretrain
from train.watch.guard import Guard


@dataclass(frozen=True, slots=True)
class Fault:
    """Happens on one rank, in some steps, after so many restarts by torchrun. Call it in every rank before the trainer's
    `main`, with the rank's number."""

    kind: Literal["nan in a batch", "nan in a parameter", "exception", "kill -9"]
    steps: Sequence[int]  # of the run, from 1
    rank: int = 0
    restart: int = 0

    def __call__(self, rank: int) -> None:
        if rank != self.rank or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) != self.restart:
            return
        if self.kind == "nan in a batch":
            self._spoil_batches()
        else:
            self._spoil_steps()

    def _spoil_batches(self) -> None:
        """NaN as the weight of a view's loss: a picture has no NaN, it is uint8."""
        steps = self.steps

        class SpoiltLoader(ClipLoader):
            def __next__(self) -> Batch:
                batch = super().__next__()
                if batch.epoch * self.steps_per_epoch + batch.step + 1 in steps:
                    assert batch.loss_weight is not None
                    batch.loss_weight[0] = math.nan
                return batch

        parts.ClipLoader = SpoiltLoader  # type: ignore[misc]

    def _spoil_steps(self) -> None:
        fault, step_of = self, Guard.step

        def step(
            guard: Guard, step: int, optimizer: torch.optim.AdamW, parameters: list[nn.Parameter], losses: list[Any]
        ) -> Any:
            if step in fault.steps:
                if fault.kind == "kill -9":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault.kind == "exception":
                    raise RuntimeError(f"made to fail in step {step}")
                with torch.no_grad():
                    weight = parameters[-1].to_local() if isinstance(parameters[-1], DTensor) else parameters[-1]
                    weight.view(-1)[0] = math.nan  # after the gradient of this step, so that the step itself is good
            return step_of(guard, step, optimizer, parameters, losses)

        Guard.step = step  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    for fault in json.loads(sys.argv[1]):
        Fault(**fault)(int(os.environ.get("RANK", "0")))
    sys.exit(record(pretrain.main)(sys.argv[2:]))
