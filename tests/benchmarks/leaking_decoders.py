"""A decoder that leaks; in a module of its own because the sidecar imports it by name."""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.parts.soak_decoder import CountingDecoder
from pipeline.decoding.decode import ClipRequest

LEAK = 100_000  # bytes a clip

malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]


@dataclass(frozen=True, slots=True)
class LeakingDecoder(CountingDecoder):
    """Leaks in the process that comes first, which leaves its number in `folder`/leaks."""

    def __call__(self, request: ClipRequest, views: np.ndarray) -> None:
        leaks = Path(self.folder) / "leaks"
        with suppress(FileExistsError), leaks.open("x") as file:
            file.write(str(os.getpid()))
        if leaks.read_text() == str(os.getpid()):
            ctypes.memset(malloc(LEAK), 1, LEAK)
        CountingDecoder.__call__(self, request, views)
