"""Clips that will be read soon, fetched before they are asked for, those side by side in one long request.

fsspec's `readahead` and `background` caches guess what follows in one open file; here the order is known, over all shards.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum, auto

from pipeline.storage.manifest import Clip

# The longest request. At 30 ms to the first byte, on one connection to a local server: 0.3 MB 9 MB/s, 1 MB 31, 4 MB 113, 8 MB
# 208, 16 MB 362, 32 MB 424; on 8 connections 16 MB is the fastest (1.0 GB/s; 32 MB: 0.6). A window of 30 MB is two requests.
GET_BYTES = 16 << 20
GAP = 8 << 10  # bytes between two clips that are fetched with them: a tar's headers and side file are about 2 kB


class _State(Enum):
    WAITING = auto()  # for room, or a free connection
    LOADING = auto()
    HELD = auto()


class _Run:
    """Neighbouring clips of a shard, fetched together and given away one by one."""

    def __init__(self, clip: Clip, announced: int) -> None:
        self.shard, self.start, self.stop = clip.shard, clip.offset, clip.offset + clip.size
        self.clips = {clip.offset: clip}  # not given away yet
        self.announced = announced  # number of reads before it
        self.state = _State.WAITING
        self.done: Future[dict[int, bytes]] = Future()  # offset -> bytes: one by one, so that each clip frees its own

    @property
    def size(self) -> int:
        return self.stop - self.start


class ReadAhead:
    """Fetches announced clips in the order of their announcement, as many at once as `memory` bytes allow.

    It only ever saves time: a clip that was not announced, has no room or could not be fetched is the caller's to read alone.
    What was announced and is never read (the order went elsewhere) leaves when its place is needed.
    """

    def __init__(
        self,
        fetch: Callable[[str, int, int], bytes],
        keep: Callable[[Clip, bytes], bool],
        *,
        memory: int,
        get_bytes: int,
        connections: int,
    ) -> None:
        """`fetch(shard, start, stop)` gives bytes [start, stop), fewer where the shard ends, or raises OSError. A clip that
        `keep(clip, bytes)` takes in (on a disk) is not held here."""
        self._fetch, self._keep = fetch, keep
        self._memory, self._get_bytes, self._connections = memory, get_bytes, connections
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="read-ahead")
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, int], deque[_Run]] = {}  # (shard, offset) -> runs with this clip
        self._waiting: deque[_Run] = deque()
        self._held: set[_Run] = set()
        self._bytes = self._loading = 0  # bytes loading or held, at most `memory` but for one run that is larger; runs loading
        self._wanted = self._reads = 0  # clips announced and not read; clips read
        self._closed = False

    def announce(self, clips: Iterable[Clip]) -> None:
        """These clips will be read, each once; earlier announcements are fetched first."""
        with self._lock:
            self._waiting.extend(self._plan(clips))
            self._start()

    def take(self, clip: Clip, deadline: float) -> bytes | None:
        """The clip's bytes if they were announced and came in time, else None. Waits for those that are on their way."""
        with self._lock:
            self._reads += 1
            runs = self._runs.get((clip.shard, clip.offset))
            if not runs:
                return None
            run = runs[0]
            begin = run.state is _State.WAITING and self._has_room(run)
            if begin:
                self._waiting.remove(run)
                self._begin(run)
            elif run.state is _State.WAITING:
                self._give_away(run, clip.offset)
                return None
        if begin:
            self._load(run)  # here: the connections may all be at work for clips that are wanted later
        try:
            return run.done.result(max(0.0, deadline - time.monotonic())).get(clip.offset)
        except OSError:  # a TimeoutError among them; the caller's own attempt says what is wrong
            return None
        finally:
            with self._lock:
                self._give_away(run, clip.offset)
                self._start()

    def close(self) -> None:
        """Begin no more requests; those on their way end by themselves."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _plan(self, clips: Iterable[Clip]) -> list[_Run]:
        """Clips -> runs, in the order in which the first clip of each was announced."""
        runs: dict[_Run, int] = {}  # -> place of its first clip
        run: _Run | None = None
        for place, clip in sorted(enumerate(clips), key=lambda pair: (pair[1].shard, pair[1].offset)):
            stop = clip.offset + clip.size
            joins = run is not None and run.shard == clip.shard and run.stop <= clip.offset <= run.stop + GAP
            if run is not None and joins and stop - run.start <= self._get_bytes:
                run.stop = stop
                run.clips[clip.offset] = clip
                runs[run] = min(runs[run], place)
            else:
                run = _Run(clip, self._reads)
                runs[run] = place
            self._wanted += 1
            self._runs.setdefault((clip.shard, clip.offset), deque()).append(run)
        return sorted(runs, key=lambda run: runs[run])

    def _has_room(self, run: _Run) -> bool:
        if self._bytes and self._bytes + run.size > self._memory:
            self._forget_stale()
        return not self._bytes or self._bytes + run.size <= self._memory

    def _forget_stale(self) -> None:
        """Drop what nobody came for: everything announced is read within about as many reads as there are clips announced."""
        patience = 2 * self._wanted + 1000
        for run in [run for run in self._held if self._reads - run.announced > patience]:
            for offset in list(run.clips):
                self._give_away(run, offset)

    def _start(self) -> None:
        while not self._closed and self._waiting and self._loading < self._connections and self._has_room(self._waiting[0]):
            run = self._waiting.popleft()
            self._begin(run)
            self._pool.submit(self._load, run)

    def _begin(self, run: _Run) -> None:
        run.start = min(run.clips)  # some may have been given away
        run.stop = max(offset + clip.size for offset, clip in run.clips.items())
        run.state = _State.LOADING
        self._bytes += run.size
        self._loading += 1

    def _load(self, run: _Run) -> None:
        parts: dict[int, bytes] = {}
        error = None
        try:
            data = self._fetch(run.shard, run.start, run.stop)
            for offset, clip in list(run.clips.items()):
                part = data[offset - run.start : offset - run.start + clip.size]
                if not self._keep(clip, part):
                    parts[offset] = part
            del data
        except Exception as caught:  # for whoever waits; the others read alone
            parts, error = {}, caught
        with self._lock:
            self._loading -= 1
            self._bytes += sum(map(len, parts.values())) - run.size
            run.state = _State.HELD
            self._held.add(run)
            if error:
                run.done.set_exception(error)
            else:
                run.done.set_result(parts)
            for offset in run.clips.keys() - parts.keys():
                self._give_away(run, offset)
            for offset in parts.keys() - run.clips.keys():  # whoever wanted it gave up
                self._bytes -= len(parts.pop(offset))
            if not run.clips:
                self._held.discard(run)
            self._start()

    def _give_away(self, run: _Run, offset: int) -> None:
        """The clip there was read, or will be elsewhere. A run without clips goes."""
        if run.clips.pop(offset, None) is None:
            return
        self._wanted -= 1
        runs = self._runs[run.shard, offset]
        runs.remove(run)
        if not runs:
            del self._runs[run.shard, offset]
        if run.state is _State.HELD and run.done.exception() is None:
            self._bytes -= len(run.done.result().pop(offset, b""))
        if not run.clips:
            if run.state is _State.WAITING:
                self._waiting.remove(run)
            self._held.discard(run)
