"""Views as the official loaders make them of whole frames that are decoded already: bilinear, not antialiased.

For comparisons, and for who augments whole frames before they are cropped. `ClipLoader` cuts first, to whole pixels, and
resizes antialiased, as official pre-training does: on frames of 60 x 81 its view of 48 x 48 differs from the official
validation's by 0.056 in the mean of normalised values; by 0.022 if it differed in the antialiasing alone.
"""

import numpy as np
import torch
from torch.nn.functional import interpolate

from pipeline.floats import normalised
from pipeline.sampling.crops import Size, resized_side, spread


def crop_resize(clip: torch.Tensor, box: tuple[int, int, int, int], size: Size) -> torch.Tensor:
    """Floats (C, T, H, W), a box (top, left, height, width) -> (C, T, *size)."""
    top, left, height, width = box
    cut = clip[:, :, top : top + height, left : left + width].transpose(0, 1)
    return interpolate(cut, size, mode="bilinear", align_corners=False).transpose(0, 1)


def resized_views(width: int, height: int, short: int, size: Size, crops: int = 1) -> tuple[Size, np.ndarray]:
    """Of a frame whose short side is resized to `short`: its (height, width) then, and where crops of `size` begin, int64
    (C, 2), as (x, y): spread along the long side from the other's edge on, or one in the middle of both (validation)."""
    long = int(resized_side(np.array(max(width, height)), np.array(min(width, height)), np.array(short)))
    resized = (short, long) if width >= height else (long, short)
    free = np.array(resized[::-1]) - size[::-1]
    if crops == 1:
        return resized, spread(free, 1).T
    places = np.zeros((crops, 2), np.int64)
    places[:, int(height > width)] = spread(free.max(keepdims=True), crops)
    return resized, places


def validation_view(frames: np.ndarray, short: int, size: Size) -> torch.Tensor:
    """uint8 (T, H, W, 3) -> floats (3, T, *size), normalised: resized to 8 bits, then the middle."""
    resized, ((x, y),) = resized_views(frames.shape[2], frames.shape[1], short, size)
    whole = interpolate(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), resized, mode="bilinear", align_corners=False)
    cut = whole[:, :, y : y + size[0], x : x + size[1]].round().to(torch.uint8)
    return normalised(cut.permute(0, 2, 3, 1)[None])[0]
