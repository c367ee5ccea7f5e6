"""RandAugment on whole frames, before the crop, as official fine-tuning does it: PIL's arithmetic, in the decoding process.

Two implementations, the same bytes: `augment.c`, which does to a frame what its crop will show while it lies in the cache, and
NumPy where there is no C compiler or no AVX2. Both are PIL 13's to the bit but for geometry, where one pixel in a thousand is a
level off (float32 for PIL's float64). Statistics are those of each whole frame.
"""

import ctypes
import functools
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.decoding.compiled import open_library
from pipeline.decoding.resize import crop_resizer
from pipeline.sampling.randaugment import OPERATIONS, source_of
from pipeline.storage.files import cache_folder

SOURCE = Path(__file__).with_suffix(".c")
TABLE, AUTOCONTRAST, EQUALIZE, CONTRAST, COLOR, SHARPNESS, AFFINE = range(7)
STAGE = np.dtype(  # of augment.c
    [("kind", "i8"), ("region", "i8", 4), ("matrix", "f8", 6), ("factor", "f8"), ("table", "u1", 256)], align=True
)
KINDS = {"AutoContrast": AUTOCONTRAST, "Equalize": EQUALIZE, "ContrastIncreasing": CONTRAST, "ColorIncreasing": COLOR}
PAD = 64  # bytes between rows, and after the last: vectors write beyond a row
FILL = 128
REACH = 2  # pixels around a place that the cubic looks at
LEVELS = np.arange(256)


class AugmentedResizer:
    """As `CropResizer`, for views of which each has operations of its own, on frames (width, height)."""

    def __init__(
        self,
        operations: np.ndarray,
        size: tuple[int, int],
        places: np.ndarray,
        boxes: np.ndarray,
        views: np.ndarray,
    ) -> None:
        self._views = [Augmentation(plan, box, *size) for plan, box in zip(operations, boxes, strict=True)]
        left, top, right, bottom = np.array([view.region for view in self._views]).T
        self.looked_at = np.stack([left, top, right - left, bottom - top], axis=1)
        """What is read of a frame, boxes (R, 4)."""
        self.augmenting = 0
        """Time that it took, in ns."""
        self._of_view = np.broadcast_to(places, views.shape[:2])
        self._made, self._boxes = views, boxes

    def begin(self, region: tuple[int, int, int, int] | None) -> None:
        """Frames will come whole, or a region (x, y, width, height) of each."""
        self._left, self._top = region[:2] if region else (0, 0)
        self._resizers, self._wanted = [], []
        for i, view in enumerate(self._views):
            distinct, places = np.unique(self._of_view[i], return_inverse=True)
            box = self._boxes[i : i + 1] - [0 if view else self._left, 0 if view else self._top, 0, 0]
            self._resizers.append(crop_resizer(len(distinct), places, box, self._made[i : i + 1], at_once=i))
            self._wanted.append({number: place for place, number in enumerate(distinct.tolist())})

    def frame(self, number: int, rows: np.ndarray) -> None:
        """As `CropResizer.frame`."""
        for view, resizer, wanted in zip(self._views, self._resizers, self._wanted, strict=True):
            if (place := wanted.get(number)) is None:
                continue
            began = time.perf_counter_ns()
            augmented = view.frame(rows, self._left, self._top) if view else rows
            self.augmenting += time.perf_counter_ns() - began
            resizer.frame(place, augmented)

    def finish(self) -> None:
        """As `CropResizer.finish`."""
        for resizer in self._resizers:
            resizer.finish()


