"""Shared memory between a trainer and its decoding processes: a ring of batch slots.

It is an anonymous `memfd`, not /dev/shm, which is 64 MB in most containers. Layout: the places of the batches, then the slots,
each array of a slot on a 4096-byte boundary (CUDA registers whole pages; huge copies like alignment). It may be laid out for
many more slots than are used: memory is taken when a slot is first written, and a batch goes into the lowest free one, so that
those of a shallow ring stay in use.
"""

import mmap
import os
import time
from dataclasses import dataclass

import numpy as np

from pipeline.sampling.samples import SamplingRecipe
from pipeline.stage_meters import RECORD

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Slot:
    """One batch, before it becomes tensors; B clips of R views."""

    views: np.ndarray  # uint8 or int16 (B, R, T, H, W, 3)
    positions: np.ndarray  # int64 (B,), of the epoch
    rows: np.ndarray  # int64 (B,), of the manifest; those of the substitutes where clips failed
    repeated: np.ndarray  # int64 (B,), frames that are the one before once more, see `ClipSamples`
    weight: np.ndarray  # float32 (B,), 0 where no clip stands
    packed: np.ndarray  # int64 (B,), bytes of the trimmed clip that lies in the place of its views; 0 where views lie there
    records: np.ndarray  # RECORD (B,): where the time of each clip went, see `stage_meters`
    visible: np.ndarray | None = None  # int64 (B·R, V); these three only with masks
    decoded: np.ndarray | None = None  # int64 (B·R, K)
    loss_weight: np.ndarray | None = None  # float32 (B·R, L)

    @property
    def masks(self) -> tuple[np.ndarray, ...]:
        """`visible`, `decoded` and `loss_weight`, if there are any."""
        return tuple(array for array in (self.visible, self.decoded, self.loss_weight) if array is not None)

    def leave_empty(self, place: int) -> None:
        """No clip stands there: its views are black, and weigh nothing."""
        self.views[place] = self.weight[place] = self.repeated[place] = self.packed[place] = 0
        self.records[place] = 0
        self.records["began"][place] = self.records["ended"][place] = self.records["submitted"][place] = time.perf_counter_ns()


class Ring:
    """`num_slots` batches of `clips` clips of R views."""

    def __init__(
        self,
        recipe: SamplingRecipe,
        clips: int,
        num_slots: int,
        memfd: int | None = None,
        views_per_clip: int | None = None,
        pixels: type[np.integer] = np.uint8,
    ) -> None:
        """Make the memory, or map that of `memfd`, which another process made with equal arguments. R is the recipe's, unless
        `views_per_clip` says otherwise."""
        self._fields = _fields(recipe, clips, views_per_clip, pixels)
        self._sizes = _sizes(self._fields)
        self.num_slots, self.slot_bytes, self._header = num_slots, sum(self._sizes), _pages(num_slots * 8)
        self.nbytes = self._header + num_slots * self.slot_bytes
        self.memfd = memfd if memfd is not None else os.memfd_create("tubecell-ring")
        if memfd is None:
            os.ftruncate(self.memfd, self.nbytes)
        self.memory = mmap.mmap(self.memfd, self.nbytes)
        self._places = np.ndarray((num_slots,), np.int64, self.memory)  # of batch n: n % num_slots
        self._slots: dict[int, Slot] = {}  # those that have been used

    def place(self, number: int, oldest: int) -> None:
        """Give batch `number` a slot in which none of the batches from `oldest` to the one before it lies."""
        free = np.ones(self.num_slots, np.bool_)
        free[self._places[np.arange(oldest, number) % self.num_slots]] = False
        assert free.any(), f"batches {oldest} to {number} do not fit into {self.num_slots} slots"
        self._places[number % self.num_slots] = free.argmax()

    def __getitem__(self, number: int) -> Slot:
        """The slot of batch `number`, which has been given its place."""
        begin = self._begin(number)
        if begin not in self._slots:
            offset, arrays = begin, {}
            for (name, (shape, kind)), size in zip(self._fields.items(), self._sizes, strict=True):
                arrays[name] = np.ndarray(shape, kind, self.memory, offset)
                offset += size
            self._slots[begin] = Slot(**arrays)
        return self._slots[begin]

    def memory_of(self, number: int) -> memoryview:
        """All of the slot of batch `number`, whole pages."""
        begin = self._begin(number)
        return memoryview(self.memory)[begin : begin + self.slot_bytes]

    def _begin(self, number: int) -> int:
        return self._header + int(self._places[number % self.num_slots]) * self.slot_bytes

    def close(self) -> None:
        """Give the descriptor back; the memory itself goes when the last array or tensor on it does."""
        os.close(self.memfd)


def slot_size(
    recipe: SamplingRecipe, clips: int, views_per_clip: int | None = None, pixels: type[np.integer] = np.uint8
) -> int:
    """Bytes of one slot for `clips` clips."""
    return sum(_sizes(_fields(recipe, clips, views_per_clip, pixels)))


_Fields = dict[str, tuple[tuple[int, ...], type | np.dtype]]


def _fields(recipe: SamplingRecipe, clips: int, views_per_clip: int | None, pixels: type[np.integer]) -> _Fields:
    views = views_per_clip or recipe.views_per_clip
    fields: _Fields = {
        "views": ((clips, views, recipe.num_frames, *recipe.view_size, 3), pixels),
        **dict.fromkeys(("positions", "rows", "repeated", "packed"), ((clips,), np.int64)),
        "weight": ((clips,), np.float32),
        "records": ((clips,), RECORD),
    }
    if recipe.masks:
        tokens = recipe.tokens
        fields["visible"] = (clips * views, tokens.visible), np.int64
        fields["decoded"] = (clips * views, tokens.decoded), np.int64
        fields["loss_weight"] = (clips * views, tokens.loss), np.float32
    return fields


def _sizes(fields: _Fields) -> list[int]:
    return [_pages(int(np.prod(shape)) * np.dtype(kind).itemsize) for shape, kind in fields.values()]


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
