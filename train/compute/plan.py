"""How a step is computed where nobody said: which blocks run again, and how many views a forward pass has. Decided once, at
start, by what the device's memory holds (`train/compute/memory.py`), the same on every rank.

The fewest FLOPs again come first, none where that fits, then the fewest passes of a step. A pass must not become so small for
it that the device waits for the host: `LEAST_FLOPS`. What was given stays. Where the number of views matters
(`LoopConfig.views_matter`), and with a budget, whose cost depends on it, a pass has the 128 of ever, and on a CPU no more.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psutil
import torch

from train.compute.activation_checkpointing import recomputed_blocks
from train.compute.memory import GIB, HEADROOM, Cost, Costed, StepMemory, cost_of, recomputed_share
from train.compute.out_of_memory import predict
from train.compute.parallel import Ranks
from train.config import VIEWS_PER_FORWARD, ComputeConfig, LoopConfig, Policy

MOST_VIEWS = 512  # of a pass: 80,000 rows of ViT-B's matrices, 1.2 GB of a batch in the memory of loader and device
# Of a pass, by block, forward and backward. An H100 does it in 1.1 ms at 45 % of its rate; the host takes 1.2 (ViT-B) to 3 ms a
# block (ViT-g) to queue it, by what it takes on our two cores, halved: reckoned, not measured on a GPU.
LEAST_FLOPS = 5e11
OTHERS = 2**30  # bytes of a card that may be gone at start: a CUDA context has some 0.5 GiB, a desktop as much

Made = TypeVar("Made", bound=Costed)


@dataclass(frozen=True, slots=True)
class Card:
    """A device's memory at start, in bytes."""

    total: float
    free: float

    @property
    def room(self) -> float:
        """What is planned for: all of it, so that the next start decides the same, or what other programs clearly leave."""
        return self.total if self.total - self.free <= max(OTHERS, HEADROOM / 2 * self.total) else self.free


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The choice, and what follows from it."""

    compute: ComputeConfig
    """With nothing left open."""
    views: int
    """Of a forward pass."""
    passes: int
    """Of a rank's step."""
    recomputed: Sequence[bool]
    """Of every block in forward order."""
    more: float
    """FLOPs again, by those of a step without any."""
    memory: StepMemory
    card: Card

    @property
    def fits(self) -> bool:
        """With `HEADROOM` to spare."""
        return self.memory.total <= (1 - HEADROOM) * self.card.room

    def __str__(self) -> str:
        """`activations: none recomputed, in 8 passes of 128 views: 63.8 of 131.3 GiB`"""
        card, blocks = self.card, sum(self.recomputed)
        again = (
            f"{blocks} of {len(self.recomputed)} blocks recomputed ({self.more:.1%} more FLOPs)"
            if blocks
            else "none recomputed"
        )
        passes = f"in {self.passes} pass{'es' if self.passes > 1 else ''} of {self.views} views"
        of = f"{card.total / GIB:.1f} GiB"
        if card.room < card.total:
            of = f"the {card.free / GIB:.1f} GiB that other programs leave of {of}"
        room = "" if self.fits else f", which leaves less than {HEADROOM:.0%} to spare"
        return f"activations: {again}, {passes}: {self.memory.total / GIB:.1f} of {of}{room}"


def plan(
    stage: Costed, world_size: int, local_world_size: int, card: Card, *, cpu: bool = False, cost: Cost | None = None
) -> Plan:
    """For one of so many ranks, on GPUs or on a `cpu`, which is kept busy by any pass. If nothing fits, it is what needs least.
    Raises ValueError if the ranks cannot share a step or a copy of the state, and for a budget that cannot be kept."""
    config, cost = stage.config, cost or cost_of(stage)
    compute, policy = config.compute, config.compute.activation_checkpointing
    room = (1 - HEADROOM) * card.room
    kind = Policy.parse(policy).kind
    if compute.views_per_forward is not None or config.views_matter or kind == "budget":
        sizes = [config.views.views_per_step // world_size // config.accumulation(world_size)]
    else:
        sizes = pass_sizes(config, world_size, VIEWS_PER_FORWARD if cpu else MOST_VIEWS)

    def memory(views: int, policy: str) -> StepMemory:
        chosen = replace(compute, activation_checkpointing=policy)
        return predict(stage, chosen, world_size, local_world_size, views, cost)[0]

    def largest(policy: str) -> int:
        return next((views for views in sizes if memory(views, policy).total <= room), sizes[-1])

    def fewest_again(views: int) -> str:
        full = memory(views, "full")
        if memory(views, "none").total <= room:
            return "none"
        budget = math.floor((room - full.total + full.activations) / GIB * 100) / 100  # what else is there is less with fewer
        return f"budget:{budget:g}" if budget * GIB > full.activations else "full"

    if kind == "auto":
        views, enough = largest("none"), 0 if cpu else math.ceil(LEAST_FLOPS * len(cost.shapes) / cost.flops)
        policy = fewest_again(views)
        if views < min(enough, sizes[0]) or policy != "none":
            views = min(max(views, next((size for size in reversed(sizes) if size >= enough), sizes[0])), largest("full"))
            policy = fewest_again(views)
    else:
        views = largest(policy)
    chosen = replace(compute, activation_checkpointing=policy, views_per_forward=views)
    recomputed = recomputed_blocks(Policy.parse(policy), cost, views)
    return Plan(
        compute=chosen,
        views=views,
        passes=config.views.views_per_step // world_size // views,
        recomputed=recomputed,
        more=recomputed_share(cost, recomputed),
        memory=memory(views, policy),
        card=card,
    )


def pass_sizes(config: LoopConfig, world_size: int, most: int) -> list[int]:
    """Numbers of views that the passes of a rank's step may have, the largest first, which is no more than `most`. Raises
    ValueError if the ranks cannot share the step."""
    share = config.views.views_per_step // world_size
    sizes = [share // config.accumulation(world_size, most)]
    with suppress(ValueError):  # less than a clip, or than two that are mixed
        while sizes[-1] > 1:
            sizes.append(share // config.accumulation(world_size, sizes[-1] - 1))
    return sizes


def planned(stage: Made, ranks: Ranks) -> tuple[Made, Plan]:
    """The stage with nothing left open in its configuration, by the smallest of the ranks' cards. All ranks call it, before
    anything is on the device. Raises ValueError as `plan` does."""
    card = min(ranks.gather(card_of(ranks, stage.config.compute.memory_gib)), key=lambda card: card.room)
    found = plan(stage, ranks.world_size, ranks.local_world_size, card, cpu=ranks.device.type != "cuda")
    made: Any = copy.copy(stage)  # not a new one: a stage may read weights when it is made
    made.config = replace(stage.config, compute=found.compute)
    return made, found


def card_of(ranks: Ranks, memory_gib: float | None) -> Card:
    """This rank's, or of so many GiB; on a CPU its share of the machine's memory."""
    if memory_gib is not None:
        return Card(memory_gib * GIB, memory_gib * GIB)
    if ranks.device.type != "cuda":
        share = psutil.virtual_memory().total / ranks.local_world_size
        return Card(share, share)
    free, total = torch.cuda.mem_get_info(ranks.device)
    return Card(total, free)