class Augmentation:
    """What becomes of the frames of a view, of which a box is wanted. Of one thread."""

    _memory = threading.local()  # used again: fresh pages for every frame cost as much as a table

    def __init__(self, operations: np.ndarray, box: Sequence[int], width: int, height: int) -> None:
        """A plan (L, 2), see `randaugment.plans`; the box (x, y, width, height) in frames of this size."""
        self._width, self._height = width, height
        stages = [stage(OPERATIONS[int(index)], argument, width, height) for index, argument in operations if index >= 0]
        self._stages = np.array([one for one in stages if one is not None], STAGE)
        x, y, wide, high = map(int, box)
        region = x, y, x + wide, y + high
        for one in self._stages[::-1]:
            one["region"] = region
            region = _needed(one, region, width, height)
        self.region = region
        """Left, top, right, bottom of what is read of a frame."""
        self._address = self._stages.ctypes.data

    def __bool__(self) -> bool:
        return len(self._stages) > 0

    def frame(self, rows: np.ndarray, left: int = 0, top: int = 0) -> np.ndarray:
        """Rows uint8 (height, line size), RGB from the first byte of each on, that begin at a place of the frame -> the rows of
        the augmented frame from its beginning on, right within the box; until the next call."""
        library = kernel()
        if library is None:
            return self._by_numpy(rows, left, top)
        line = -(-3 * self._width // PAD) * PAD + PAD
        one = self._height * line + PAD
        memory = self._taken(2 * one + 40 * (self._width + 4))
        at = library.augment_frame(
            rows.ctypes.data - top * rows.strides[0] - 3 * left,
            rows.strides[0],
            self._width,
            self._height,
            self._address,
            len(self._stages),
            memory.ctypes.data,
            line,
        )
        return memory[at * one : at * one + self._height * line].reshape(self._height, line)

    def _taken(self, size: int) -> np.ndarray:
        if getattr(self._memory, "array", np.empty(0)).size < size:
            self._memory.array = np.empty(size, np.uint8)
        return self._memory.array

    def _by_numpy(self, rows: np.ndarray, left: int, top: int) -> np.ndarray:
        frame = np.zeros((self._height, self._width, 3), np.uint8)
        right, bottom = self.region[2:]
        part = rows[: bottom - top, : 3 * (right - left)]
        frame[top:bottom, left:right] = part.reshape(len(part), -1, 3)
        for one in self._stages:
            frame = done(frame, one)
        return frame.reshape(self._height, -1)


def stage(operation: str, argument: float, width: int, height: int) -> np.ndarray | None:
    """Of an operation of `randaugment.OPERATIONS` with its final argument, on frames of a size -> STAGE (); None if it does
    nothing."""
    made = np.zeros((), STAGE)
    made["kind"], made["factor"] = KINDS.get(operation, TABLE), argument
    match operation:
        case "AutoContrast" | "Equalize" | "ContrastIncreasing" | "ColorIncreasing":
            pass
        case "SharpnessIncreasing":
            made["kind"] = SHARPNESS
        case "Invert":
            made["table"] = 255 - LEVELS
        case "PosterizeIncreasing":
            made["table"] = LEVELS & (0xFF00 >> min(8, int(argument)))
        case "SolarizeIncreasing":
            made["table"] = np.where(argument > LEVELS, LEVELS, 255 - LEVELS)
        case "SolarizeAdd":
            made["table"] = np.where(LEVELS < 128, np.minimum(LEVELS + int(argument), 255), LEVELS)
        case "BrightnessIncreasing":
            made["table"] = blended(np.zeros(256, np.uint8), LEVELS.astype(np.uint8), argument)
        case _:
            made["kind"], made["matrix"] = AFFINE, source_of(operation, argument, width, height)
    if operation in ("ColorIncreasing", "ContrastIncreasing", "SharpnessIncreasing", "BrightnessIncreasing") and argument == 1:
        return None
    return made


def _needed(one: np.ndarray, region: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """What a stage reads for a region of its result."""
    left, top, right, bottom = region
    if one["kind"] in (AUTOCONTRAST, EQUALIZE, CONTRAST):
        return 0, 0, width, height
    if one["kind"] == SHARPNESS:
        left, top, right, bottom = left - 1, top - 1, right + 1, bottom + 1
    if one["kind"] == AFFINE:
        a, b, c, d, e, f = one["matrix"].tolist()
        corners = [(x, y) for x in (left, right) for y in (top, bottom)]
        x, y = [a * x + b * y + c for x, y in corners], [d * x + e * y + f for x, y in corners]
        left, right = math.floor(min(x)) - REACH, math.ceil(max(x)) + REACH
        top, bottom = math.floor(min(y)) - REACH, math.ceil(max(y)) + REACH
    # at least a pixel, which nobody looks at where all comes from outside
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(left + 1, min(right, width)), max(top + 1, min(bottom, height))


def done(frame: np.ndarray, one: np.ndarray) -> np.ndarray:
    """A frame uint8 (H, W, 3) after a stage, by NumPy."""
    match int(one["kind"]):
        case 0:
            return one["table"][frame]
        case 1 | 2:
            table = autocontrast if one["kind"] == AUTOCONTRAST else equalize
            return np.stack([table(np.bincount(of.ravel(), minlength=256))[of] for of in np.moveaxis(frame, 2, 0)], axis=2)
        case 3:
            return blended(np.uint8(luma(frame).mean() + 0.5), frame, float(one["factor"]))
        case 4:
            return blended(luma(frame)[..., None], frame, float(one["factor"]))
        case 5:
            return blended(smooth(frame), frame, float(one["factor"]))
    return warped(frame, one["matrix"])


def blended(degenerate: np.ndarray | np.uint8, picture: np.ndarray, factor: float) -> np.ndarray:
    """PIL's Image.blend, uint8."""
    difference = picture.astype(np.float32) - np.float32(degenerate)
    level = np.float32(degenerate) + np.float32(factor) * difference
    return np.clip(level, 0, 255).astype(np.uint8)


def luma(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> uint8 (H, W), as PIL converts to "L"."""
    red, green, blue = np.moveaxis(frame.astype(np.int64), 2, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def autocontrast(counts: np.ndarray) -> np.ndarray:
    """Counts (256,) of a channel -> its table, PIL's ImageOps.autocontrast."""
    (levels,) = counts.nonzero()
    low, high = int(levels[0]), int(levels[-1])
    if high <= low:
        return LEVELS.astype(np.uint8)
    scale = 255.0 / (high - low)
    return np.clip((LEVELS * scale + -low * scale).astype(np.int64), 0, 255).astype(np.uint8)


def equalize(counts: np.ndarray) -> np.ndarray:
    """Counts (256,) of a channel -> its table, PIL's ImageOps.equalize."""
    found = counts[counts > 0]
    step = int(found.sum() - found[-1]) // 255
    if len(found) <= 1 or not step:
        return LEVELS.astype(np.uint8)
    passed = step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.minimum(passed // step, 255).astype(np.uint8)


def smooth(frame: np.ndarray) -> np.ndarray:
    """PIL's ImageFilter.SMOOTH, whose edges stay."""
    result, wide = frame.copy(), frame.astype(np.int64)
    height, width, _ = frame.shape
    if height > 2 and width > 2:
        sums = sum(wide[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3))
        result[1:-1, 1:-1] = (sums + 4 * wide[1:-1, 1:-1] + 6) // 13
    return result


def warped(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """PIL's affine transform with its cubic, 128 outside."""
    height, width, _ = frame.shape
    a, b, c, d, e, f = matrix.tolist()
    y, x = np.mgrid[:height, :width]
    # along an axis that only shifts, the shift is what is rounded
    at_x = b * (y + 0.5) + c if a == 1 else a * (x + 0.5) + b * (y + 0.5) + c - 0.5
    at_y = d * (x + 0.5) + f if e == 1 else d * (x + 0.5) + e * (y + 0.5) + f - 0.5
    from_x, from_y = at_x + (x + 0.5 if a == 1 else 0.5), at_y + (y + 0.5 if e == 1 else 0.5)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    across, down = cubic((at_x - np.floor(at_x)).astype(np.float32)), cubic((at_y - np.floor(at_y)).astype(np.float32))
    left, top = (np.floor(at).astype(np.int64) - 1 for at in (at_x, at_y))
    left, top = left + (x if a == 1 else 0), top + (y if e == 1 else 0)
    rows, sums = [np.clip(top + j, 0, height - 1) for j in range(4)], []
    for k in range(4):
        column = np.clip(left + k, 0, width - 1)
        parts = [frame[rows[j], column] * down[j][..., None] for j in range(4)]
        sums.append((((parts[0] + parts[1]) + parts[2]) + parts[3]) * across[k][..., None])
    level = np.clip((sums[0] + sums[2]) + (sums[1] + sums[3]) + np.float32(2**-10), 0, 255).astype(np.uint8)
    return np.where(inside[..., None], level, np.uint8(FILL))


def cubic(distance: np.ndarray) -> list[np.ndarray]:
    """Float32 -> the weights of four pixels: of the second and the one after it, between which the place lies, and of their
    neighbours (a = -1, as PIL's transforms have it; its resize has -0.5, torch -0.75)."""
    square = distance * distance
    cube = square * distance
    one = np.float32(1)
    return [((square + square) - distance) - cube, (one - (square + square)) + cube, (distance + square) - cube, cube - square]


@functools.cache
def kernel() -> ctypes.CDLL | None:
    """augment.c as a library; None where NumPy does its work."""
    found = open_library(SOURCE, cache_folder())
    if isinstance(found, str):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.augment_frame.argtypes = (pointer, number, number, number, pointer, number, pointer, number)
    return found
