"""Weights to begin with or to look at: a file of any layout, or a run of ours, by the folder of the run or of a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from model.config import ModelConfig
from model.localizer_config import LocalizerConfig
from model.weight_files import WeightFile, read_weight_file
from model.weights import DESCENT, MODEL, Weights, metadata_of, read_weights, understand
from pipeline.settings import read
from train.checkpoint import descent
from train.checkpoint.files import CONFIG, PREFIX, PROGRESS, damage, latest, step_of
from train.checkpoint.probed import are_heads, best_head, joined, last_evaluated
from train.checkpoint.weights import read_weights as read_checkpoint
from train.config import LABEL_MAP, read_config, read_recipe, read_stage

BEST = ("best", "best_ema")
LOCALIZE = "localize"  # the stage whose model is no video ViT
ABSENT = dict.fromkeys(BEST, "no best weights of this name: no evaluation of classes has kept them yet")
ABSENT["model_ema"] = "no running mean of its weights: the run was begun without --ema"


def read_source(place: str | Path, *, key: str | None = None, **hints: Any) -> Weights:
    """Whatever `read_weights` reads, with its `hints`; or a run's newest checkpoint, or its model.safetensors where it is done.
    The `key` model_ema is of a run the running mean of its weights; best and best_ema are those that it kept by name.

    Raises ValueError, in a line, for what is neither, and for a damaged checkpoint.
    """
    path = Path(place)
    run, checkpoint = path, None
    if path.name.startswith(PREFIX) and (path / PROGRESS).exists():
        run, checkpoint = path.resolve().parents[1], path
    elif not is_run(path):
        return read_weights(place, key=key, **hints)
    elif key in BEST:
        return _of_file(path, f"{key}.safetensors", hints)
    elif not (path / "complete").exists() or not (path / "model.safetensors").exists():
        checkpoint = latest(path / "checkpoints")
    if key not in (None, "model", *ABSENT):
        raise ValueError(f"{place} is a run, which has model and perhaps {', '.join(ABSENT)}, but no {key!r}")
    if checkpoint is None:
        if not (path / "model.safetensors").exists():
            raise ValueError(f"{place} is a run without a checkpoint yet; wait for its first one, or give other weights")
        return _of_file(path, f"{key or 'model'}.safetensors", hints)
    if (wrong := damage(checkpoint)) and checkpoint.exists():
        raise ValueError(f"{checkpoint} is damaged ({wrong}); give another checkpoint of the run")
    return _of_checkpoint(run, checkpoint, str(place), key == "model_ema", hints)


def is_run(path: Path) -> bool:
    """Whether a folder is one of a run of ours; the config.json of others has no optimizer."""
    try:
        return "optim" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def read_once(place: str | Path, **hints: Any) -> Weights:
    """What `read_source` gives, in a job of several ranks: all call it, rank 0 alone reads, and the others get tensors without
    values, on meta, which `initialise` and `shard_frozen` fill with rank 0's. Raises ValueError on all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return read_source(place, **hints)
    weights, told = None, list[Any]([None, None])
    if dist.get_rank() == 0:
        try:
            weights = read_source(place, **hints)
            tensors = {name: tensor.to("meta") for name, tensor in weights.tensors.items()}
            told = [replace(weights, tensors=tensors), None]
        except (OSError, ValueError) as error:
            told = [None, str(error)]
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise ValueError(told[1])
    about: Weights = told[0]
    return weights or about


def metadata_of_run(folders: Sequence[Path], **facts: str | int | None) -> dict[str, str]:
    """What is written into a file of a run's weights, as `metadata_of`: sizes, stage, recipe, labels and descent, by the small
    files in the first of the folders that has them, the run's or a checkpoint's, and more `facts`. Without a config.json, of
    which older code wrote none into a checkpoint, nothing is known."""

    def file(name: str) -> Path | None:
        return next((folder / name for folder in folders if (folder / name).exists()), None)

    if (config_file := file(CONFIG)) is None:
        return {"format": "pt"}
    values = {name.removeprefix("model."): v for name, v in read_config(config_file).items() if name.startswith("model.")}
    sizes: type = LocalizerConfig if read_stage(config_file) == LOCALIZE else ModelConfig
    label_map, begun = file(LABEL_MAP), file(descent.FILE)
    return metadata_of(
        read(sizes, values, f"{config_file}, model,"),
        json.loads(label_map.read_text()) if label_map else None,
        stage=read_stage(config_file),
        recipe=read_recipe(config_file),
        **facts,
        **{DESCENT: json.dumps(descent.read_descent(begun.read_text()))} if begun else {},
    )


def as_model(
    tensors: Mapping[str, Tensor],
    folders: Sequence[Path],
    step: int | None = None,
    mean: bool = False,
    evaluated: Mapping[str, Any] | None = None,
) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """Of a run's weights, or of their running mean, after a step -> those of a model, and metadata. They are the same, but of a
    probe, whose best head is joined with its encoder: by the figures `evaluated`, or the run's last ones up to that step.
    `folders` are those with the small files, the last the run's.

    Raises ValueError if the encoder is not there, or not what it was in training.
    """
    if not are_heads(tensors):
        return tensors, {}
    run = folders[-1]
    config, begun = (next(folder / name for folder in folders if (folder / name).exists()) for name in (CONFIG, descent.FILE))
    values, was = read_config(config), descent.read_descent(begun.read_text())[0]["fingerprint"]
    place, said = best_head(values, evaluated or last_evaluated(run, step, "ema_" if mean else ""))
    try:
        encoder = read_source(values["init"])
    except (OSError, ValueError) as error:
        raise ValueError(f"{run} has heads alone, and their encoder cannot be read: {error}") from None
    if descent.fingerprint(encoder.tensors) != was:
        raise ValueError(f"{run} has heads alone, and their encoder, {values['init']}, is not what it was in training")
    return joined(tensors, encoder.encoder(), place), {"head": said}


def _of_file(run: Path, name: str, hints: Mapping[str, int | None]) -> Weights:
    """RUN/model.safetensors, into which older code wrote no sizes: they are in its config.json."""
    if not (run / name).exists():
        raise ValueError(f"{run} has {ABSENT[name.removesuffix('.safetensors')]}")
    found = read_weight_file(run / name)
    if MODEL in found.metadata:
        return understand(found, hints)
    complete = run / "complete"
    step = json.loads(complete.read_text())["steps"] if complete.exists() else None
    metadata = metadata_of_run([run], step=step)
    return understand(replace(found, metadata=metadata), hints)


def _of_checkpoint(run: Path, checkpoint: Path, place: str, mean: bool, hints: Mapping[str, int | None]) -> Weights:
    """Its config.json lies beside the tensors; that of the run may be of a later start."""
    metadata = metadata_of_run([checkpoint, run], step=step_of(checkpoint))
    try:
        tensors: Mapping[str, Tensor] = read_checkpoint(checkpoint, "ema" if mean else "model")
    except OSError as error:
        gone = f"{checkpoint} is gone: a run that goes on removes old ones; try again"
        raise ValueError(str(error) if checkpoint.exists() else gone) from None
    if not tensors:
        raise ValueError(f"{place} has {ABSENT['model_ema']}")
    what = "the running mean of its checkpoint" if mean else "from its checkpoint"
    tensors, about = as_model(tensors, [checkpoint, run], step_of(checkpoint), mean)
    notes = (f"{what} {checkpoint.name}", *(f"its {name} is {said}" for name, said in about.items()))
    return understand(WeightFile(place, tensors, metadata | about, notes=notes), hints)
