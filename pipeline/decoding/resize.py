"""Crops of RGB frames, resized to a view's size. uint8 views: antialiased bilinear, what PIL does in official pre-training.
int16 views: bilinear without antialiasing in 128ths of a level, what official fine-tuning does in floats (within 1/40).

Two implementations, the same bytes. torch's `interpolate`, or NumPy for int16, work anywhere. `resize.c` does their arithmetic
on AVX2 or AVX-512, frame by frame while a frame is in the cache, and straight into the batch; where a C compiler is, it is
built at install. A view of 16 x 224² from sides of 168 to 256 px, in the cache: 0.44 ms in the mean, 0.59 without AVX-512,
torch 1.1 (one core of an Intel Xeon); int16 0.8 of uint8's time.
"""

import ctypes
import functools
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.decoding.compiled import open_library
from pipeline.storage.files import cache_folder

SOURCE = Path(__file__).with_suffix(".c")
NO_BYTE = 0x80  # pshufb puts 0 there
FRACTION = 7  # bits of int16 views below a level
WIDE_PRECISION = 14  # bits of their weights, which sum to one


def crop_resizer(
    num_frames: int, places: np.ndarray, boxes: np.ndarray, views: np.ndarray, at_once: int = 0
) -> "CropResizer | TorchResizer":
    """Fills `views`, uint8 or int16 (R, T, H, W, 3), each of them contiguous, while the frames of a clip come.

    `num_frames` distinct ones will come; `places` int64, (T,) or (R, T), says which of them stands where in a view, in
    ascending order; `boxes` (R, 4) int64 (x, y, width, height) are the crops. Those that a thread has at the same time are told
    apart by a number, `at_once`.
    """
    return CropResizer(places, boxes, views) if kernel() else TorchResizer(num_frames, places, boxes, views, at_once)


class CropResizer:
    """`resize.c`: every frame at once."""

    def __init__(self, places: np.ndarray, boxes: np.ndarray, views: np.ndarray) -> None:
        library = kernel()
        assert library is not None
        assert views[0].flags.c_contiguous, "the views of a clip lie in one piece"
        self._resize = library.resize_views
        num_views, num_frames, height, width, channels = views.shape
        assert channels == 3, views.shape
        crops = np.zeros((num_views, 6), np.int64)
        crops[:, :4] = boxes
        # kept while their addresses are used
        self._wide = views.dtype == np.int16
        self._axes = [(axis(w, width, True, self._wide), axis(h, height, False, self._wide)) for _, _, w, h in boxes.tolist()]
        crops[:, 4:] = [[0 if a is None else a.address for a in pair] for pair in self._axes]
        # a task for every distinct frame of a view; where it stands twice, the second is a copy
        places = np.broadcast_to(places, (num_views, num_frames))
        new = np.ones(places.shape, np.bool_)
        new[:, 1:] = places[:, 1:] != places[:, :-1]
        view, time = np.nonzero(new)
        order = np.argsort(places[view, time], kind="stable")
        view, time = view[order], time[order]
        addresses = views.ctypes.data + view * views.strides[0] + time * views.strides[1]
        self._tasks = np.concatenate([crops[view], addresses[:, None]], axis=1)
        self._starts = np.searchsorted(places[view, time], np.arange(int(places.max()) + 2)).tolist()
        self._task = self._tasks.ctypes.data
        self._repeats = np.argwhere(~new)
        self._views = views

    def frame(self, number: int, rows: np.ndarray) -> None:
        """Distinct frame `number` is there: uint8 (height, line size), RGB from the first byte of each row on."""
        first, last = self._starts[number], self._starts[number + 1]
        tasks = self._task + first * self._tasks.strides[0]
        if self._resize(rows.ctypes.data, rows.strides[0], tasks, last - first, self._wide):
            raise MemoryError("no memory to resize a frame")

    def finish(self) -> None:
        """All frames were there: fill the places of those that stand more than once."""
        for view, time in self._repeats.tolist():
            self._views[view, time] = self._views[view, time - 1]


