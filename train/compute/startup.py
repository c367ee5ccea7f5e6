"""The time from the start of the process to the first new step, by its parts, and what keeps it short."""

import os
import time
from pathlib import Path

import psutil
import torch

from pipeline.console import may_fail
from pipeline.machine import usable_cores
from pipeline.storage.files import write_durably

LOCK = ".lock"  # in a run's folder: one run writes to it
COMPILED = "compiled.bin"  # in a run's folder: what torch.compile made


class Startup:
    """A clock that runs since this process began."""

    def __init__(self) -> None:
        self._last = time.time()
        self.seconds = {"imports": self._last - psutil.Process().create_time()}

    def done(self, part: str) -> None:
        """The time since the part before, or since the beginning, went into this one."""
        now = time.time()
        self.seconds[part] = now - self._last
        self._last = now

    def stepped(self, waited: float) -> None:
        """The first step is done, for the beginning of which the data was waited for so many seconds."""
        self.done("first step")
        self.seconds["first batch"] = waited
        self.seconds["first step"] -= waited

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
        return f"first step after {sum(self.seconds.values()):.1f} s: {parts}"


def load_compiled(run: Path) -> None:
    """Take what torch.compile has made for the run into this node's cache, so that a start on a fresh machine does not compile
    again. Every rank calls it before anything is compiled.

    The cache itself stays torch's own, on a local disk: in the run's folder the ranks of all nodes would compile into one, and
    wait for its locks. And each rank compiles with its share of the cores, where torch takes up to 32 processes for each.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(usable_cores()))
    with may_fail(COMPILED):
        if (run / COMPILED).is_file():
            torch.compiler.load_cache_artifacts((run / COMPILED).read_bytes())


def save_compiled(run: Path) -> None:
    """On rank 0, when everything has been compiled: 0.3 MB for a block of two graphs."""
    with may_fail(COMPILED):
        if made := torch.compiler.save_cache_artifacts():
            write_durably(run / COMPILED, made[0])
