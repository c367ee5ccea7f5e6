"""Answers that most stages give alike; a stage takes one over by naming it: `groups = plain_groups`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.trainable import Trainable
from pipeline.loader import ClipLoader, LoaderState
from pipeline.sampling import SamplingRecipe
from pipeline.storage.clip_cache import ClipCache
from train.compute.optimizer import parameter_groups
from train.compute.parallel import Ranks
from train.config import RunConfig
from train.stage import Frozen, Stage


def training_loader(
    stage: Stage, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None
) -> ClipLoader:
    """Endless batches of the configuration's recipe."""
    config = stage.config
    return open_loader(
        config,
        ranks,
        config.sampling,
        state=state,
        clips_per_batch=clips_per_batch,
        prefetch=config.loader.prefetch,
        label_map=label_map,
    )


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


def fresh(stage: Stage, model: Trainable) -> Mapping[str, Tensor]:
    """Every parameter begins with its initial value."""
    return {}
