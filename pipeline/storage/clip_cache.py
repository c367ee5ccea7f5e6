"""Clips of remote shards on a local disk, up to a size, shared by the processes of a node and by datasets.

fsspec's file caches have no limit of size; diskcache, one more dependency, keeps an index in SQLite that every read writes to.
"""

import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Self

from pipeline.storage.file_lock import lock

FOLDER_VARIABLE, SIZE_VARIABLE, SIZE_FLAG = "TUBECELL_CACHE", "TUBECELL_CACHE_SIZE", "--loader.cache-size"
FILL, KEEP = 0.98, 0.9  # shares of the limit at which clips are removed, and that are left: the whole folder is looked at
BLOCK = 4096  # bytes a file occupies at least, and a multiple of which
PAUSE = 60.0  # seconds without writing after the disk refused
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class ClipCache:
    """FOLDER/ab/HASH holds the clip with that content hash; the least recently used ones go first.

    Nothing in it is trusted: who reads a clip checks its hash and calls `discard` where it is wrong. Files are written under
    a temporary name and renamed, not synced. `FOLDER/bytes` counts what all processes wrote, under a file lock, so that
    together they stay below the limit; a count that a killed process left wrong is put right when clips are removed.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        """At most `limit` bytes. Raises ValueError if the folder cannot be written."""
        self.folder, self.limit = Path(folder), limit
        if limit < 1:
            raise ValueError(f"the cache {folder} may hold {limit} bytes; give it more")
        self._paused_until = 0.0
        self._numbers = count()
        self._lock = threading.Lock()  # flock is the process's: it does not keep its threads apart
        try:
            for number in range(256):
                (self.folder / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            with self._count():
                pass
        except OSError as error:
            raise ValueError(f"the cache folder {folder} cannot be used: {error.strerror}; choose another") from error

    @classmethod
    def asked_for(cls, folder: str | os.PathLike[str] | None = None, size: str | None = None) -> Self | None:
        """Of a `folder`, and a `size` such as 500G; what is None, TUBECELL_CACHE and TUBECELL_CACHE_SIZE say. None without a
        folder. Raises ValueError for a folder without a size, a size without a folder, or as the constructor does."""
        where, most = folder or os.environ.get(FOLDER_VARIABLE), size or os.environ.get(SIZE_VARIABLE, "")
        if size and not where:
            raise ValueError(f"--loader.cache-size {size} is for --loader.cache FOLDER, or {FOLDER_VARIABLE}: give it, too")
        return cls(where, parse_size(most, SIZE_FLAG if size or folder else SIZE_VARIABLE)) if where else None

    def __reduce__(self) -> tuple[type[Self], tuple[Path, int]]:
        """For another process: locks stay here."""
        return type(self), (self.folder, self.limit)

    def get(self, content_hash: str) -> bytes | None:
        """What is kept under a hash, unchecked, or None."""
        try:
            with self._file(content_hash).open("rb", buffering=0) as file:
                os.utime(file.fileno())  # ours to keep: access times are often off or late
                return file.read()
        except OSError:
            return None

    def holds(self, content_hash: str) -> bool:
        return self._file(content_hash).exists()

    def put(self, content_hash: str, data: bytes) -> bool:
        """Keep a clip; False if there is no room for it. A cache never fails: the clip is at hand anyway."""
        file = self._file(content_hash)
        if file.exists():
            return True
        if time.monotonic() < self._paused_until:
            return False
        temporary = file.with_name(f"{os.getpid()}-{next(self._numbers)}.tmp")
        try:
            # an empty file of that size takes the room: whoever counts the files sees it
            room = self._take_room(temporary, len(data), FILL)
            if not room and not (self._make_room(len(data)) and self._take_room(temporary, len(data), 1.0)):
                return False
            try:
                with temporary.open("r+b", buffering=0) as opened:
                    opened.write(data)
                os.replace(temporary, file)
            except OSError:
                self._add(-_occupied(len(data)))
                raise
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._paused_until = time.monotonic() + PAUSE
            warnings.warn(f"the cache {self.folder} cannot be written ({error.strerror}); it rests for a minute", stacklevel=2)
            return False
        return True

    def discard(self, content_hash: str) -> None:
        """Remove a clip whose bytes are wrong."""
        try:
            size = _occupied(self._file(content_hash).stat().st_size)
            self._file(content_hash).unlink()
            self._add(-size)
        except OSError:  # another process was faster
            pass

    def _file(self, content_hash: str) -> Path:
        return self.folder / content_hash[:2] / content_hash

    def _take_room(self, file: Path, size: int, share: float) -> bool:
        with self._count() as total:
            if total[0] + _occupied(size) > share * self.limit:
                return False
            with file.open("xb") as opened:
                opened.truncate(size)
            total[0] += _occupied(size)
        return True

    def _add(self, size: int) -> None:
        with self._count() as total:
            total[0] += size

    @contextmanager
    def _count(self) -> Iterator[list[int]]:
        """[bytes of all files], to read and change while nobody else does."""
        with self._lock, open(self.folder / "bytes", "ab+", buffering=0) as file:
            lock(file, wait=True)
            file.seek(0)
            text = file.read()
            total = [int(text) if text.isdigit() else 0]
            before = total[0]
            yield total
            if total[0] != before or not text:
                file.truncate(0)
                file.write(str(max(0, total[0])).encode())

    def _make_room(self, size: int) -> bool:
        """Remove the clips that were used longest ago. One process does so; the others keep nothing meanwhile."""
        if _occupied(size) > KEEP * self.limit:
            return False
        with open(self.folder / "removing", "ab") as removing:
            try:
                lock(removing)
            except BlockingIOError:
                return False
            with self._count() as total:
                before = total[0]
            entries, held = [], 0
            for entry in self._entries():
                try:
                    state = entry.stat()
                except FileNotFoundError:
                    continue
                if entry.name.endswith(".tmp") and time.time() - state.st_mtime > 3600:  # of a process that was killed
                    Path(entry).unlink(missing_ok=True)
                    continue
                entries.append((state.st_mtime_ns, entry.path, _occupied(state.st_size)))
                held += entries[-1][2]
            entries.sort()
            for _, path, occupied in entries:
                if held + _occupied(size) <= KEEP * self.limit:
                    break
                if not path.endswith(".tmp"):
                    Path(path).unlink(missing_ok=True)
                    held -= occupied
            with self._count() as total:
                total[0] = held + max(0, total[0] - before)  # and what others wrote since
        return True

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        for number in range(256):
            with os.scandir(self.folder / f"{number:02x}") as entries:
                yield from entries


def _occupied(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def parse_size(text: str, what: str) -> int:
    """ "500G" -> 500,000,000,000 bytes; K, M, G and T are powers of a thousand. Raises ValueError; `what` says the size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.strip().upper())
    if not found:
        raise ValueError(f"{what} is {text!r}; say how many bytes the cache may hold, such as 500G")
    return int(float(found[1]) * UNITS[found[2]])
