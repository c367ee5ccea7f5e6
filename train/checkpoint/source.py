"""Weights to begin with or to look at: a file of any layout, or a run of ours, by the folder of the run or of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.weight_files import WeightFile
from model.weights import Weights, metadata_of, read_weights, understand
from pipeline.settings import read
from train.checkpoint import state as checkpoints
from train.checkpoint.files import PREFIX, PROGRESS, damage, latest, step_of
from train.config import LABEL_MAP, read_config, read_stage


def read_source(place: str | Path, **hints: Any) -> Weights:
    """Whatever `read_weights` reads, with its `hints`; or a run's newest checkpoint, or its model.safetensors where it is done.

    Raises ValueError, in a line, for what is neither, and for a damaged checkpoint.
    """
    path = Path(place)
    run, checkpoint = path, None
    if path.name.startswith(PREFIX) and (path / PROGRESS).exists():
        run, checkpoint = path.resolve().parents[1], path
    elif not ((path / "config.json").exists() and "optim" in json.loads((path / "config.json").read_text(errors="replace"))):
        return read_weights(place, **hints)
    elif not (path / "complete").exists() or not (path / "model.safetensors").exists():
        checkpoint = latest(path / "checkpoints")
    if checkpoint is None:
        if not (path / "model.safetensors").exists():
            raise ValueError(f"{place} is a run without a checkpoint yet; wait for its first one, or give other weights")
        return read_weights(path / "model.safetensors", **hints)
    if wrong := damage(checkpoint):
        raise ValueError(f"{checkpoint} is damaged ({wrong}); give another checkpoint of the run")
    return _of_checkpoint(run, checkpoint, str(place))


def _of_checkpoint(run: Path, checkpoint: Path, place: str) -> Weights:
    """Its config.json lies beside the tensors; that of the run may be of a later start."""
    file = checkpoint / "config.json" if (checkpoint / "config.json").exists() else run / "config.json"
    flat = read_config(file)
    values = {name.removeprefix("model."): value for name, value in flat.items() if name.startswith("model.")}
    config = read(ModelConfig, values, f"{file}, model,")
    named = next((folder / LABEL_MAP for folder in (checkpoint, run) if (folder / LABEL_MAP).exists()), None)
    labels = json.loads(named.read_text()) if named else None
    metadata = metadata_of(config, labels, stage=read_stage(file), step=step_of(checkpoint))
    found = WeightFile(place, checkpoints.read_weights(checkpoint), metadata, notes=(f"from its checkpoint {checkpoint.name}",))
    return understand(found)
