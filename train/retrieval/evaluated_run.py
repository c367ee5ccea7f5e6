"""A finished run of retrieval, or one in work: what it was asked for, its text tower, and its model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.config import Implementation
from model.two_towers import TwoTowers
from model.weights import RETRIEVE, Weights
from train.checkpoint.files import CONFIG
from train.checkpoint.source import is_run
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import RunConfig, configuration_of, read_stage
from train.retrieval.text_folder import FACTS, KEPT, TextFolder

Recipes = Mapping[str, Callable[[], RunConfig]]
OF_CLASSES = ("finetune", "probe", "distill")


def begun_as(run: Path, recipes: Recipes, **changed: Any) -> Any:
    """The run's configuration, without its own folder and with what is changed and not None. Raises ValueError for what is no
    run of retrieval."""
    if not is_run(run):
        raise ValueError(f"{run} is no folder of a run of `tubecell retrieve`; weights alone do not say how texts are read")
    if (stage := read_stage(run / CONFIG)) != RETRIEVE:
        other = "; `tubecell evaluate` tells how often a classifier is right" if stage in OF_CLASSES else ""
        raise ValueError(f"{run} is a run of `{stage}`, not of `{RETRIEVE}`, and knows no texts{other}")
    config: Any = configuration_of(run, next(iter(recipes.values()))())
    return replace(config, out=None, init=None, config=None, **{name: v for name, v in changed.items() if v is not None})


def text_folder_of(run: Path, config: Any) -> TextFolder:
    """What the run kept of its text tower; of an older run, which kept nothing, the folder of --text. Raises ValueError."""
    if (run / KEPT / FACTS).is_file():
        return TextFolder(run / KEPT, config.pooling, config.words)
    if not (Path(config.text) / CONFIG).is_file():
        raise ValueError(
            f"{run} has no {KEPT}, as runs of older code have none, and {config.text} is not there: give --text TOWER, the "
            "folder that it was trained with"
        )
    return TextFolder(config.text, config.pooling, config.words)


def built(config: Any, folder: TextFolder, weights: Weights, precision: str, ranks: Ranks) -> TwoTowers:
    """The model with these weights, on this rank's device. Raises ValueError where the text tower is another."""
    with torch.device("meta"):
        sizes = config.model, folder.tower(), folder.width, config.width
        model = TwoTowers(*sizes, lambda name: weights.tensors[f"text.{name}"], how=Implementation())
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        found = weights.tensors.get(name)
        if found is None or found.shape != parameter.shape:
            what = "nothing" if found is None else f"shape {tuple(found.shape)}"
            raise ValueError(
                f"{weights.place} has of {name} {what}, where {folder.place} wants {tuple(parameter.shape)}: give the text "
                "tower that it was trained with"
            )
        parameter.data.copy_(found)
    model.reset_buffers()
    model = model.to(ranks.device).eval().requires_grad_(False)
    for parameter in model.parameters():  # buffers stay as they are, as in training
        parameter.data = parameter.data.to(PRECISIONS[precision].encoder)
    return model
