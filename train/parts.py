"""Answers that most stages give alike; a stage takes one over by naming it: `groups = plain_groups`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.trainable import Trainable
from pipeline.loader import ClipLoader, LoaderState
from pipeline.storage.clip_cache import ClipCache
from train.compute.optimizer import parameter_groups
from train.compute.parallel import Ranks
from train.stage import Frozen, Stage


def training_loader(
    stage: Stage, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None
) -> ClipLoader:
    """Endless batches of the configuration's recipe."""
    config = stage.config
    assert config.data is not None
    return ClipLoader(
        config.data,
        config.sampling,
        rank=ranks.rank,
        world_size=ranks.world_size,
        state=state,
        device=ranks.device,
        clips_per_batch=clips_per_batch,
        label_map=label_map,
        workers=config.loader.workers,
        prefetch=config.loader.prefetch,
        decoder=config.loader.decoder,
        cache=ClipCache.asked_for(config.loader.cache, config.loader.cache_size),
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
