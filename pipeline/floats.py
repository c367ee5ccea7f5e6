"""uint8 and int16 views as the floats that models from elsewhere take."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.decoding.compiled import open_library
from pipeline.storage.files import cache_folder

SOURCE = Path(__file__).with_suffix(".c")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B in [0, 1]


def normalised(
    views_BTHWC: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    layout: Literal["BCTHW", "BTCHW"] = "BCTHW",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """uint8 (n, T, H, W, 3) -> (value / 255 - mean) / std, contiguous in the layout, on the same device; computed in float32.
    int16 are 128ths of such values.

    One operation reads every byte once and writes every float once. It takes four times the views' memory (twice in half
    precision), 9.6 MB for 16 x 224², and on a CPU 38 ms for these; the same in plain operations takes 81 (two cores).
    Raises ValueError for another layout, and for what is not three numbers, or a std of 0.
    """
    if layout not in ("BCTHW", "BTCHW"):
        raise ValueError(f"layout {layout!r} is not known; allowed are 'BCTHW' and 'BTCHW'")
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must be three numbers each, for R, G and B; std not 0")
    place = layout.index("C")
    views = views_BTHWC.movedim(-1, place)
    shape = [3 if axis == place else 1 for axis in range(5)]
    white = 255 * 128 if views_BTHWC.dtype == torch.int16 else 255
    factor, offset = (
        (1 / (white * of_std) for of_std in std),
        (-of_mean / of_std for of_mean, of_std in zip(mean, std, strict=True)),
    )
    scale, shift = (
        torch.tensor(list(values), dtype=torch.float32, device="cpu").to(views.device, non_blocking=True).view(shape)
        for values in (factor, offset)
    )
    return torch.addcmul(shift, views, scale, out=torch.empty(views.shape, dtype=dtype, device=views.device))


def mirrored_floats(views_nTHWC: torch.Tensor, flips: np.ndarray, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor | None:
    """uint8 or int16 on a CPU -> (level / 255 - mean) / std in float32, in this order, some of the views, bool (n,), mirrored;
    `mean` and `std` float32 (3 W,), for the numbers of a row. None where floats.c cannot be had.

    One core: 1.9 ms a view of 16 x 224², torch 4.1 frame by frame and 6.3 all at once. It is written once, past the cache.
    """
    library = kernel()
    if library is None:
        return None
    views_nTHWC, wide = views_nTHWC.contiguous(), views_nTHWC.dtype == torch.int16
    made = torch.empty(views_nTHWC.shape, dtype=torch.float32)
    rows, width = views_nTHWC[0, :, :, 0, 0].numel(), views_nTHWC.shape[3]
    white = 255.0 * (128 if wide else 1)  # a quotient of two numbers is the same, however it is written
    for view, mirrored, out in zip(views_nTHWC, flips.tolist(), made, strict=True):
        constants = white, mean.data_ptr(), std.data_ptr()
        if library.floats(view.data_ptr(), wide, rows, width, mirrored, *constants, out.data_ptr()):
            raise MemoryError("no memory to make floats of a view")
    return made


@functools.cache
def kernel() -> ctypes.CDLL | None:
    """floats.c as a library; None where torch does its work."""
    found = open_library(SOURCE, cache_folder())
    if isinstance(found, str):
        return None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    found.floats.argtypes = (pointer, *[number] * 4, ctypes.c_float, *[pointer] * 3)
    return found
