"""RandAugment on the training device: all frames of a view at once, after the crop, while the host does not wait.

An operation gives 8 bits, as PIL's does, and its arithmetic is PIL's to the last bit, but for geometry: that is torch's
bicubic, whose kernel has a = -0.75 where PIL's has -1. On frames of six real clips, magnitude 7, it is 0.15 to 0.33 levels off
in the mean, and 2 or 3 in the worst pixel of a hundred; bilinear would be 0.6 to 1.2 and 6 to 11 off. What lies outside is 128,
as there. n views, T frames; levels are 0 to 255.
"""

import math
from collections.abc import Callable
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from pipeline.sampling.randaugment import OPERATIONS, source_of

PARTS = 128  # of a level, in views of int16
FILL = 128
NOISE = 2.0**-8  # of a level: more than float32 is off, where PIL cuts the fraction off


@torch.no_grad()
def randaugmented(views_nTHWC: Tensor, plans: np.ndarray) -> Tensor:
    """Views (n, T, H, W, 3), uint8 or int16 in 128ths of a level, and their plans (n, layers, 2), see
    `sampling/randaugment.py` -> a copy, in which the views with operations have whole levels."""
    views_nTHWC = views_nTHWC.clone()
    for view_THWC, plan in zip(views_nTHWC, plans.tolist(), strict=True):
        if operations := [(OPERATIONS[int(index)], argument) for index, argument in plan if index >= 0]:
            if view_THWC.dtype == torch.uint8:
                view_THWC.copy_(operated(view_THWC, operations))
            else:
                whole_THWC = view_THWC.add(PARTS // 2).floor_divide_(PARTS).clamp_(0, 255).to(torch.uint8)
                view_THWC.copy_(operated(whole_THWC, operations)).mul_(PARTS)
    return views_nTHWC


def operated(view_THWC: Tensor, operations: list[tuple[str, float]]) -> Tensor:
    """uint8 (T, H, W, 3), official names and their arguments in order -> uint8. Neighbours whose tables are known beforehand
    are one table."""
    for known, adjacent in groupby(operations, lambda operation: operation[0] in KNOWN):
        if not known:
            for name, argument in adjacent:
                view_THWC = OTHERS[name](view_THWC, argument) if name in OTHERS else warped(view_THWC, name, argument)
            continue
        table = torch.arange(256, dtype=torch.int16, device=view_THWC.device)
        for name, argument in adjacent:
            table = KNOWN[name](table, argument)
        view_THWC = looked_up(view_THWC, table)
    return view_THWC


# ---------------------------------------------------------------------------------------------------------- by tables


KNOWN: dict[str, Callable[[Tensor, float], Tensor]] = {  # levels of any shape -> what becomes of them, int16
    "Invert": lambda levels, _: 255 - levels,
    "PosterizeIncreasing": lambda levels, bits: levels & 256 - (1 << 8 - int(bits)),  # of 0 bits: black
    "SolarizeIncreasing": lambda levels, threshold: levels.where(levels < int(threshold), 255 - levels),
    "SolarizeAdd": lambda levels, added: (levels + int(added)).clamp_(max=255).where(levels < 128, levels),
    "BrightnessIncreasing": lambda levels, weight: cut_off(levels.float().mul_(weight)).short(),
}


def auto_contrast(view_THWC: Tensor, _: float) -> Tensor:
    """Each frame's channels from 0 to 255; what has one level stays."""
    low_T31, high_T31 = (extreme(view_THWC, (1, 2))[..., None].double() for extreme in (torch.amin, torch.amax))
    levels = torch.arange(256, dtype=torch.float64, device=view_THWC.device)
    scale_T31 = torch.full_like(low_T31, 255) / (high_T31 - low_T31)  # 255 / x would be 255 times the reciprocal
    table = cut_off(levels * scale_T31 - low_T31 * scale_T31)
    return looked_up(view_THWC, table.where(high_T31 > low_T31, levels))


def equalize(view_THWC: Tensor, _: float) -> Tensor:
    """Each frame's channels, so that all levels are about as frequent; what has too few pixels for that stays."""
    index, shape = numbered(view_THWC).flatten().long(), (len(view_THWC), 3, 256)
    counts = torch.zeros(math.prod(shape), dtype=torch.int64, device=index.device)  # bincount would wait for the host
    counts = counts.scatter_add_(0, index, torch.ones_like(index[:1]).expand_as(index)).view(shape)
    highest = view_THWC.amax((1, 2))[..., None].long()
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return looked_up(view_THWC, table.clamp_(max=255).where(step > 0, torch.arange(256, device=index.device)))


def numbered(view_THWC: Tensor) -> Tensor:
    """Where each level stands in tables (T, 3, 256) -> int32 (T, H, W, 3)."""
    tables = torch.arange(len(view_THWC) * 3, dtype=torch.int32, device=view_THWC.device).view(-1, 1, 1, 3)
    return view_THWC + tables * 256


def looked_up(view_THWC: Tensor, table: Tensor) -> Tensor:
    """In one table (256,), or in those of each frame and channel (T, 3, 256)."""
    index = view_THWC.int() if table.ndim == 1 else numbered(view_THWC)
    return table.to(torch.uint8).flatten().index_select(0, index.flatten()).view(view_THWC.shape)


# ----------------------------------------------------------------------------------------------------------- by pixels


def color(view_THWC: Tensor, weight: float) -> Tensor:
    return blended(grey(view_THWC), view_THWC, weight)


def contrast(view_THWC: Tensor, weight: float) -> Tensor:
    """Against the mean of each frame, a whole level."""
    grey_THW1 = grey(view_THWC)
    count, total = grey_THW1[0].numel(), grey_THW1.sum((1, 2, 3), keepdim=True)
    return blended((2 * total + count) // (2 * count), view_THWC, weight)


def sharpness(view_THWC: Tensor, weight: float) -> Tensor:
    """Against the view smoothed, but for the outermost pixels: its pixel counts 5, each of eight neighbours 1."""
    smooth_THWC = view_THWC.float()
    sums = avg_pool2d(smooth_THWC.permute(0, 3, 1, 2), 3, stride=1, divisor_override=1).permute(0, 2, 3, 1)
    inner = smooth_THWC[:, 1:-1, 1:-1]
    inner.mul_(4).add_(sums).div_(13).add_(0.5).floor_()
    return blended(smooth_THWC, view_THWC, weight)


def grey(view_THWC: Tensor) -> Tensor:
    """PIL's, of whole levels -> int32 (T, H, W, 1)."""
    red, green, blue = view_THWC.int().split(1, dim=3)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def blended(degenerate: Tensor, view_THWC: Tensor, weight: float) -> Tensor:
    """The view with this weight, and with the rest of 1 what it has too little of, or, below 0, too much."""
    degenerate = degenerate.float()
    return cut_off(degenerate + (view_THWC - degenerate) * weight).to(torch.uint8)


def cut_off(levels: Tensor) -> Tensor:
    """To 0 .. 255, of floats, in place. Who makes integers of them cuts the fraction off, too."""
    return levels.clamp_(0, 255)


OTHERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "ColorIncreasing": color,
    "ContrastIncreasing": contrast,
    "SharpnessIncreasing": sharpness,
}


# ---------------------------------------------------------------------------------------------------------- geometry


def warped(view_THWC: Tensor, name: str, argument: float) -> Tensor:
    """Whatever has its centre outside of the view is grey."""
    T, height, width, _ = view_THWC.shape
    a, b, c, d, e, f = source_of(name, argument, width, height)
    across, down = (torch.arange(side, device=view_THWC.device) + 0.5 for side in (width, height))
    x_HW, y_HW = across * a + (down * b + c)[:, None], across * d + (down * e + f)[:, None]
    inside_HW = (x_HW >= 0) & (x_HW < width) & (y_HW >= 0) & (y_HW < height)
    grid_HW2 = torch.stack([x_HW * (2 / width) - 1, y_HW * (2 / height) - 1], dim=2)
    found_TCHW = grid_sample(
        view_THWC.permute(0, 3, 1, 2).float(),
        grid_HW2.expand(T, -1, -1, -1),
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    return cut_off(found_TCHW.add_(NOISE)).where(inside_HW, FILL).to(torch.uint8).permute(0, 2, 3, 1)
