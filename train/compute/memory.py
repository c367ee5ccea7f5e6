"""What a training step holds in memory, in closed form: activations from the shapes, state from the parameters.

Counted are tensors. Not counted: the CUDA context, NCCL's buffers, workspaces of kernels and what the allocator loses between
tensors; `HEADROOM` of a card is left for them.

B views, N tokens of a block, D its width, M its MLP's hidden width, H its heads, e bytes of a value in the compute type.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Protocol

import torch

from model.flops import block_mac
from model.trainable import Trainable, blocks_of
from train.config import ComputeConfig, LoopConfig

GIB = 2**30
HEADROOM = 0.1  # share of a card that a plan leaves free: our choice, not a measurement
ENDLESS = 1 << 30  # of what takes no memory
BATCHES = 2  # of views on the device
DALI_BATCHES = 5  # the same where DALI decodes (pipeline/workers/device_decoding.py): 2 ahead, 1 held, 2 late
STATISTIC = 4  # bytes of a norm's mean or deviation: float32 on a GPU; a CPU keeps those of bf16 and fp16 in 2


@dataclass(frozen=True, slots=True)
class BlockShape:
    """A transformer block on one view."""

    tokens: int
    queries: int  # Q: tokens that leave the block, all but in the decoder's last one, where they are those of the loss
    dim: int
    mlp_dim: int
    heads: int
    dtype: torch.dtype
    trained: bool = True  # or no backward pass comes so far down: nothing is kept

    @property
    def input_bytes(self) -> int:
        """e N D: all that a block keeps whose backward pass runs its forward again."""
        return self.trained * self.dtype.itemsize * self.tokens * self.dim

    @property
    def mac(self) -> int:
        """Of its forward pass."""
        return block_mac(self.tokens, self.dim, self.mlp_dim, self.queries)

    @property
    def kept_bytes(self) -> int:
        """N (5 e D + 8) + Q (e (3 D + 2 M) + 4 H + 8): of all tokens input, first norm's output, q, k, v; of those that leave
        attention's output, the stream between the branches, second norm's output, the MLP before and after GELU; attention's
        log-sum-exp and the norms' statistics in float32.

        torch.compile keeps the same: what a matrix product's backward reads is not computed again.
        """
        e = self.dtype.itemsize
        of_all = self.tokens * (5 * e * self.dim + 2 * STATISTIC)
        of_queries = self.queries * (e * (3 * self.dim + 2 * self.mlp_dim) + 4 * self.heads + 2 * STATISTIC)
        return self.trained * (of_all + of_queries)

    @property
    def recomputed_mac(self) -> int:
        """Of the block's forward pass run again: all but the last product (Q D M), of which nothing is kept."""
        return self.trained * (self.mac - self.queries * self.dim * self.mlp_dim)

    @property
    def backward_bytes(self) -> int:
        """e N (M + 2 D): gradients alive at the widest place of the backward pass, of GELU's output and of the stream."""
        return self.trained * self.dtype.itemsize * self.tokens * (self.mlp_dim + 2 * self.dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of a stage's training step, by view. What it computes on, a stage knows; what follows from that, is here."""

    blocks: tuple[tuple[BlockShape, ...], ...]
    """Of each part of the model, in forward order."""
    sizes: "ParameterSizes"
    gmac: float
    """Products of the forward pass of what is trained."""
    outside: int = 0
    """Bytes that the forward pass keeps for the backward pass outside of the blocks."""
    errors: int = 0
    """Bytes of them that are gone when the loss's backward pass is through."""
    loss: int = 0
    """Bytes that the loss's backward pass has alive at most, beyond what was kept."""
    inputs: int
    """Bytes of a view, uint8."""
    before: int = 0
    """Bytes that a frozen model has alive at most, before the forward pass keeps anything."""
    frozen_gmac: float = 0.0
    """Products of frozen models: without a backward pass."""
    frozen_bytes: int = 0
    """Of the weights of frozen models on a rank, which are gathered once; not by view."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """{what: figures} that a dry run says of it besides."""

    @property
    def shapes(self) -> list[BlockShape]:
        """Every block in forward order."""
        return [block for part in self.blocks for block in part]

    def with_frozen(self, number: int) -> "Cost":
        """The same if the first blocks of the first part are not trained (`--freeze`)."""
        first, *others = self.blocks
        frozen = tuple(replace(block, trained=False) for block in first[:number])
        gmac = sum(block.mac for block in frozen) / 1e9
        blocks = (frozen + first[number:], *others)
        return replace(self, blocks=blocks, gmac=self.gmac - gmac, frozen_gmac=self.frozen_gmac + gmac)

    @property
    def flops(self) -> float:
        """Executed once, forward and backward: three times the products of what is trained (its own, and two for the
        gradients), once those of frozen models; two operations a product."""
        return 2e9 * (3 * self.gmac + self.frozen_gmac)


class Costed(Protocol):
    """What a stage is asked for by those who reckon with its cost."""

    @property
    def config(self) -> LoopConfig: ...

    def cost(self, compute: ComputeConfig) -> Cost: ...


def cost_of(stage: Costed, compute: ComputeConfig | None = None) -> Cost:
    """A stage's, by default as the run computes it, with what --freeze leaves out."""
    return stage.cost(compute or stage.config.compute).with_frozen(stage.config.freeze)


def activation_bytes(cost: Cost, recomputed: Sequence[bool] | None = None) -> int:
    """What the forward pass of one view keeps for the backward pass; `recomputed` says of which blocks only the input: the
    blocks' `kept_bytes` or `input_bytes`, and what is outside of them."""
    blocks = cost.shapes
    recomputed = recomputed or [False] * len(blocks)
    return cost.outside + sum(b.input_bytes if again else b.kept_bytes for b, again in zip(blocks, recomputed, strict=True))


def recomputed_share(cost: Cost, recomputed: Sequence[bool]) -> float:
    """FLOPs done twice by those of a training step without any: 3 forward passes, and those of frozen models."""
    again = sum(block.recomputed_mac for block, chosen in zip(cost.shapes, recomputed, strict=True) if chosen)
    return again / (3e9 * cost.gmac + 1e9 * cost.frozen_gmac)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterSizes:
    """Of a model's parameters."""

    shapes: tuple[tuple[int, ...], ...]
    """Of each."""
    parts: tuple[int, ...]
    """Their number in each part, what is in none counted to the last; in forward order."""
    blocks: tuple[int, ...]
    """Their number in each block, in forward order."""

    @staticmethod
    def of(model: Trainable) -> "ParameterSizes":
        """Of a model, which may be on meta."""
        parts = list(model.parts().values())
        shapes = tuple(tuple(parameter.shape) for parameter in model.parameters())
        numbers = [sum(parameter.numel() for parameter in part.parameters()) for part in parts[:-1]]
        numbers.append(sum(math.prod(shape) for shape in shapes) - sum(numbers))
        blocks = (sum(parameter.numel() for parameter in block.parameters()) for part in parts for block in blocks_of(part))
        return ParameterSizes(shapes=shapes, parts=tuple(numbers), blocks=tuple(blocks))

    @property
    def whole(self) -> int:
        """Their number."""
        return sum(math.prod(shape) for shape in self.shapes)

    def local(self, shard: int) -> int:
        """Their number on a rank with the longest shard: rows divided and rounded up, tensor by tensor."""
        return sum(math.ceil(shape[0] / shard) * math.prod(shape[1:]) for shape in self.shapes)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes on one rank, of p parameters shared by s ranks; what a step needs at its fullest moment."""

    parameters: int
    """4 p / s: master weights in float32. A shard is as long as the longest: each tensor's rows are divided, rounded up."""
    moments: int
    """8 p / s: AdamW's two, in float32, or 4 p / s, SGD's; 4 p / s more where a running mean of the weights is kept."""
    gradients: int
    """4 p / s in float32; with deferred exchange 4 p besides, each rank's own sum."""
    gathered: int
    """e p: the weights in the compute type; resharded, those outside the blocks and of the three largest blocks: the one that
    computes, the next, and the buffer it was gathered in. And all of the frozen models'."""
    inputs: int
    """Two batches of uint8 views, or five where DALI decodes them."""
    activations: int
    """`activation_bytes` of every view."""
    passing: int
    """What comes and goes: the most that is ever alive beyond the sum of the above."""

    @property
    def total(self) -> int:
        return sum(astuple(self))


def step_memory(
    cost: Cost,
    recomputed: Sequence[bool],
    *,
    views: int,
    shard: int = 1,
    reshard: bool = False,
    defer: bool = False,
    mean: bool = False,
    moments: int = 2,
    batches: int = BATCHES,
) -> StepMemory:
    """Of a forward and backward pass over `views`, the second or a later one of a step: in the first one gradients only come as
    activations go.

    Passing are what a frozen model has before anything is kept, the loss's backward pass, or, for each block from the last to
    the first, less what those behind it held: its `kept_bytes` again if it runs again, its `backward_bytes`, and
    (e + 8 + 4 / s) bytes a parameter of its gradient on the way: unsharded, in float32 while it is reduced, beside the one
    before, and reduced.
    """
    of, shapes = cost.sizes, cost.shapes
    local = of.local(shard)
    dtypes = [part[0].dtype if part else torch.float32 for part in cost.blocks]  # a part without blocks is small
    gathered = sum(dtype.itemsize * size for dtype, size in zip(dtypes, of.parts, strict=True))
    if reshard:
        blocks = [shape.dtype.itemsize * size for shape, size in zip(shapes, of.blocks, strict=True)]
        gathered += sum(sorted(blocks)[-3:]) - sum(blocks)
    kept = activation_bytes(cost, recomputed)
    passing = views * max(cost.loss, cost.before - kept)
    gone = views * cost.errors
    for shape, size, again in reversed(list(zip(shapes, of.blocks, recomputed, strict=True))):
        own = views * ((shape.kept_bytes - shape.input_bytes if again else 0) + shape.backward_bytes)
        passing = max(passing, own + size * (shape.dtype.itemsize + 8) + 4 * size // shard - gone)
        gone += views * (shape.input_bytes if again else shape.kept_bytes)
        gone += 0 if reshard else shape.dtype.itemsize * size
    return StepMemory(
        parameters=4 * local,
        moments=4 * (moments + mean) * local,
        gradients=4 * local + (4 * of.whole if defer else 0),
        gathered=gathered + cost.frozen_bytes,
        inputs=batches * views * cost.inputs,
        activations=views * kept,
        passing=passing,
    )


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, where all smaller ones do, too; 0 if 1 does not, and `ENDLESS` if there is no end to it."""
    above = 1
    while above <= ENDLESS and fits(above):
        above *= 2
    return bisect.bisect_left(range(above), True, key=lambda number: number > 0 and not fits(number)) - 1
