"""The time from the start of the process to the first new step, by its parts, and what keeps it short."""

import os
import time
from pathlib import Path

import psutil

from pipeline.storage.file_lock import can_lock

LOCK = ".lock"  # in a run's folder: one run writes to it


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


def keep_compiled(run: Path) -> None:
    """Keep what torch.compile makes with the run, unless the environment names another place: a restart on a fresh machine does
    not compile again. Call it before anything is compiled."""
    if not can_lock(run / LOCK):  # torch locks what it compiles, and fails where it cannot
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((run / "compiled").absolute()))
