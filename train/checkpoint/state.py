"""What is in a checkpoint, and reading it: on any number of ranks, or only the weights, anywhere.

A checkpoint is a folder that `torch.distributed.checkpoint` wrote, with model and optimizer, and small files beside them; see
`checkpoint_files`. A run saves them through `run_checkpoints`.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict

from pipeline.loader import LoaderState
from pipeline.settings import read
from train.checkpoint.files import PROGRESS, latest
from train.compute.parallel import Ranks

__all__ = ["Progress", "export", "latest", "load", "load_model", "read_progress", "read_weights", "save_weights"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands, beside its tensors."""

    step: int  # optimizer steps done
    loss_sum: float  # over the steps taken since the last line of the log, over all ranks
    good_steps: float  # their number, times the ranks
    guard: dict[str, float]  # what it remembers of the steps
    loader: LoaderState


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood when it was saved."""
    values: dict[str, Any] = json.loads((checkpoint / PROGRESS).read_text())
    loader = values.pop("loader")
    ledger = tuple(tuple(entry) for entry in loader.pop("ledger"))
    state = read(LoaderState, loader | {"ledger": ledger}, "the loader's state")
    return read(Progress, values | {"loader": state}, "the checkpoint's progress")


def load(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read a checkpoint into a sharded model and its optimizer, whatever the world size that wrote it.

    The optimizer's settings stay as configured: the moments are the run's, weight decay and betas may be changed.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    model_state, optimizer_state = get_state_dict(model, optimizer)
    # filled in place
    dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All weights, whole, on the CPU, under their official names; no model is built. Raises OSError."""
    entries = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix("model."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():  # that there is no process group is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load({"model": weights}, checkpoint_id=checkpoint, no_dist=True)
    return weights


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Read only the weights, into an unsharded model on the CPU."""
    model.load_state_dict(read_weights(checkpoint))


def save_weights(file: Path, weights: dict[str, Any]) -> None:
    """Write one safetensors file, whole or not at all. Raises OSError."""
    temporary = file.with_name(f".{file.name}.tmp")
    tensors = {name: tensor.contiguous() for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.rename(file)


def export(file: Path, model: nn.Module, ranks: Ranks) -> None:
    """All weights in one safetensors file, float32, under their official names. All ranks call it."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if ranks.rank == 0:
        save_weights(file, state)
