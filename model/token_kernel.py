"""uint8 views -> patches and targets in one kernel: every needed byte is read once, every result written once. Needs Triton.

`patches.py` has the plain reference and chooses between the two; only it imports this module, and only when asked.

B views, T frames, V visible tokens, L loss tokens, P values of a patch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.pixels import IMAGENET_MEAN, IMAGENET_STD, TARGET_EPS

# What the launch needs besides its arguments. Without fused multiply-adds every operation rounds by itself. 8 and 16 values a
# thread: 80 registers for P = 1536, nothing spilled (sm_90, read from the compiled kernel; its speed is not yet measured).
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


def patches_and_targets(
    views_BTHWC: Tensor, visible_idx: Tensor, target_idx: Tensor, patch_size: int, tubelet_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `patches_and_targets`, whose values it gives: patches bit for bit, targets within 1e-5 (another order
    of summation). `dtype` is float32, bfloat16 or float16; targets are float32. Waits for nothing.
    """
    assert views_BTHWC.is_contiguous() and visible_idx.stride(1) == target_idx.stride(1) == 1
    assert dtype in (torch.float32, torch.bfloat16, torch.float16), dtype
    B, T, H, W, _ = views_BTHWC.shape
    V, L = visible_idx.shape[1], target_idx.shape[1]
    constants = kernel_constants(V, L, T, H, W, patch_size, tubelet_size)
    num_values = 3 * tubelet_size * patch_size**2
    patches = torch.empty(B, V, num_values, dtype=dtype, device=views_BTHWC.device)
    targets = torch.empty(B, L, num_values, dtype=torch.float32, device=views_BTHWC.device)
    pointers = views_BTHWC, visible_idx, target_idx, patches, targets
    tokens_kernel[B * (V + L),](*pointers, visible_idx.stride(0), target_idx.stride(0), **constants, **LAUNCH)
    return patches, targets


def kernel_constants(V: int, L: int, T: int, H: int, W: int, patch_size: int, tubelet_size: int) -> dict[str, float]:
    """What the kernel is compiled for."""
    block = triton.next_power_of_2(3 * tubelet_size * patch_size**2)
    sizes = {"V": V, "L": L, "T": T, "H": H, "W": W, "P_SIDE": patch_size, "TUBELET": tubelet_size, "BLOCK": block}
    mean = {f"MEAN_{c}": value for c, value in zip("RGB", IMAGENET_MEAN, strict=True)}
    std = {f"STD_{c}": value for c, value in zip("RGB", IMAGENET_STD, strict=True)}
    return {**sizes, **mean, **std, "EPS": TARGET_EPS}


@triton.jit
def tokens_kernel(  # type: ignore[no-untyped-def]
    views,  # uint8 (B, T, H, W, 3)
    visible,  # int64, row of a view: visible_stride
    target,  # int64, row of a view: target_stride
    patches,  # (B, V, P)
    targets,  # float32 (B, L, P)
    visible_stride,
    target_stride,
    V: tl.constexpr,
    L: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P_SIDE: tl.constexpr,
    TUBELET: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of two that holds a patch
    MEAN_R: tl.constexpr,
    MEAN_G: tl.constexpr,
    MEAN_B: tl.constexpr,
    STD_R: tl.constexpr,
    STD_G: tl.constexpr,
    STD_B: tl.constexpr,
    EPS: tl.constexpr,
):
    """One program a token: first the V visible ones of a view, then its L of the loss.

    Every operation rounds as the official code's: divisions and roots are the exact ones, and the caller turns fused
    multiply-adds off. A patch lies flat, channel fastest, so that loads and stores run along memory.
    """
    ROW: tl.constexpr = 3 * P_SIDE
    P: tl.constexpr = TUBELET * P_SIDE * ROW
    PIXELS: tl.constexpr = TUBELET * P_SIDE * P_SIDE
    COLUMNS: tl.constexpr = W // P_SIDE
    AREA: tl.constexpr = (H // P_SIDE) * COLUMNS

    program = tl.program_id(0).to(tl.int64)  # batches of over 2 GB: all offsets are 64 bits wide
    view = program // (V + L)
    n = program % (V + L)
    if n < V:
        token = tl.load(visible + view * visible_stride + n)
    else:
        token = tl.load(target + view * target_stride + (n - V))
    first = ((view * T + token // AREA * TUBELET) * H + token % AREA // COLUMNS * P_SIDE) * (W * 3) + token % COLUMNS * ROW

    value = tl.arange(0, BLOCK)
    inside = value < P
    line = value // ROW
    offset = (line // P_SIDE * H + line % P_SIDE) * (W * 3) + value % ROW
    channel = value % 3
    mean = tl.where(channel == 0, MEAN_R, tl.where(channel == 1, MEAN_G, MEAN_B))
    std = tl.where(channel == 0, STD_R, tl.where(channel == 1, STD_G, STD_B))
    u8 = tl.load(views + first + offset, mask=inside, other=0)
    x = tl.div_rn(tl.div_rn(u8.to(tl.float32), 255.0) - mean, std)

    if n < V:
        tl.store(patches + (view * V + n) * P + value, x.to(patches.dtype.element_ty), mask=inside)
    else:
        x = x * std + mean
        of_token = tl.zeros([BLOCK], tl.float32)
        x = tl.where(inside, x, 0.0)
        for c in tl.static_range(3):
            sum_of_channel = tl.sum(tl.where(channel == c, x, 0.0))
            of_token = tl.where(channel == c, tl.div_rn(sum_of_channel, PIXELS * 1.0), of_token)
        x = tl.where(inside, x - of_token, 0.0)
        square = x * x
        for c in tl.static_range(3):
            variance = tl.div_rn(tl.sum(tl.where(channel == c, square, 0.0)), PIXELS - 1.0)
            of_token = tl.where(channel == c, tl.sqrt_rn(variance) + EPS, of_token)
        tl.store(targets + (view * L + n - V) * P + value, tl.div_rn(x, of_token), mask=inside)
