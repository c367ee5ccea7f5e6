"""A small trained model that is saved, in the test's process or in others."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pipeline.loader import LoaderState
from train.checkpoint import state as checkpoints
from train.checkpoint.saving import RunCheckpoints
from train.checkpoint.state import TAKEN, Progress
from train.compute.parallel import Ranks, started

PATIENCE = 240.0  # seconds for a process to start on a busy machine


class Trained:
    """A sharded model whose optimizer has moments, and what saves it."""

    def __init__(self, ranks: Ranks, folder: Path, **options: int | str) -> None:
        self.model = nn.Sequential(nn.Linear(30, 70), nn.LayerNorm(70), nn.Linear(70, 7))
        fully_shard(self.model, mesh=ranks.mesh(None))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.mean, self.ranks = None, ranks
        self.said: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.saver = RunCheckpoints(folder, ranks, **options)  # type: ignore[arg-type]
        self.saver.say = self.said.append
        self.step()

    def step(self) -> None:
        """Everything changes."""
        for parameter in self.model.parameters():
            parameter.grad = parameter.detach().sin() + 0.1
        self.optimizer.step()

    def state(self) -> list[torch.Tensor]:
        """Copies of parameters and moments, whole."""
        moments = [self.optimizer.state[p][k] for p in self.model.parameters() for k in ("exp_avg", "exp_avg_sq", "step")]
        tensors = [*self.model.parameters(), *moments]
        return [(t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for t in tensors]

    def save(self, step: int, background: bool = True) -> None:
        state = LoaderState(epoch=0, step=step, ledger=(), dataset="", version=1, recipe={})
        progress = Progress(step=step, sums={"loss": 0.0, TAKEN: 1.0}, guard={}, loader=state)
        self.saver.save(checkpoints.state_of(self), progress, background=background)

    def finish(self) -> None:
        """Poll as a training loop does, until what is being saved has its name and its copy."""
        deadline = time.monotonic() + PATIENCE
        while (self.saver._save and not self.saver._save.ended) or self.saver._uploading or self.saver._to_upload:
            assert time.monotonic() < deadline
            self.saver.poll()
            time.sleep(0.01)

    def steps(self) -> list[int]:
        return [int(path.name[5:]) for path in sorted(self.saver.folder.glob("step-*"))]


def hang(folder: Path) -> None:
    """A trainer that begins to save, in the background, with a writer that has been stopped; folder/writer has its number."""
    with started("cpu") as ranks:
        trained = Trained(ranks, folder)
        trained.save(1)
        trained.finish()
        assert trained.saver._writer
        os.kill(trained.saver._writer.pid, signal.SIGSTOP)
        trained.save(2)
        (folder / "writer.tmp").write_text(str(trained.saver._writer.pid))
        (folder / "writer.tmp").rename(folder / "writer")
        time.sleep(600)


def resave(folder: Path, environment: dict[str, Any]) -> None:
    """One of several ranks that load step 1 and save it, in the background, as step 2."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    with started("cpu") as ranks:
        trained = Trained(ranks, folder)
        checkpoints.load(folder / "step-00000001", trained)
        trained.save(2)
        trained.step()
        trained.saver.wait()
        trained.saver.close()
        del trained
