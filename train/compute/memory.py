"""What a training step holds in memory, in closed form: activations from the shapes, state from the parameters.

Counted are tensors. Not counted: the CUDA context, NCCL's buffers, workspaces of kernels and what the allocator loses between
tensors; `HEADROOM` of a card is left for them.

B views, N tokens of a block, D its width, M its MLP's hidden width, H its heads, e bytes of a value in the compute type.
V visible, K decoded and L loss tokens, P values of a patch.
"""

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import torch

from model.config import ModelConfig
from model.flops import block_mac, executed_gmac
from model.videomae import VideoMAE
from pipeline.sampling.masking import TokenCounts
from train.compute.precision import Precision

GIB = 2**30
HEADROOM = 0.1  # share of a card that a plan leaves free: our choice, not a measurement
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

    @property
    def input_bytes(self) -> int:
        """e N D: all that a block keeps whose backward pass runs its forward again."""
        return self.dtype.itemsize * self.tokens * self.dim

    @property
    def kept_bytes(self) -> int:
        """N (5 e D + 8) + Q (e (3 D + 2 M) + 4 H + 8): of all tokens input, first norm's output, q, k, v; of those that leave
        attention's output, the stream between the branches, second norm's output, the MLP before and after GELU; attention's
        log-sum-exp and the norms' statistics in float32.

        torch.compile keeps the same: what a matrix product's backward reads is not computed again.
        """
        e = self.dtype.itemsize
        of_all = self.tokens * (5 * e * self.dim + 2 * STATISTIC)
        return of_all + self.queries * (e * (3 * self.dim + 2 * self.mlp_dim) + 4 * self.heads + 2 * STATISTIC)

    @property
    def recomputed_mac(self) -> int:
        """Of the block's forward pass run again: all but the last product (Q D M), of which nothing is kept."""
        return block_mac(self.tokens, self.dim, self.mlp_dim, self.queries) - self.queries * self.dim * self.mlp_dim

    @property
    def backward_bytes(self) -> int:
        """e N (M + 2 D): gradients alive at the widest place of the backward pass, of GELU's output and of the stream."""
        return self.dtype.itemsize * self.tokens * (self.mlp_dim + 2 * self.dim)


def block_shapes(config: ModelConfig, tokens: TokenCounts, precision: Precision) -> list[BlockShape]:
    """Every block in forward order: the encoder's, then the decoder's."""
    V, N = tokens.visible, tokens.visible + tokens.decoded
    encoder = BlockShape(V, V, config.encoder_dim, config.encoder_mlp_dim, config.encoder_heads, precision.encoder)
    decoder = BlockShape(N, N, config.decoder_dim, config.decoder_mlp_dim, config.decoder_heads, precision.decoder)
    last = replace(decoder, queries=tokens.loss)
    return [encoder] * config.encoder_depth + [decoder] * (config.decoder_depth - 1) + [last]


def activation_bytes(
    config: ModelConfig, tokens: TokenCounts, precision: Precision, recomputed: Sequence[bool] | None = None
) -> int:
    """What the forward pass of one view keeps for the backward pass; `recomputed` says of which blocks only the input.

    The blocks' `kept_bytes` or `input_bytes`, and outside them, with e for the encoder and e' for the decoder of width D',
    e V (P + D) + e' V D: patches, the stream into the encoder's norm, the latent; 2 e' L D': the stream into the
    decoder's norm, its output; float32 statistics of the two; 4 L (P + 1): errors and their weights, always float32.
    """
    blocks = block_shapes(config, tokens, precision)
    recomputed = recomputed or [False] * len(blocks)
    inside = sum(b.input_bytes if again else b.kept_bytes for b, again in zip(blocks, recomputed, strict=True))
    V, L = tokens.visible, tokens.loss
    e, e2 = precision.encoder.itemsize, precision.decoder.itemsize
    encoder_ends = e * V * (config.patch_values + config.encoder_dim) + e2 * V * config.encoder_dim
    decoder_ends = e2 * 2 * L * config.decoder_dim
    return inside + encoder_ends + decoder_ends + 2 * STATISTIC * (V + L) + 4 * L * (config.patch_values + 1)


