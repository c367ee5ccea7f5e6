"""What encoder, decoder and classifier are made of. Parameters have the official names and shapes.

B views, N tokens, D width, H heads.
"""

import numpy as np
import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, linear, scaled_dot_product_attention

LAYER_NORM_EPS = 1e-6  # everywhere, as the official code

# A fixed order makes the choice, and so the bits of a run, the same from one start to the next. Flash takes every head size
# here (32, 64, 80, 88); fp32 on CUDA takes the second, fp64 there the third.
SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Attention(nn.Module):
    """Self-attention without a mask. Queries and values have a bias; keys have none (softmax would cancel it)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("k_bias", torch.zeros(dim), persistent=False)
        self.k_bias: Tensor
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        # FSDP2 casts parameters to the compute dtype but not buffers
        bias = torch.cat([self.q_bias, self.k_bias.to(self.q_bias.dtype), self.v_bias])
        qkv = linear(x_BND, self.qkv.weight, bias).view(B, N, 3, self.num_heads, D // self.num_heads)
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        with sdpa_kernel(SDPA_BACKENDS, set_priority=True):
            x_BHNd = scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        return self.proj(x_BHNd.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Pre-norm transformer block: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, mlp_dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND)))
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))


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


class PositionTable(nn.Module):
    """Fixed sinusoids over the flattened token index; not learned, not in the state dict.

    As the official code: angle(n, j) = n / 10000^(2 * floor(j / 2) / D), sine for even channels and cosine for odd ones,
    built in float64 and stored in float32.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty(num_tokens, dim), persistent=False)
        self.table: Tensor

    def reset(self) -> None:
        """Fill the table (again), unless it is on the meta device."""
        if self.table.is_meta:
            return
        num_tokens, dim = self.table.shape
        angle = np.arange(num_tokens)[:, None] / np.power(10000.0, 2 * (np.arange(dim) // 2) / dim)
        angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
        self.table.copy_(torch.from_numpy(angle.astype(np.float32)))

    def forward(self, index_Bn: Tensor, dtype: torch.dtype) -> Tensor:
        """Token indices (B, n) int64 -> (B, n, D) in `dtype`."""
        return embedding(index_Bn, self.table).to(dtype)


def reset_buffers(model: nn.Module) -> None:
    """Compute every non-persistent buffer of `model` anew: needed after `to_empty` on a model built on meta."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.k_bias.zero_()
        elif isinstance(module, PositionTable):
            module.reset()