class TorchResizer:
    """The same when all frames have come. Until then the box around the crops is kept, in memory that the thread uses again:
    fresh pages for every clip cost as much as converting its colours."""

    _memory = threading.local()

    def __init__(self, num_frames: int, places: np.ndarray, boxes: np.ndarray, views: np.ndarray, at_once: int = 0) -> None:
        self._x, self._y = boxes[:, 0].min(), boxes[:, 1].min()
        self._places, self._boxes, self._views = places, boxes - [self._x, self._y, 0, 0], views
        width, height = (self._boxes[:, :2] + boxes[:, 2:]).max(axis=0)
        size = num_frames * height * width * 3
        arrays = self._memory.__dict__
        if arrays.get(str(at_once), np.empty(0)).size < size:
            arrays[str(at_once)] = np.empty(size, np.uint8)
        self._frames = arrays[str(at_once)][:size].reshape(num_frames, height, width, 3)

    def frame(self, number: int, rows: np.ndarray) -> None:
        """As `CropResizer.frame`."""
        kept = self._frames[number]
        height, width, _ = kept.shape
        kept[:] = rows[self._y : self._y + height, 3 * self._x : 3 * (self._x + width)].reshape(kept.shape)

    def finish(self) -> None:
        """Resize them all."""
        if self._views.dtype == np.int16:
            self._finish_wide()
            return
        import torch  # here, because the builder decodes, too, and does without its two seconds
        from torch.nn.functional import interpolate

        source = torch.from_numpy(self._frames).permute(0, 3, 1, 2)  # channels last, as torch's fast uint8 kernel wants it
        size = self._views.shape[2:4]
        for number, (view, (left, top, w, h)) in enumerate(zip(self._views, self._boxes.tolist(), strict=True)):
            crop, repeats = source[:, :, top : top + h, left : left + w], self._places
            if self._places.ndim == 2:  # of the union, only this view's frames are resized
                used, repeats = np.unique(self._places[number], return_inverse=True)
                crop = crop[used]
            if (h, w) == size:
                np.take(crop.permute(0, 2, 3, 1).numpy(), repeats, axis=0, out=view)
            elif len(crop) == len(view):  # no frame twice: into its place at once
                torch.ops.aten._upsample_bilinear2d_aa.out(crop, size, False, out=torch.from_numpy(view).permute(0, 3, 1, 2))
            else:
                crop = interpolate(crop, size, mode="bilinear", antialias=True)
                np.take(crop.permute(0, 2, 3, 1).numpy(), repeats, axis=0, out=view)

    def _finish_wide(self) -> None:
        """By the integers of resize.c."""
        for places, view, (left, top, w, h) in zip(
            np.broadcast_to(self._places, self._views.shape[:2]), self._views, self._boxes.tolist(), strict=True
        ):
            crop = self._frames[places, top : top + h, left : left + w].astype(np.int32)
            for along, fraction in ((2, FRACTION), (1, 0)):
                first, weights, precision = taps(crop.shape[along], view.shape[along], antialias=False)
                pair = [crop.take(np.minimum(first + k, crop.shape[along] - 1), axis=along) for k in range(2)]
                of_taps = weights.astype(np.int32).reshape(-1, *[1] * (3 - along), 2)
                shift = precision - fraction
                crop = (pair[0] * of_taps[..., 0] + pair[1] * of_taps[..., 1] + (1 << (shift - 1))) >> shift
            view[:] = crop


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a resize, as `Axis` of resize.c; holds the memory that its pointers show."""

    first: np.ndarray
    weights: np.ndarray
    bytes_taken: np.ndarray
    fields: np.ndarray  # int64: out, pairs, precision, group, and where the others lie

    @property
    def address(self) -> int:
        return self.fields.ctypes.data


@functools.lru_cache(1024)  # 12 kB each, in every process that decodes; all sizes of clips of 256 px. Without one 0.2 ms
def axis(size: int, out: int, along_x: bool, wide: bool = False) -> Axis | None:
    """From `size` pixels to `out`, in the layout of one of the two passes; None if nothing is to be done."""
    if size == out and not wide:
        return None
    first, weights, precision = taps(size, out, antialias=not wide)
    pairs = (weights.shape[1] + 1) // 2
    padded = np.zeros((-(-out // 16) * 16 if along_x else out, 2 * pairs), np.int16)
    padded[:out, : weights.shape[1]] = weights
    starts = np.full(len(padded), first[-1], np.int32)
    starts[:out] = first
    group, bytes_taken = 1, np.empty(0, np.uint8)
    if along_x:
        for neighbours, window in ((16, 64), (4, 16), (2, 16)):
            # of a tap's three bytes the first, counted from the first tap of its group
            begin = starts[np.arange(len(starts)) // neighbours * neighbours]
            byte = np.where(padded != 0, 3 * ((starts - begin)[:, None] + np.arange(2 * pairs)), NO_BYTE)
            if (neighbours < 16 or by_16()) and byte[padded != 0].max() + 2 < window:
                group = neighbours
                bytes_taken = _permutations(byte) if group == 16 else _shuffles(byte)
                break
        padded = _rows_of_bytes(padded) if group == 16 else _vectors(padded)
    padded, bytes_taken = np.ascontiguousarray(padded), np.ascontiguousarray(bytes_taken)
    pointers = [array.ctypes.data for array in (starts, padded, bytes_taken)]
    return Axis(starts, padded, bytes_taken, np.array([out, pairs, precision, group, *pointers], np.int64))


def _permutations(byte: np.ndarray) -> np.ndarray:
    """First bytes of taps (16 n, 2 pairs) -> (n, pairs, 3, 64): what vpermb takes for 16 bytes of the result, two taps each."""
    taken = np.where(byte == NO_BYTE, 0, byte + np.arange(3)[:, None, None]).transpose(1, 0, 2)  # (pixels, R G B, taps)
    ordered = taken.reshape(-1, 3, 16, byte.shape[1] // 2, 2).transpose(0, 3, 1, 2, 4)
    return np.stack([ordered, np.zeros_like(ordered)], axis=-1).astype(np.uint8)  # the upper half of a number is masked out


def _rows_of_bytes(of_taps: np.ndarray) -> np.ndarray:
    """(16 n, 2 pairs) -> (n, pairs, 3, 16, 2): for 16 bytes of the result and a pair of taps; R, G and B have the same."""
    return np.repeat(of_taps, 3, axis=0).reshape(-1, 3, 16, of_taps.shape[1] // 2, 2).transpose(0, 3, 1, 2, 4)


def _shuffles(byte: np.ndarray) -> np.ndarray:
    """First bytes of taps (8 n, 2 pairs) -> what pshufb takes to make 16-bit numbers of them, as in `_vectors`."""
    taken = _vectors(byte) + np.arange(4)[:, None]  # R, G, B
    taken = np.where((_vectors(byte) == NO_BYTE) | (np.arange(4) == 3)[:, None], NO_BYTE, taken)
    return np.stack([taken, np.full_like(taken, NO_BYTE)], axis=-1).astype(np.uint8)  # the upper half of a number is 0


def _vectors(of_taps: np.ndarray) -> np.ndarray:
    """(8 n, 2 pairs) -> (n, pairs, 4, 2, 4, 2): for eight pixels and a pair of taps four vectors of two pixels, q and q + 4,
    the same for R, G, B and nothing."""
    layout = of_taps.reshape(-1, 2, 4, of_taps.shape[1] // 2, 2).transpose(0, 3, 2, 1, 4)
    return np.repeat(layout[..., None, :], 4, axis=-2)


def taps(size: int, out: int, antialias: bool = True) -> tuple[np.ndarray, np.ndarray, int]:
    """First tap (out,) int64, weights (out, taps) int16 and their fractional bits: torch's, for antialiased bilinear on uint8.

    A triangle as wide as two input pixels, or two output pixels where the picture shrinks. The weights of a pixel sum to one
    before they are rounded; they have as many bits as the largest of them leaves room for. Not antialiased: two pixels.
    """
    scale = size / out
    if not antialias:
        place = np.maximum(scale * (np.arange(out) + 0.5) - 0.5, 0)
        first = np.minimum(place.astype(np.int64), size - 1)
        second = np.where(first < size - 1, np.rint((place - first) * (1 << WIDE_PRECISION)), 0).astype(np.int16)
        return first, np.stack([(1 << WIDE_PRECISION) - second, second], axis=1).astype(np.int16), WIDE_PRECISION
    support = max(scale, 1.0)
    centre = scale * (np.arange(out) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), size) - first
    tap = np.arange(int(count.max()))
    distance = np.abs((tap + first[:, None] - centre[:, None] + 0.5) * (1.0 / support))
    weights = np.where((distance < 1) & (tap < count[:, None]), 1 - distance, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    precision = next(bits for bits in range(23) if bits == 22 or int(0.5 + weights.max() * (1 << (bits + 1))) >= 1 << 15)
    return first, (0.5 + weights * (1 << precision)).astype(np.int16), precision


@functools.cache
def by_16() -> bool:
    """Whether the processor does rows 16 pixels at a time: AVX-512 with VBMI and VNNI, Intel since 2019, AMD since 2022."""
    library = kernel()
    return library is not None and library.supported() == 2


def kernel() -> ctypes.CDLL | None:
    """resize.c as a library; None where torch does its work, for the reason that `find_kernel` gives."""
    found = find_kernel()
    return None if isinstance(found, str) else found


@functools.cache
def find_kernel() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    library = open_library(SOURCE, cache_folder())
    if isinstance(library, str):
        return library
    library.resize_views.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    return library