def recomputed_share(config: ModelConfig, tokens: TokenCounts, precision: Precision, recomputed: Sequence[bool]) -> float:
    """FLOPs done twice by those of a training step without any: 3 forward passes."""
    blocks = block_shapes(config, tokens, precision)
    again = sum(block.recomputed_mac for block, chosen in zip(blocks, recomputed, strict=True) if chosen)
    return again / (3e9 * executed_gmac(config, tokens.visible, tokens.decoded, tokens.loss))


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterSizes:
    """Of a model's parameters."""

    shapes: tuple[tuple[int, ...], ...]
    """Of each."""
    encoder: int
    """Their number in the encoder."""
    blocks: tuple[int, ...]
    """Their number in each block, in forward order."""

    @property
    def whole(self) -> int:
        """Their number."""
        return sum(math.prod(shape) for shape in self.shapes)

    def local(self, shard: int) -> int:
        """Their number on a rank with the longest shard: rows divided and rounded up, tensor by tensor."""
        return sum(math.ceil(shape[0] / shard) * math.prod(shape[1:]) for shape in self.shapes)


@functools.cache
def parameter_sizes(config: ModelConfig) -> ParameterSizes:
    """Of the model, which is built without values."""
    with torch.device("meta"):
        model = VideoMAE(config)
    return ParameterSizes(
        shapes=tuple(tuple(parameter.shape) for parameter in model.parameters()),
        encoder=sum(parameter.numel() for parameter in model.encoder.parameters()),
        blocks=tuple(sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes on one rank, of p parameters shared by s ranks; what a step needs at its fullest moment."""

    parameters: int
    """4 p / s: master weights in float32. A shard is as long as the longest: each tensor's rows are divided, rounded up."""
    moments: int
    """8 p / s: AdamW's two, in float32."""
    gradients: int
    """4 p / s in float32; with deferred exchange 4 p besides, each rank's own sum."""
    gathered: int
    """e p: the weights in the compute type; resharded, those outside the blocks and of the three largest blocks: the one that
    computes, the next, and the buffer it was gathered in."""
    inputs: int
    """Two batches of uint8 views."""
    activations: int
    """`activation_bytes` of every view."""
    passing: int
    """What comes and goes: the most that is ever alive beyond the sum of the above."""

    @property
    def total(self) -> int:
        return sum(astuple(self))


def step_memory(
    config: ModelConfig,
    tokens: TokenCounts,
    precision: Precision,
    recomputed: Sequence[bool],
    *,
    views: int,
    shard: int = 1,
    reshard: bool = False,
    defer: bool = False,
) -> StepMemory:
    """Of a forward and backward pass over `views`, the second or a later one of a step: in the first one gradients only come as
    activations go.

    Passing are the loss's backward pass, 16 L P bytes a view (four float32 copies of the targets), or, for each block from the
    last to the first, less what those behind it held: its `kept_bytes` again if it runs again, its `backward_bytes`, and
    (e + 8 + 4 / s) bytes a parameter of its gradient on the way: unsharded, in float32 while it is reduced, beside the one
    before, and reduced.
    """
    of, shapes = parameter_sizes(config), block_shapes(config, tokens, precision)
    local = of.local(shard)
    gathered = precision.encoder.itemsize * of.encoder + precision.decoder.itemsize * (of.whole - of.encoder)
    if reshard:
        blocks = [shape.dtype.itemsize * size for shape, size in zip(shapes, of.blocks, strict=True)]
        gathered += sum(sorted(blocks)[-3:]) - sum(blocks)
    passing = 16 * views * tokens.loss * config.patch_values
    gone = views * 4 * tokens.loss * (config.patch_values + 1)
    for shape, size, again in reversed(list(zip(shapes, of.blocks, recomputed, strict=True))):
        own = views * ((shape.kept_bytes - shape.input_bytes if again else 0) + shape.backward_bytes)
        passing = max(passing, own + size * (shape.dtype.itemsize + 8) + 4 * size // shard - gone)
        gone += views * (shape.input_bytes if again else shape.kept_bytes)
        gone += 0 if reshard else shape.dtype.itemsize * size
    return StepMemory(
        parameters=4 * local,
        moments=8 * local,
        gradients=4 * local + (4 * of.whole if defer else 0),
        gathered=gathered,
        inputs=2 * views * config.num_frames * config.input_size**2 * 3,
        activations=views * activation_bytes(config, tokens, precision, recomputed),
        passing=passing,
    )


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, where all smaller ones do, too; 0 if 1 does not."""
    above = 1
    while fits(above):
        above *= 2
    return bisect.bisect_left(range(above), True, key=lambda number: number > 0 and not fits(number)) - 1
