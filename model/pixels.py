"""Pixels of uint8 views -> normalised patches and targets, in plain PyTorch: what the kernels are measured against.

B views, T frames, N tokens (t-major, then row, column), V visible tokens, L loss tokens, P values of a patch (tubelet
frame, row, column, channel: channel fastest).
"""

import torch
from einops import rearrange
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


TARGET_EPS = 1e-6  # added to the standard deviation, not to the variance


CACHED_TOKENS = 64  # of a CPU core's cache: 0.4 MB of float32


def token_bytes(num_visible: int, num_targets: int, patch_values: int, dtype: torch.dtype) -> int:
    """Bytes that one view's patches and targets take at least: every needed pixel and index read, every result written, once.

    ViT-g (208, 920, 1176) in bf16: 6.15 MB a view, of which targets 4.33. Divided by the memory's bandwidth it is the least
    time the operation can take: 128 views in 0.16 ms at an H200's 4.8 TB/s.
    """
    read = (num_visible + num_targets) * (patch_values + 8)
    return read + (num_visible * dtype.itemsize + num_targets * max(4, dtype.itemsize)) * patch_values


@torch.no_grad()
def patches_and_targets(
    views_BTHWC: Tensor, visible_idx: Tensor, target_idx: Tensor, patch_size: int, tubelet_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Views (B, T, H, W, 3) uint8, token indices (B, V) and (B, L) int64 -> patches (B, V, P) in `dtype`, the encoder's
    input, and targets (B, L, P) in float32 (float64 when `dtype` is), the decoder's.
    """
    V = visible_idx.shape[1]
    patches_u8 = gather_patches(views_BTHWC, torch.cat([visible_idx, target_idx], 1), patch_size, tubelet_size)
    target_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return normalise(patches_u8[:, :V]).to(dtype), pixel_targets(patches_u8[:, V:], target_dtype)


def gather_patches(views_BTHWC: Tensor, idx_Bn: Tensor, patch_size: int, tubelet_size: int) -> Tensor:
    """Views (B, T, H, W, 3) uint8, contiguous; token indices (B, n) int64 -> patches (B, n, P) uint8.

    Copies the pixel rows of the patches (48 bytes for patch 16) and touches nothing else. ViT-B's 864 patches of 8 views on
    two cores: 2.6 ms; a strided view with advanced indices 20 ms, on int64 words 11 ms; rearranging all, then gathering 15 ms.
    Reading the rows as wider integers gained 6 % and was left out.
    """
    B, T, H, W, C = views_BTHWC.shape
    row_bytes = patch_size * C
    rows, columns = H // patch_size, W // patch_size
    assert H % patch_size == 0 and W % patch_size == 0 and T % tubelet_size == 0, (views_BTHWC.shape, patch_size)
    # pixel rows of the batch, numbered by (view, frame, y, column of patches); the first one of each patch, then the others
    device = idx_Bn.device
    view = torch.arange(B, device=device)[:, None]
    time = idx_Bn // (rows * columns)
    row = idx_Bn // columns % rows
    first_Bn = ((view * T + time * tubelet_size) * H + row * patch_size) * columns + idx_Bn % columns
    frame = torch.arange(tubelet_size, device=device)[:, None] * H
    offset = ((frame + torch.arange(patch_size, device=device)) * columns).flatten()
    pixel_rows = views_BTHWC.view(-1, row_bytes).index_select(0, (first_Bn[..., None] + offset).flatten())
    return pixel_rows.view(*idx_Bn.shape, tubelet_size * patch_size * row_bytes)


def patches_of(views_BTHWC: Tensor, patch_size: int, tubelet_size: int) -> Tensor:
    """All patches of views, (B, T, H, W, 3) -> (B, N, P), of any type."""
    return rearrange(views_BTHWC, "b (t s) (h p) (w q) c -> b (t h w) (s p q c)", s=tubelet_size, p=patch_size, q=patch_size)


def normalise(u8: Tensor) -> Tensor:
    """Levels, uint8 (..., 3 n), channel fastest -> float32 of the same shape, bit for bit the official loader's values. If they
    are float32 already, in their place.

    Its order of operations: / 255, - mean, / std. The divisors are tensors because CUDA replaces division by a Python
    number by multiplication with its reciprocal; they are filled on the device, which does not wait for the host.
    """
    x = u8.float().div_(torch.full((), 255.0, device=u8.device))
    return x.sub_(per_channel(IMAGENET_MEAN, x)).div_(per_channel(IMAGENET_STD, x))


def pixel_targets(u8: Tensor, dtype: torch.dtype) -> Tensor:
    """Patches (..., P) uint8 -> targets (..., P) in `dtype`: pixels normalised per token and per channel.

    (x - mean) / (std + 1e-6) over the P / 3 pixels, with the unbiased deviation. x is what the official code computes from
    its normalised clip: in patches of low contrast the rounding of these steps is part of the target. float32 is within
    1e-5 of float64, patches of four grey levels included.
    """
    targets = torch.empty(u8.shape, dtype=dtype, device=u8.device)
    tokens = u8[..., 0].numel()
    # a CPU does all the steps on a few tokens while they are in its cache: 56 ms of CPU time for 704 targets of 8 views of
    # ViT-B, 82 to 98 on all at once
    piece = CACHED_TOKENS if u8.device.type == "cpu" and not torch.compiler.is_compiling() else tokens
    u8_nP, targets_nP = u8.reshape(tokens, -1), targets.view(tokens, -1)
    for part, x in zip(u8_nP.split(piece), targets_nP.split(piece), strict=True):
        into_targets_(x.copy_(normalise(part)))
    return targets


def into_targets_(x: Tensor) -> Tensor:
    """Normalised patches (..., P) -> their targets, in place."""
    x.mul_(per_channel(IMAGENET_STD, x)).add_(per_channel(IMAGENET_MEAN, x))
    pixels = x.unflatten(-1, (-1, 3))
    pixels.sub_(pixels.mean(-2, keepdim=True))
    # a square and a sum: torch.var_mean takes twice the time
    variance = pixels.square().sum(-2, keepdim=True).div_(pixels.shape[-2] - 1)
    pixels.div_(variance.sqrt_().add_(TARGET_EPS))
    return x


def pasted(patches_BNP: Tensor, hidden_idx: Tensor, prediction_BKP: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """All patches of views (B, N, P) uint8, the hidden tokens' indices (B, K) int64, and what was predicted of their normalised
    pixels -> (reconstruction, seen), both (B, N, P) in [0, 1], in the predictions' type and at least float32.

    The official picture: a visible patch is as it was; a hidden one has the mean and the deviation, per channel, of the *true*
    patch, and only what is left between them was predicted. So it is not clamped, and without any learning (a prediction of 0)
    it has the true mean. Of `seen` every hidden pixel is `fill`.
    """
    dtype = torch.promote_types(prediction_BKP.dtype, torch.float32)
    pixels = patches_BNP.to(dtype) / 255
    where = hidden_idx[..., None].expand(-1, -1, pixels.shape[-1])
    true = pixels.gather(1, where).unflatten(-1, (-1, 3))
    deviation = true.std(-2, keepdim=True) + TARGET_EPS  # unbiased
    filled = prediction_BKP.to(dtype).unflatten(-1, (-1, 3)) * deviation + true.mean(-2, keepdim=True)
    return pixels.scatter(1, where, filled.flatten(-2)), pixels.scatter(1, where, fill)


def per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Three numbers -> (n,), repeated along the last dimension of `like`: float32 values, as the official code's, in its dtype.

    A constant as long as a patch keeps the arithmetic on whole vectors.
    """
    constant = torch.stack([torch.full((), v, dtype=torch.float32, device=like.device) for v in values])
    return constant.to(like.dtype).tile(like.shape[-1] // 3)
