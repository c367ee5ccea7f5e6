"""What encoder, decoder and classifier are made of. Parameters have the official names and shapes.

B views, N tokens, D width, H heads.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, activate_flash_attention_impl, sdpa_kernel
from torch.nn.functional import embedding, interpolate, linear, pad, scaled_dot_product_attention

from model.config import AttentionKernel, Grid, Implementation
from model.pixels import normalise, patches_of

KEPT_TABLES = 4  # of positions; of ViT-g at 64 x 266² one has 65 MB
ALIGNED = 64  # columns; tensor cores read whole 16 bytes, which are 8 values of bf16
DEFAULT = Implementation()
# A fixed order makes the choice, and so the bits of a run, the same from one start to the next. Flash takes every head size
# here (32, 64, 80, 88); fp32 on CUDA takes the second, fp64 there the third.
SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa_backends(kernel: AttentionKernel) -> list[SDPBackend]:
    """The order in which kernels are asked whether they take the tensors; "cudnn" puts cuDNN's first.

    "flash" is torch's own FlashAttention-2. "flash3" has the same order, after `activate_flash_attention_3`. Which is fastest
    on Hopper is not yet measured here; a run tries cuDNN's there (`train/compute/attention.py`).
    """
    return [SDPBackend.CUDNN_ATTENTION, *SDPA_BACKENDS] if kernel == "cudnn" else SDPA_BACKENDS


def product(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, kernel: AttentionKernel = "auto") -> Tensor:
    """Softmax of the scores, times the values: (B, H, n, d), (B, H, N, d) twice -> (B, H, n, d)."""
    with sdpa_kernel(sdpa_backends(kernel), set_priority=True):
        return scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)


def activate_flash_attention_3() -> None:
    """Let the flash backend run FlashAttention-3's kernels from now on, in the whole process. They are for Hopper GPUs.

    Raises ValueError where torch or the machine does not have them.
    """
    if not (torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9):
        raise ValueError('--compute.attention flash3: torch sees no Hopper GPU; take "flash" or "cudnn"')
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"--compute.attention flash3: {error}; install FlashAttention-3 (its module is flash_attn_interface), or "
            'take "flash" or "cudnn"'
        ) from error


class Attention(nn.Module):
    """Self-attention without a mask. Queries and values have a bias; keys have none (softmax would cancel it)."""

    def __init__(self, dim: int, num_heads: int, how: Implementation = DEFAULT) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel = how.attention
        self.product: Callable[[Tensor, Tensor, Tensor], Tensor] = partial(product, kernel=how.attention)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("k_bias", torch.zeros(dim), persistent=False)
        self.k_bias: Tensor
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, queries: slice | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or only the tokens of `queries`."""
        B, N, D = x_BND.shape
        # FSDP2 casts parameters to the compute dtype but not buffers
        bias = torch.cat([self.q_bias, self.k_bias.to(self.q_bias.dtype), self.v_bias])
        qkv = linear(x_BND, self.qkv.weight, bias).view(B, N, 3, self.num_heads, D // self.num_heads)
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if queries is not None:
            q_BHNd = q_BHNd[:, :, queries]
        x_BHNd = self.product(q_BHNd, k_BHNd, v_BHNd)
        return self.proj(x_BHNd.transpose(1, 2).reshape(B, -1, D))


class Mlp(nn.Module):
    """Linear, exact GELU, linear, by timm's names. (Importing timm takes 11 s of CPU at each start, twice what torch does.)"""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class AlignedMlp(Mlp):
    """The same MLP, computed at a hidden width that is a multiple of 64. Parameters keep their official shapes.

    The weights are padded with zeros on the way in, a copy of 4.6 MB a block for ViT-g's decoder in bf16. A hidden value of the
    padding is GELU(0) = 0, so neither output nor gradient has anything of it. ViT-g's 2234 columns are no multiple of 8, which
    keeps a GEMM from loading 16 bytes at once; what that costs is to be measured.
    """

    def forward(self, x: Tensor) -> Tensor:
        more = -self.fc1.weight.shape[0] % ALIGNED
        hidden = self.act(linear(x, pad(self.fc1.weight, (0, 0, 0, more)), pad(self.fc1.bias, (0, more))))
        return linear(hidden, pad(self.fc2.weight, (0, more)), self.fc2.bias)


class Block(nn.Module):
    """Pre-norm transformer block: (B, N, D) -> (B, N, D), or only the tokens of `kept`, which see all the others.

    Stochastic depth is an input: `keep` (B, 2) bool says whose attention and whose MLP count, by 1 / (1 - drop_path), while
    None keeps all as they are. The factor is a buffer without dimensions: a number per block would be compiled into a graph per
    block, of which Dynamo makes eight, and FSDP2 casts inputs of floats to the compute type, but not buffers.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, eps: float = 1e-6, drop_path: float = 0.0, how: Implementation = DEFAULT
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path {drop_path} must be at least 0 and less than 1")
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, how)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = AlignedMlp(dim, mlp_dim) if how.align_mlp and mlp_dim % ALIGNED else Mlp(dim, mlp_dim)
        self.register_buffer("keep_scale", torch.empty(()), persistent=False)
        self.keep_scale: Tensor
        self.reset()

    def reset(self) -> None:
        """Fill the factor (again)."""
        self.keep_scale.fill_(1 / (1 - self.drop_path))

    def forward(self, x_BND: Tensor, kept: slice | None = None, keep: Tensor | None = None) -> Tensor:
        attention_B, mlp_B = (None, None) if keep is None else (keep * self.keep_scale).unbind(1)
        residual = x_BND if kept is None else x_BND[:, kept]
        x_BND = residual + scaled(self.attn(self.norm1(x_BND), kept), attention_B)
        return x_BND + scaled(self.mlp(self.norm2(x_BND)), mlp_B)


def scaled(x: Tensor, factor: Tensor | None) -> Tensor:
    """(B, ...) times (B,), or (B, D) times (B, D), in the factor's float32 and rounded once; None leaves it as it is."""
    if factor is None:
        return x
    return (x * factor.view(*factor.shape, *[1] * (x.dim() - factor.dim()))).to(x.dtype)


class PatchEmbed(nn.Module):
    """Patches (B, n, P) -> (B, n, D): the official Conv3d with kernel = stride, as a product over the patches it is given.

    Embedding only the visible patches saves 1.3 % of ViT-g's forward and 6.4 % of ViT-B's.
    """

    def __init__(self, dim: int, patch_size: int, tubelet_size: int) -> None:
        super().__init__()
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, dim, kernel, kernel)  # holds the parameters; never called

    def forward(self, patches_BnP: Tensor) -> Tensor:
        # channel first in the kernel, fastest in a patch; a copy of 3.3 MB in bf16 for ViT-g
        weight_DP = self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)
        return linear(patches_BnP, weight_DP, self.proj.bias)

    def of_views(self, views_BTHWC: Tensor) -> Tensor:
        """Views (B, T, H, W, 3), uint8 or already normalised floats -> (B, N, D), all patches."""
        s, p, _ = self.proj.kernel_size
        patches_BNP = patches_of(views_BTHWC, p, s)
        if views_BTHWC.dtype == torch.uint8:
            patches_BNP = normalise(patches_BNP)
        return self(patches_BNP.to(self.proj.weight.dtype))


