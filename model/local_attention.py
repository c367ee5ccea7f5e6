"""Attention of a sequence of features in time, and the block around it (ActionFormer, Zhang et al., ECCV 2022, section 3.2).

B videos, T steps, C width, H heads, d width of a head. A mask (B, T) says which steps are the video's; the others are zeros.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from model.layers import scaled

RUN = 32  # queries that share their keys: 50 keys of a window of 19, where each alone would have 19 copied


class MaskedConv(nn.Module):
    """A convolution in time that leaves what is no step of the video at zero. (B, T, C), (B, T) -> the same, T / stride."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim_in, dim_out, kernel, stride, kernel // 2, groups=groups, bias=bias)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        x_BTC = self.conv(x_BTC.transpose(1, 2)).transpose(1, 2)
        mask_BT = mask_BT[:, :: self.conv.stride[0]]
        return x_BTC * mask_BT[..., None], mask_BT


def attend(q_BHTd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, mask_BT: Tensor, window: int) -> Tensor:
    """Each step sees the video's steps of the window around it, or all of them for window -1 -> (B, H, T, d). What comes out
    for steps that are none is finite, and means nothing.

    Memory is that of T x (RUN + window) scores, not of T²: an hour of features at stride 4 has 27,000 steps.
    """
    if window == -1:
        return scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, attn_mask=mask_BT[:, None, None])
    half, T = window // 2, q_BHTd.shape[2]
    more = -T % RUN
    seen = RUN + 2 * half  # K: keys of a run of queries
    q_nHRd = pad(q_BHTd, (0, 0, 0, more)).unflatten(2, (-1, RUN)).transpose(1, 2).flatten(0, 1)
    around = [pad(x, (0, 0, half, half + more)).unfold(2, seen, RUN) for x in (k_BHTd, v_BHTd)]
    k_nHKd, v_nHKd = (x.permute(0, 2, 1, 4, 3).flatten(0, 1) for x in around)
    there_nK = pad(mask_BT, (half, half + more)).unfold(1, seen, RUN).flatten(0, 1)
    place = torch.arange(seen, device=mask_BT.device) - torch.arange(RUN, device=mask_BT.device)[:, None]
    near_RK, own_RK = (place >= 0) & (place <= 2 * half), place == half
    mask_nRK = (there_nK[:, None] & near_RK) | own_RK  # a row that sees nothing would be NaN
    x_nHRd = scaled_dot_product_attention(q_nHRd, k_nHKd, v_nHKd, attn_mask=mask_nRK[:, None])
    return x_nHRd.unflatten(0, (len(mask_BT), -1)).transpose(1, 2).flatten(2, 3)[:, :, :T]


class LocalAttention(nn.Module):
    """Queries, keys and values are made by a depthwise convolution, a norm and a product each; with a stride there are fewer of
    all three."""

    def __init__(self, dim: int, num_heads: int, window: int, stride: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        for name in ("query", "key", "value"):
            self.add_module(f"{name}_conv", MaskedConv(dim, dim, stride=stride, groups=dim, bias=False))
            self.add_module(f"{name}_norm", nn.LayerNorm(dim))
            self.add_module(name, nn.Linear(dim, dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        heads, kept_BT = [], mask_BT
        for name in ("query", "key", "value"):
            made_BTC, kept_BT = self.get_submodule(f"{name}_conv")(x_BTC, mask_BT)
            made_BTC = self.get_submodule(name)(self.get_submodule(f"{name}_norm")(made_BTC))
            heads.append(made_BTC.unflatten(2, (self.num_heads, -1)).transpose(1, 2))
        x_BHTd = attend(heads[0], heads[1], heads[2], kept_BT, self.window)
        return self.proj(x_BHTd.transpose(1, 2).flatten(2)) * kept_BT[..., None], kept_BT


class BranchScale(nn.Module):
    """A factor for each feature of a residual branch, which begins near nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class TimeBlock(nn.Module):
    """Pre-norm transformer block; with stride 2 of half the steps, beside which a maximum over three carries on what was.

    Stochastic depth is an input, as in `layers.Block`: `keep` (B, 2) bool says whose attention and whose MLP count.
    """

    def __init__(self, dim: int, num_heads: int, window: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = LocalAttention(dim, num_heads, window, stride)
        self.pool = nn.MaxPool1d(stride + 1, stride, (stride + 1) // 2) if stride > 1 else nn.Identity()
        # the places of the original, which has dropout at 2 and 4
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Identity(), nn.Linear(4 * dim, dim))
        self.drop_path_attn, self.drop_path_mlp = BranchScale(dim), BranchScale(dim)
        self.register_buffer("keep_scale", torch.empty(()), persistent=False)
        self.keep_scale: Tensor
        self.reset()

    def reset(self) -> None:
        """Fill the factor of what is kept (again)."""
        self.keep_scale.fill_(1 / (1 - self.drop_path))

    def forward(self, x_BTC: Tensor, mask_BT: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        attention_B, mlp_B = (None, None) if keep is None else (keep * self.keep_scale).unbind(1)
        seen_BTC, kept_BT = self.attn(self.ln1(x_BTC), mask_BT)
        there = kept_BT[..., None]
        carried_BTC = self.pool(x_BTC.transpose(1, 2)).transpose(1, 2) * there
        x_BTC = carried_BTC + scaled(self.drop_path_attn(seen_BTC), attention_B)
        return x_BTC + scaled(self.drop_path_mlp(self.mlp(self.ln2(x_BTC)) * there), mlp_B), kept_BT
