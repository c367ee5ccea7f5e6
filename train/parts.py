"""Answers that most stages give alike; a stage takes one over by naming it: `groups = plain_groups`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.trainable import Trainable
from model.weights import Transfer, Weights, transfer
from pipeline.loader import ClipLoader, LoaderState
from pipeline.sampling import SamplingRecipe
from pipeline.storage.clip_cache import ClipCache
from train.checkpoint.source import read_once
from train.classes import Head
from train.compute.device_speed import peak_flops
from train.compute.memory import Costed, cost_of
from train.compute.optimizer import parameter_groups
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import RunConfig
from train.stage import ClipStage, Frozen, Stage


def training_loader(
    stage: ClipStage,
    ranks: Ranks,
    state: LoaderState | None,
    clips_per_batch: int,
    label_map: Path | None,
) -> ClipLoader:
    """Endless batches of the configuration's recipe."""
    return open_training(stage.config, stage, ranks, state, clips_per_batch, label_map)


def open_training(
    config: RunConfig,
    costed: Costed,
    ranks: Ranks,
    state: LoaderState | None,
    clips_per_batch: int,
    label_map: Path | Sequence[str] | None,
    **how: Any,
) -> ClipLoader:
    """Endless batches of a configuration's recipe. `costed` tells what a step costs; `how` are other arguments."""
    return open_loader(
        config,
        ranks,
        config.sampling,
        state=state,
        clips_per_batch=clips_per_batch,
        prefetch=config.loader.prefetch,
        label_map=label_map,
        clips_per_second=clips_per_second(costed, ranks),
        **how,
    )


def clips_per_second(stage: Costed, ranks: Ranks) -> float | None:
    """What a stage's step takes of them on this rank, at `--mfu` of its GPU's data sheet; None where that is not known."""
    config = stage.config
    peak = peak_flops(ranks.device, PRECISIONS[config.compute.precision])
    return config.mfu * peak / (cost_of(stage).flops * config.views.views_per_clip) if peak else None


def open_loader(config: RunConfig, ranks: Ranks, recipe: SamplingRecipe, **how: Any) -> ClipLoader:
    """Of the run's dataset, for this rank, with the workers, decoder and cache of `--loader.*`; `how` are other arguments."""
    assert config.data is not None
    return ClipLoader(
        config.data,
        recipe,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
        workers=config.loader.workers,
        decoder=config.loader.decoder,
        cache=ClipCache.asked_for(config.loader.cache, config.loader.cache_size),
        **how,
    )


def plain_groups(stage: Stage, model: Trainable) -> list[dict[str, Any]]:
    """Every matrix decays, nothing else does; one learning rate."""
    return parameter_groups(model.named_parameters(), stage.config.optim.weight_decay)


def nothing_frozen(stage: Stage) -> Mapping[str, Frozen]:
    """No model but the one that is trained."""
    return {}


def from_init(stage: Stage, model: Trainable, head: Callable[[Weights], Head] | None = None) -> Transfer | None:
    """What of the weights of --init has the names and shapes of the model's parameters; None without. `head` says what a
    classifier takes of an earlier head. Raises ValueError for weights that cannot be read, and for an encoder of other
    sizes."""
    if (place := stage.config.init) is None:
        return None
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    try:
        weights = read_once(place)
        if head is None or not weights.num_classes:
            return transfer(weights, shapes)
        taken = head(weights)
        found = replace(transfer(weights, shapes, taken.rows), notes=[taken.said])
        return found if taken.fits else found.without("head.", "its classes are others")
    except ValueError as error:
        raise ValueError(f"--init: {error}") from None
