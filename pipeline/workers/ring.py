"""Shared memory between a trainer and its decoding processes: a ring of batch slots.

It is an anonymous `memfd`, not /dev/shm, which is 64 MB in most containers. Layout: the places of the batches, then the slots,
each array of a slot on a 4096-byte boundary (CUDA registers whole pages; huge copies like alignment). It may be laid out for
many more slots than are used: memory is taken when a slot is first written, and a batch goes into the lowest free one, so that
those of a shallow ring stay in use.
"""

import mmap
import os
from dataclasses import dataclass

import numpy as np

from pipeline.sampling.samples import SamplingRecipe
from pipeline.stage_meters import RECORD

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Slot:
    """One batch, before it becomes tensors; B clips of R views."""

    views: np.ndarray  # uint8 (B, R, T, size, size, 3)
    visible: np.ndarray  # int64 (B·R, V)
    decoded: np.ndarray  # int64 (B·R, K)
    loss_weight: np.ndarray  # float32 (B·R, L)
    positions: np.ndarray  # int64 (B,), of the epoch
    rows: np.ndarray  # int64 (B,), of the manifest; those of the substitutes where clips failed
    repeated: np.ndarray  # int64 (B,), frames that are the one before once more, see `ClipSamples`
    packed: np.ndarray  # int64 (B,), bytes of the trimmed clip that lies in the place of its views; 0 where views lie there
    records: np.ndarray  # RECORD (B,): where the time of each clip went, see `stage_meters`


class Ring:
    """`num_slots` batches of `clips` clips."""

    def __init__(self, recipe: SamplingRecipe, clips: int, num_slots: int, memfd: int | None = None) -> None:
        """Make the memory, or map that of `memfd`, which another process made with equal arguments."""
        self._fields = _fields(recipe, clips)
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


def slot_size(recipe: SamplingRecipe, clips: int) -> int:
    """Bytes of one slot for `clips` clips."""
    return sum(_sizes(_fields(recipe, clips)))


_Fields = dict[str, tuple[tuple[int, ...], type | np.dtype]]


def _fields(recipe: SamplingRecipe, clips: int) -> _Fields:
    views, tokens = clips * recipe.views_per_clip, recipe.tokens
    side, frames = recipe.input_size, recipe.num_frames
    return {
        "views": ((clips, recipe.views_per_clip, frames, side, side, 3), np.uint8),
        "visible": ((views, tokens.visible), np.int64),
        "decoded": ((views, tokens.decoded), np.int64),
        "loss_weight": ((views, tokens.loss), np.float32),
        **dict.fromkeys(("positions", "rows", "repeated", "packed"), ((clips,), np.int64)),
        "records": ((clips,), RECORD),
    }


def _sizes(fields: _Fields) -> list[int]:
    return [_pages(int(np.prod(shape)) * np.dtype(kind).itemsize) for shape, kind in fields.values()]


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
