"""What a call leaves behind in the C library's heap, where libraries that are not Python's keep their memory."""

import ctypes
from collections.abc import Callable

import pytest

FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Heap(ctypes.Structure):
    """`struct mallinfo2` of <malloc.h>."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def left_behind(action: Callable[[], object], times: int = 20, rounds: int = 4) -> float:
    """Bytes a call that stay in use. Of several rounds the least: what a cache takes is taken once, a leak every time."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs mallinfo2, of glibc 2.33 or later")
    libc.mallinfo2.restype = Heap

    def in_use() -> int:
        heap = libc.mallinfo2()
        return heap.uordblks + heap.hblkhd

    taken = []
    for _ in range(rounds + 1):
        before = in_use()
        for _ in range(times):
            action()
        taken.append(in_use() - before)
    return min(taken[1:]) / times
