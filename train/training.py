"""What a training step works on: the model and its frozen companions, the optimizer, the guard, the running mean of the
weights."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from model.layers import PatchEmbed
from model.trainable import Trainable, blocks_of
from pipeline.batches import AnyBatch
from pipeline.sampling.draws import Draws
from train.checkpoint.descent import Beginning, fingerprint
from train.compute.activation_checkpointing import recomputed_blocks
from train.compute.attention import chosen
from train.compute.ema import RunningMean
from train.compute.memory import cost_of
from train.compute.optimizer import ShardedSGD, build_optimizer
from train.compute.parallel import Ranks, implementation, initialise, of_rank_0, shard_frozen, shard_model
from train.compute.precision import PRECISIONS
from train.config import Policy
from train.stage import Stage
from train.watch.guard import Guard


class Training:
    """Every rank has one."""

    def __init__(
        self, stage: Stage, ranks: Ranks, *, resumed: bool = False, memory: int = 64, guard: Mapping[str, float] | None = None
    ) -> None:
        """With initial weights, or, `resumed`, with NaN that a checkpoint is about to replace. `memory`: steps after which the
        guard is read at the latest; `guard`: its state in the run that this one goes on with.

        Raises ValueError if these ranks cannot share a step, for a mesh or a budget that cannot be, and for weights that are
        not the model's.
        """
        config = stage.config
        compute, precision = config.compute, PRECISIONS[config.compute.precision]
        self.stage, self.ranks, self.compute, self._recipe = stage, ranks, compute, config.sampling
        self.passes = config.accumulation(ranks.world_size)
        policy, cost = Policy.parse(compute.activation_checkpointing), cost_of(stage)
        views = config.views.views_per_step // ranks.world_size // self.passes
        self.attention = chosen(compute.attention, ranks, cost.shapes, views)
        how = implementation(replace(compute, attention=self.attention.kernel), ranks.device)
        with torch.device("meta"):
            self.model = stage.model(how)
            frozen = stage.frozen()
        freeze(self.model, config.freeze)
        shard_model(self.model, compute, ranks, recomputed_blocks(policy, cost, compute.most_views))
        self.fingerprints: dict[str, str] = {}  # of the frozen models
        self.settling = [each.settle for each in frozen.values() if each.settle]
        for name, each in frozen.items():
            if each.stands_for:
                self.fingerprints[name] = each.stands_for
                continue
            weights = of_rank_0(each.weights, ranks)
            self.fingerprints[name] = ranks.gather(fingerprint(weights) if ranks.rank == 0 else "")[0]
            shard_frozen(each.model, weights, compute, ranks, compiled=each.compiled)
            del weights
        self.beginning = None if resumed else self._begin()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optim, groups = config.optim, stage.groups(self.model)
        if optim.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = ShardedSGD(groups, optim.momentum)
        else:
            self.optimizer = build_optimizer(groups, optim.betas, optim.eps)
        self.mean = RunningMean(self.model, config.ema) if config.ema is not None else None
        self.guard = Guard(
            config.optim,
            passes=self.passes,
            memory=memory,
            device=ranks.device,
            scaled=precision.loss_scaling,
            state=guard,
        )

    def _begin(self) -> Beginning | None:
        """Initial values; what rank 0 has to say of those that --init gave. What it read is gone when this returns."""
        start, ranks, config = self.stage.start_from(self.model), self.ranks, self.stage.config
        if start is None:
            initialise(self.model, config.seed)
            return None
        initialise(self.model, config.seed, of_rank_0(lambda: start.taken, ranks), handed_out=ranks.world_size > 1)
        return Beginning.of(start, config.model) if ranks.rank == 0 else None

    def draws(self, batch: AnyBatch) -> Draws:
        """What else is random in a forward pass."""
        return Draws(self._recipe, batch.epoch, batch.positions.numpy())


def freeze(model: Trainable, blocks: int) -> None:
    """Do not train the first blocks of the first part, nor the patch embedding, if there are any."""
    if blocks:
        first = next(iter(model.parts().values()))
        embeds = [module for module in first.modules() if isinstance(module, PatchEmbed)]
        for module in (*embeds, *blocks_of(first)[:blocks]):
            module.requires_grad_(False)
