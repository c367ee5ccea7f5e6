"""Tells the troubles of the storage from those of one shard, where a clip cannot be read.

A clip whose bytes are wrong is to blame itself. One that cannot be read at all is not, as long as its neighbours cannot be read
either: credentials have expired, a server is down, a disk is not mounted. Then nothing is booked on clips. They are asked for
until the storage answers; after a limit the run stops and says what is wrong, and its checkpoint goes on as if nothing had
been. Only where other shards can be read meanwhile is one shard at fault, and its clips are given up.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.storage.manifest import Clip, Manifest
from pipeline.storage.shards import ShardReader

VARIABLE = "TUBECELL_STORAGE_PATIENCE"  # seconds, instead of both limits
PASSING, LASTING = 180.0, 60.0  # seconds that the storage is waited for: it may come back by itself; somebody must act
ALONE = (1.0, 5.0)  # seconds after which a clip is read once more where its shard alone cannot be read
FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0  # seconds between attempts while the storage is waited for, doubling
NEIGHBOURS = 3  # shards that are tried
FRESH = 0.5  # seconds for which what was found of them counts, also for other threads


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A clip that could not be read, on its way between processes."""

    row: int
    detail: str  # where, what is wrong, what to do
    transient: bool


@dataclass(frozen=True, slots=True)
class StorageTrouble:
    """News for the trainer. `detail` is empty when it is over."""

    detail: str
    seconds: float  # since it was noticed
    limit: float  # seconds; the run ends when they are over


class StorageWatch:
    """What the threads that have clips read know together of the storage."""

    def __init__(
        self, reader: ShardReader, manifest: Manifest, say: Callable[[StorageTrouble], None], limit: float | None = None
    ) -> None:
        """`limit` in seconds; by default the environment's, or PASSING and LASTING. Raises ValueError for one that is none."""
        self._reader, self._say, self._limit = reader, say, patience() if limit is None else limit
        self._shards: list[str] = manifest.shards
        self._lock = threading.Lock()
        self._since: float | None = None  # when the trouble was noticed that is not over
        self._looked: dict[str, tuple[float, bool]] = {}  # folder of shards -> when its shards were tried, and what came of it
        self._given_up: set[str] = set()  # shards

    def gives_up(self, clip: Clip, trouble: Unreadable, tries: int, hung: bool = False) -> bool:
        """Whether a clip that could not be read `tries` times is to be given up; otherwise it is time to read it once more.

        Waits before it says so. A read that hung is never its clip's fault (and another might hang, too).
        """
        if not hung and self._neighbours_can_be_read(clip.shard):
            self.passed()
            if clip.shard in self._given_up or tries > len(ALONE):
                self._given_up.add(clip.shard)
                return True
            time.sleep(ALONE[tries - 1])
            return False
        with self._lock:
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            limit = self._limit or (PASSING if trouble.transient else LASTING)
            self._say(StorageTrouble(trouble.detail, now - self._since, limit))
        time.sleep(min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(tries, 10)))
        return False

    def passed(self) -> None:
        """The storage answers, if it did not before."""
        with self._lock:
            if self._since is not None:
                self._say(StorageTrouble("", time.monotonic() - self._since, math.inf))
                self._since = None

    def _neighbours_can_be_read(self, shard: str) -> bool:
        """Some other shard of the same place; where there is none, the beginning of this one."""
        place = os.path.dirname(shard)
        with self._lock:
            when, found = self._looked.get(place, (-math.inf, False))
            if time.monotonic() - when > FRESH:
                others = [other for other in self._shards if other != shard and os.path.dirname(other) == place]
                others = [other for other in others if other not in self._given_up] or others or [shard]
                tried = others[:: -(-len(others) // NEIGHBOURS)]
                found = any(map(self._reader.can_read, tried))
                self._looked[place] = time.monotonic(), found
        return found


def patience() -> float | None:
    """Seconds that TUBECELL_STORAGE_PATIENCE names; None without it. Raises ValueError."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{VARIABLE} is {text!r}; say how many seconds the storage is waited for, such as 600")
    return seconds
