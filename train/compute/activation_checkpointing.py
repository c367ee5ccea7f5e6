"""Which blocks keep their activations for the backward pass, and which run again there: memory for time.

    none          every block keeps what its backward pass reads
    full          every block keeps its input only, and runs again
    every:K       the first block and every K-th after it run again, counted through encoder and decoder
    budget:GIB    as few FLOPs run again as it takes to keep one forward pass's activations of a rank within so many GiB
    auto          none, or a budget that the device has: see `train/compute/plan.py`

Torch's own memory budget is not used: it is a private setting, works in compiled graphs only, and a block here has a closed
form (`train/compute/memory.py`), so that the choice is exact and the same with and without compilation.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from train.compute.memory import GIB, Cost, activation_bytes
from train.config import CHECKPOINTING, Policy


def recomputed_blocks(policy: Policy, cost: Cost, views: int) -> list[bool]:
    """Of every block in forward order, whether it runs again. `views` of a forward pass matter to a budget only, which raises
    ValueError if they exceed it even with every block running again."""
    depth = len(cost.shapes)
    match policy.kind:
        case "none" | "auto":
            return [False] * depth
        case "full":
            return [True] * depth
        case "every":
            return [i % int(policy.number) == 0 for i in range(depth)]
    return within_budget(cost, views, policy.number * GIB)


def within_budget(cost: Cost, views: int, budget: float) -> list[bool]:
    """The choice with the fewest FLOPs among all numbers of blocks of each part: the first ones of each, whose activations live
    longest. `budget` in bytes."""
    shapes, best, fewest = cost.shapes, None, math.inf
    for numbers in product(*(range(len(part) + 1) for part in cost.blocks)):
        chosen = [i < number for part, number in zip(cost.blocks, numbers, strict=True) for i in range(len(part))]
        again = sum(shape.recomputed_mac for shape, one in zip(shapes, chosen, strict=True) if one)
        if again < fewest and views * activation_bytes(cost, chosen) <= budget:
            best, fewest = chosen, again
    if best is None:
        least = activation_bytes(cost, [True] * len(shapes))
        raise ValueError(
            f"{CHECKPOINTING} budget:{budget / GIB:g}: {views} views keep {views * least / GIB:.2f} GiB even if every block "
            f"runs again; raise it, or lower --compute.views-per-forward to {int(budget // least)} or less"
        )
    return best


def checkpoint_block(block: nn.Module) -> None:
    """Let a block run again in the backward pass. Names of parameters stay, and so does what compiles the block.

    The closure is what Dynamo can trace: of a `functools.partial` of torch's function it says that there is nothing to compile.
    """
    forward: Callable[..., Any] = block.forward

    def run_again(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    block.forward = run_again


def checkpoint_blocks(blocks: Sequence[nn.Module], recomputed: Sequence[bool]) -> None:
    """Apply a choice to the blocks in forward order."""
    for block, again in zip(blocks, recomputed, strict=True):
        if again:
            checkpoint_block(block)
