"""What is in a checkpoint, and reading it: on any number of ranks, or only the weights, anywhere.

A checkpoint is a folder that `torch.distributed.checkpoint` wrote, with model and optimizer, and small files beside them; see
`checkpoint_files`. A run saves them through `run_checkpoints`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from pipeline.loader import LoaderState
from pipeline.settings import read
from train.checkpoint.files import PROGRESS, latest
from train.checkpoint.source import as_model
from train.checkpoint.weights import save_weights
from train.checkpoint.writer import ALIGNMENT
from train.compute.ema import RunningMean, local
from train.compute.parallel import Ranks

__all__ = ["Progress", "export", "latest", "load", "read_progress", "state_of", "whole_weights"]
FORMAT = 2  # of progress.json
TAKEN = "steps taken"  # the name of their number among the sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands, beside its tensors."""

    format: int = FORMAT
    step: int  # optimizer steps done
    sums: Mapping[str, float]  # over the steps taken since the last line of the log, over all ranks; and the number of those
    guard: Mapping[str, float]  # what it remembers of the steps
    frozen: Mapping[str, str] = field(default_factory=dict)  # fingerprints of the frozen models, by name
    loader: LoaderState


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood when it was saved. Raises ValueError for what only newer code knows."""
    values: dict[str, Any] = json.loads((checkpoint / PROGRESS).read_text())
    if "format" not in values:  # of before: these two, by name
        values["sums"] = {"loss": values.pop("loss_sum"), TAKEN: values.pop("good_steps")}
    elif values["format"] > FORMAT:
        raise ValueError(f"{checkpoint} has format {values['format']}; this tubecell reads up to {FORMAT}: update it")
    known = {"loader": LoaderState.of(values["loader"]), "format": FORMAT}
    return read(Progress, values | known, "the checkpoint's progress")


class Trained(Protocol):
    """What is saved of a training: see `train/training.py`."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def mean(self) -> RunningMean | None: ...

    @property
    def ranks(self) -> Ranks: ...


def state_of(training: Trained) -> dict[str, Any]:
    """The tensors of a checkpoint: model, optimizer, and the running mean of the weights, if there is one."""
    model, optimizer = get_state_dict(training.model, training.optimizer)
    return {"model": model, "optimizer": optimizer} | ({"ema": training.mean.state} if training.mean else {})


def share_bytes(training: Trained) -> int:
    """Of this rank's share of `state_of`, before the optimizer has a state: 12 bytes a parameter of its own, and ends."""
    optimizer = training.optimizer
    trained = [local(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    tensors = [local(parameter) for parameter in training.model.parameters()]
    tensors += trained if "momentum" in optimizer.defaults else 2 * trained
    tensors += [local(mean) for mean in training.mean.state.values()] if training.mean else []
    return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors) + ALIGNMENT * len(trained)  # counts of steps


def load(checkpoint: Path, training: Trained) -> None:
    """Read a checkpoint into a sharded model and its optimizer, whatever the world size that wrote it.

    The optimizer's settings stay as configured: the moments are the run's, weight decay and betas may be changed.
    """
    model, optimizer = training.model, training.optimizer
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    state = state_of(training)
    # filled in place
    dcp.load(state, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """As they are, float32, under their official names, on rank 0's CPU. All ranks call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def export(folder: Path, training: Trained, metadata: dict[str, str]) -> None:
    """RUN/model.safetensors, all weights, and model_ema.safetensors, their running mean, if there is one, with what `metadata`
    says of them; a probe's with its encoder. All ranks call it."""
    exported = {"model": whole_weights(training.model)}
    if training.mean:
        exported["model_ema"] = {
            name: mean.full_tensor().cpu() if isinstance(mean, DTensor) else mean for name, mean in training.mean.state.items()
        }
    for name, state in exported.items() if training.ranks.rank == 0 else ():
        tensors, about = as_model(state, [folder], mean=name == "model_ema")
        save_weights(folder / f"{name}.safetensors", tensors, metadata | about)
