"""Byte ranges of shards, on local disk or behind a URL."""

import os
import threading
from pathlib import Path

import fsspec


class ShardReader:
    """Reads a clip's bytes out of its shard; safe to share between threads.

    Local shards stay open and are read with `pread`, which needs no lock and no seek. URLs go through fsspec, whose
    protocols (s3, gs, http ...) each need their own package.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset`. Raises OSError if the shard cannot be read or ends before them."""
        if "://" in shard:
            data = fsspec.open(shard).fs.cat_file(shard, start=offset, end=offset + size)
        else:
            data = os.pread(self._open(shard), size, offset)
        if len(data) != size:
            raise OSError(f"{shard} ends at byte {offset + len(data)}; {size} bytes at {offset} were expected")
        return data

    def close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _open(self, shard: str) -> int:
        with self._lock:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(self.root / shard, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[shard]