class PositionTable(nn.Module):
    """Fixed sinusoids over the flattened token index; not learned, not in the state dict, float32 in a model of any type.

    As the official code: angle(n, j) = n / 10000^(2 * floor(j / 2) / D), sine for even channels and cosine for odd ones,
    built in float64 and stored in float32. A model whose `grid` is not the one it was pre-trained on has the table of that one,
    `built_for`, interpolated: as an image in space, along the line in time.
    """

    def __init__(self, grid: Grid, dim: int, built_for: Grid | None = None) -> None:
        """Both are (T', rows, columns)."""
        super().__init__()
        self.grid, self.built_for = grid, built_for or grid
        self.register_buffer("table", torch.empty(math.prod(grid), dim), persistent=False)
        self.table: Tensor
        self.others: dict[tuple[Grid, torch.device], Tensor] = {}  # interpolated tables, the oldest first

    def reset(self) -> None:
        """Fill the table (again), unless it is on the meta device."""
        if not self.table.is_meta:
            self.table.copy_(interpolated(sinusoids(math.prod(self.built_for), self.table.shape[1]), self.built_for, self.grid))

    def forward(self, index_Bn: Tensor, dtype: torch.dtype) -> Tensor:
        """Token indices (B, n) int64 -> (B, n, D) in `dtype`."""
        return embedding(index_Bn, self.table).to(dtype)

    def at(self, grid: Grid) -> Tensor:
        """The table interpolated to another grid -> (N, D) float32. The last few are kept; in a compiled or exported graph the
        interpolation is a part of it."""
        if same(grid, self.grid):
            return self.table
        if torch.compiler.is_compiling():
            return interpolated(self.table, self.grid, grid)
        key = grid, self.table.device  # replicas of DataParallel share the dictionary
        if key not in self.others:
            if len(self.others) >= KEPT_TABLES:
                del self.others[next(iter(self.others))]
            with torch.inference_mode(False), torch.no_grad():  # it may be of use to a training step, too
                self.others[key] = interpolated(self.table, self.grid, grid)
        return self.others[key]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """To another device, or of the model to another type."""
        super()._apply(fn, recurse)
        self.others.clear()
        if self.table.dtype != torch.float32:
            self.table = self.table.float()
            self.reset()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"others": {}}


def sinusoids(num_tokens: int, dim: int) -> Tensor:
    """(N, D) float32: see `PositionTable`."""
    angle = np.arange(num_tokens)[:, None] / np.power(10000.0, 2 * (np.arange(dim) // 2) / dim)
    angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
    return torch.from_numpy(angle.astype(np.float32))


def interpolated(table_ND: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """A table (N, D) of one grid at the tokens of another one: bicubic within a frame, then linear in time, both with
    align_corners False; computed in float64. Its own grid gives it back bit for bit."""
    T, rows, columns = grid
    new_T, new_rows, new_columns = new_grid
    x = table_ND.double().view(T, rows, columns, -1)
    if not same((new_rows, new_columns), (rows, columns)):
        x_TDHW = interpolate(x.permute(0, 3, 1, 2), (new_rows, new_columns), mode="bicubic", align_corners=False)
        x = x_TDHW.permute(0, 2, 3, 1)
    if not same((new_T,), (T,)):
        x_HDT = interpolate(x.permute(1, 2, 3, 0).flatten(0, 1), new_T, mode="linear", align_corners=False)
        x = x_HDT.permute(2, 0, 1)
    return x.reshape(new_T * new_rows * new_columns, -1).to(table_ND.dtype)


def same(sizes: Iterable[int], others: Iterable[int]) -> bool:
    """False also for sizes that an exported graph leaves open: it must not hang on whether they are equal."""
    if not torch.compiler.is_compiling():
        return tuple(sizes) == tuple(others)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # heavy, but for a graph

    return all(statically_known_true(size == other) for size, other in zip(sizes, others, strict=True))


def reset_buffers(model: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds; call it after `to_empty` on a model built on meta."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.k_bias.zero_()
        elif isinstance(module, PositionTable | Block):
            module.reset()
