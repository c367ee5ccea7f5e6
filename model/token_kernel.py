"""uint8 views -> patches and targets in one kernel: every needed byte is read once, every result written once. Needs Triton.

`patches.py` has the plain reference and chooses between the two; only it imports this module, and only when asked.

B views, T frames, V visible tokens, L loss tokens, P values of a patch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.pixels import IMAGENET_MEAN, IMAGENET_STD, TARGET_EPS

# What the launch needs besides its arguments. Without fused multiply-adds every operation rounds by itself. One warp a token
# has the fewest instructions and no barrier. Its SASS (sm_90, bf16, Triton 3.9) for ViT-g and ViT-B, no spills:
#   warps of a token            1              2              4
#   instructions, all warps     1,824  1,528   2,448  2,016   3,520  2,976   (before, flat and with divisions: 10,304)
#   registers of a thread       72     90      48     48      32     32      (80)
# At 60 % of the issue rate 128 views of ViT-g take 0.4 ms with one warp (the old kernel: 2; the memory: 0.17). On a GPU neither
# that nor the choice has been measured; 2 warps are the other candidate.
LAUNCH = {"num_warps": 1, "enable_fp_fusion": False}


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
    block = triton.next_power_of_2(triton.cdiv(tubelet_size * patch_size**2, 4))
    sizes = {"V": V, "L": L, "T": T, "H": H, "W": W, "P_SIDE": patch_size, "TUBELET": tubelet_size, "BLOCK": block}
    mean = {f"MEAN_{c}": value for c, value in zip("RGB", IMAGENET_MEAN, strict=True)}
    std = {f"STD_{c}": value for c, value in zip("RGB", IMAGENET_STD, strict=True)}
    return {**sizes, **mean, **std, "EPS": TARGET_EPS}


@triton.jit
def divided(x, by, inverse):  # type: ignore[no-untyped-def]
    """x / by, rounded as the division itself; `inverse` is 1 / by, rounded (Markstein: a product and a correction).

    Three instructions instead of some ten and a branch. A table of the 3 x 256 normalised values would take one load a value,
    and the lanes of a warp meet in up to 24 lines of it.
    """
    q = x * inverse
    return tl.fma(tl.fma(-q, by, x), inverse, q)


@triton.jit
def loaded(start, value, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr, P_SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values of a patch, by their numbers, whose first one lies at `start` -> uint8."""
    ROW: tl.constexpr = 3 * P_SIDE
    line = value // ROW
    offset = (line // P_SIDE * H + line % P_SIDE) * (W * 3) + value % ROW
    return tl.load(start + offset, mask=value < P, other=0)


@triton.jit
def picked(first, second, third, which):  # type: ignore[no-untyped-def]
    """Of three tensors, by 0, 1 or 2."""
    return tl.where(which == 0, first, tl.where(which == 1, second, third))


@triton.jit
def normalised(u8, MEAN: tl.constexpr, STD: tl.constexpr):  # type: ignore[no-untyped-def]
    return divided(divided(u8.to(tl.float32), 255.0, 1 / 255) - MEAN, STD, 1 / STD)


@triton.jit
def into_target(x, inside, MEAN: tl.constexpr, STD: tl.constexpr, PIXELS: tl.constexpr, EPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One channel of a token, normalised -> its target."""
    x = tl.where(inside, x * STD + MEAN, 0.0)
    x = tl.where(inside, x - divided(tl.sum(x), PIXELS * 1.0, 1 / PIXELS), 0.0)
    deviation = tl.sqrt_rn(divided(tl.sum(x * x), PIXELS - 1.0, 1 / (PIXELS - 1))) + EPS
    return divided(x, deviation, tl.div_rn(1.0, deviation))


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
    BLOCK: tl.constexpr,  # the power of two that holds a patch's twelves
    MEAN_R: tl.constexpr,
    MEAN_G: tl.constexpr,
    MEAN_B: tl.constexpr,
    STD_R: tl.constexpr,
    STD_G: tl.constexpr,
    STD_B: tl.constexpr,
    EPS: tl.constexpr,
):
    """One program a token: first the V visible ones of a view, then its L of the loss.

    Every operation rounds as the official code's: quotients and roots are the exact ones, and the caller turns fused
    multiply-adds off. A patch lies flat, channel fastest; 12 of its values are 4 pixels. In three tensors of (BLOCK, 4) the
    channel hangs on the column alone, and a thread holds a row's four: that compiles to moves between registers, or to
    nothing, where picking by the channel of a flat index took a third of all instructions.
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

    start = views + first
    at_0 = 12 * tl.arange(0, BLOCK)[:, None] + tl.arange(0, 4)[None, :]
    at_4, at_8 = at_0 + 4, at_0 + 8
    column = tl.arange(0, 4)[None, :]
    # value at_4i of a column has channel i + column modulo 3, so channel c is in tensor c - column, which is c + 2 column
    of_0, of_1, of_2 = 2 * column % 3, (2 * column + 1) % 3, (2 * column + 2) % 3
    u, v, w = loaded(start, at_0, P, H, W, P_SIDE), loaded(start, at_4, P, H, W, P_SIDE), loaded(start, at_8, P, H, W, P_SIDE)
    red = normalised(picked(u, v, w, of_0), MEAN_R, STD_R)
    green = normalised(picked(u, v, w, of_1), MEAN_G, STD_G)
    blue = normalised(picked(u, v, w, of_2), MEAN_B, STD_B)

    if n < V:
        to = patches + (view * V + n) * P
        dtype = patches.dtype.element_ty
        tl.store(to + at_0, picked(red, green, blue, column % 3).to(dtype), mask=at_0 < P)
        tl.store(to + at_4, picked(red, green, blue, (column + 1) % 3).to(dtype), mask=at_4 < P)
        tl.store(to + at_8, picked(red, green, blue, (column + 2) % 3).to(dtype), mask=at_8 < P)
    else:
        red = into_target(red, picked(at_0, at_4, at_8, of_0) < P, MEAN_R, STD_R, PIXELS, EPS)
        green = into_target(green, picked(at_0, at_4, at_8, of_1) < P, MEAN_G, STD_G, PIXELS, EPS)
        blue = into_target(blue, picked(at_0, at_4, at_8, of_2) < P, MEAN_B, STD_B, PIXELS, EPS)
        into = targets + (view * L + n - V) * P
        tl.store(into + at_0, picked(red, green, blue, column % 3), mask=at_0 < P)
        tl.store(into + at_4, picked(red, green, blue, (column + 1) % 3), mask=at_4 < P)
        tl.store(into + at_8, picked(red, green, blue, (column + 2) % 3), mask=at_8 < P)
