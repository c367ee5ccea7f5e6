"""Checkpoints of a run.

    RUN/checkpoints/step-00000500/     a torch.distributed.checkpoint of model and optimizer, loadable on any number of ranks,
                    step-00001000/     with progress.json: where the run and its data stand
                    .writing-...       being written, or left by a run that was killed; never read

A checkpoint is written under a unique temporary name and renamed when every rank is done, so whatever has its final name is
whole. Older ones go only after that.
"""

import json
import shutil
import uuid
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from pipeline.files import sync_directory, write_durably
from pipeline.loader import LoaderState
from train.parallel import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands, beside its tensors."""

    step: int  # optimizer steps done
    skipped: int  # of them, steps skipped for a gradient or loss that was not finite
    loss_sum: float  # over the good steps since the last line of the log, over all ranks
    good_steps: float  # their number, times the ranks
    loader: LoaderState

    @staticmethod
    def from_json(text: str) -> "Progress":
        values: dict[str, Any] = json.loads(text)
        loader = values.pop("loader")
        ledger = tuple(tuple(entry) for entry in loader.pop("ledger"))
        return Progress(**values, loader=LoaderState(**loader, ledger=ledger))


def clean_up(folder: Path) -> None:
    """Remove what killed runs left behind; nobody else may be writing there."""
    for leftover in [*folder.glob(".writing-*"), *folder.glob(".deleting-*")]:
        shutil.rmtree(leftover)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's `checkpoints` folder, or None."""
    return max(folder.glob("step-*"), default=None)


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep_last: int, ranks: Ranks
) -> Path:
    """Write a checkpoint and drop those beyond the last `keep_last`. All ranks call it; raises OSError if the disk refuses."""
    final = folder / f"step-{progress.step:08d}"
    temporary = folder / ranks.gather(f".writing-{uuid.uuid4().hex}")[0]
    model_state, optimizer_state = get_state_dict(model, optimizer)
    try:
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=temporary)
    except CheckpointException as error:  # on every rank alike
        shutil.rmtree(temporary, ignore_errors=True)
        cause = next(iter(error.failures.values()))[0]
        kept = latest(folder)
        raise OSError(f"could not save step {progress.step} in {folder}: {cause}; the last checkpoint is {kept}") from error
    if ranks.rank == 0:
        write_durably(temporary / "progress.json", json.dumps(asdict(progress), indent=1).encode())
        temporary.rename(final)
        sync_directory(folder)
        for old in sorted(folder.glob("step-*"))[:-keep_last]:
            doomed = old.with_name(f".deleting-{old.name}")  # a half-deleted one must not look whole
            old.rename(doomed)
            shutil.rmtree(doomed)
    if ranks.world_size > 1:
        dist.barrier()
    return final


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood when it was saved."""
    return Progress.from_json((checkpoint / "progress.json").read_text())


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


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Read only the weights, into an unsharded model on the CPU."""
    state = model.state_dict()
    with warnings.catch_warnings():  # that there is no process group is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load({"model": state}, checkpoint_id=checkpoint, no_dist=True)
    model.load_state_dict(state)


def export(file: Path, model: nn.Module, ranks: Ranks) -> None:
    """All weights in one safetensors file, float32, under their official names. All ranks call it."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if ranks.rank == 0:
        temporary = file.with_suffix(".tmp")
        tensors = {name: tensor.contiguous() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.rename(file)
