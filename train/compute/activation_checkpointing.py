"""Which blocks keep their activations for the backward pass, and which run again there: memory for time.

    none          every block keeps what its backward pass reads
    full          every block keeps its input only, and runs again
    every:K       the first block and every K-th after it run again, counted through encoder and decoder
    budget:GIB    as few FLOPs run again as it takes to keep one forward pass's activations of a rank within so many GiB

Torch's own memory budget is not used: it is a private setting, works in compiled graphs only, and a block here has a closed
form (`train/compute/memory.py`), so that the choice is exact and the same with and without compilation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from pipeline.sampling.masking import TokenCounts
from train.compute.memory import GIB, activation_bytes, block_shapes
from train.compute.precision import Precision
from train.config import CHECKPOINTING, Policy


def recomputed_blocks(
    policy: Policy, config: ModelConfig, precision: Precision, tokens: TokenCounts | None = None, views: int | None = None
) -> list[bool]:
    """Of every block in forward order, whether it runs again. `tokens` of a view and `views` of a forward pass matter to a
    budget only, which raises ValueError if they exceed it even with every block running again."""
    depth = config.encoder_depth + config.decoder_depth
    match policy.kind:
        case "none":
            return [False] * depth
        case "full":
            return [True] * depth
        case "every":
            return [i % int(policy.number) == 0 for i in range(depth)]
    if tokens is None or views is None:
        raise ValueError(
            f"{CHECKPOINTING} budget:{policy.number:g} needs to know the tokens of a view; pass them to build_model"
        )
    return within_budget(config, precision, tokens, views, policy.number * GIB)


def within_budget(config: ModelConfig, precision: Precision, tokens: TokenCounts, views: int, budget: float) -> list[bool]:
    """The choice with the fewest FLOPs among all numbers of encoder and of decoder blocks: the first ones of each, whose
    activations live longest. `budget` in bytes."""
    shapes = block_shapes(config, tokens, precision)
    best, fewest = None, math.inf
    for encoder in range(config.encoder_depth + 1):
        for decoder in range(config.decoder_depth + 1):
            chosen = [*(i < encoder for i in range(config.encoder_depth)), *(i < decoder for i in range(config.decoder_depth))]
            cost = sum(shape.recomputed_mac for shape, again in zip(shapes, chosen, strict=True) if again)
            if cost < fewest and views * activation_bytes(config, tokens, precision, chosen) <= budget:
                best, fewest = chosen, cost
    if best is None:
        least = activation_bytes(config, tokens, precision, [True] * len(shapes))
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

    def run_again(*arguments: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False)

    block.forward = run_again


def checkpoint_blocks(blocks: Sequence[nn.Module], recomputed: Sequence[bool]) -> None:
    """Apply a choice to the blocks in forward order."""
    for block, again in zip(blocks, recomputed, strict=True):
        if again:
            checkpoint_block(block)
