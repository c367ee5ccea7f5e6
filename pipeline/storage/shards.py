"""Clips out of shards, on local disk or behind a URL, checked against the manifest.

fsspec's files and block caches are not used: they read ahead of a position in one file, and know neither clips nor hashes.
"""

import errno
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.storage import files, remote
from pipeline.storage.clip_cache import ClipCache
from pipeline.storage.manifest import Clip, content_hash
from pipeline.storage.read_ahead import GET_BYTES, ReadAhead
from pipeline.storage.remote import PATIENCE, RemovedClipError, StorageError, WrongBytesError

SPARE_DESCRIPTORS = 200  # of the process's limit, for everything but shards
# what network file systems say of passing troubles, and FUSE's when their process is gone; EIO is a disk's bad sector, too
STALE = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH)
PROBE_BYTES = 1 << 16  # at the beginning of a shard, read to see whether it can be read
PROBE_PATIENCE = 5.0  # seconds for that behind a URL


class ShardReader:
    """Reads a clip's bytes out of its shard; safe to share between threads.

    Local shards stay open, as many as the system's limit allows, and are read with `pread`, which needs no lock and no seek.
    Behind URLs (`s3://`, `gs://`, `https://`, whatever fsspec has a package for) a clip is one ranged request, repeated for
    as long as `patience` says; clips that were announced with `prefetch` come in long ones, ahead of time.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        cache: ClipCache | None = None,
        patience: float = PATIENCE,
        read_ahead_bytes: int = 2 << 30,
        get_bytes: int = GET_BYTES,
        connections: int = 16,
    ) -> None:
        """`root` is the dataset, a folder, a mirrored manifest or a URL: shards are named relative to it.

        For remote shards: `cache` on a local disk (default: what TUBECELL_CACHE asks for, see `ClipCache`), seconds of
        `patience` for one clip, memory for what is read ahead, the longest request, and requests at the same time.
        Raises the soft limit of open files to the hard one.
        """
        base = remote.as_url(root) if remote.is_url(root) else files.origin(Path(root))
        self.root = base or os.fspath(root)
        self._remote, self._patience = base is not None, patience
        self._cache = cache or ClipCache.asked_for()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._most_open = max(1, hard - SPARE_DESCRIPTORS) if hard != resource.RLIM_INFINITY else 1 << 20
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._ahead = ReadAhead(self._fetch, self._keep, memory=read_ahead_bytes, get_bytes=get_bytes, connections=connections)

    def read(self, clip: Clip) -> bytes:
        """The encoded clip. Raises StorageError if its shard cannot be read, WrongBytesError if it holds other bytes than when
        it was built, RemovedClipError if these were removed.

        The check (0.03 ms for 300 kB) is what finds bit rot: decoders conceal most damage without a word. Bytes that fail it
        are fetched once more, past every cache.
        """
        if not clip.size:
            raise RemovedClipError(f"clip {clip.key} was removed from {self.root}")
        if self.is_remote(clip.shard):
            return self._read_remote(clip)
        try:
            data = self._read_local(clip)
        except OSError as error:
            if error.errno not in STALE:
                raise self._local_error(clip, error) from error
            data = b""
        if content_hash(data) != clip.content_hash:
            try:
                data = self._read_anew(clip)
            except OSError as error:
                raise self._local_error(clip, error) from error
            self._check(clip, data)
        return data

    def is_remote(self, shard: str) -> bool:
        """Whether it is behind a URL."""
        return "://" in shard or (self._remote and not shard.startswith("/"))

    def prefetch(self, clips: Iterable[Clip]) -> None:
        """Announce clips that will be read, each once, in this order; those in remote shards are fetched ahead.

        Clips of one call that lie side by side in a shard share a request: for `shuffle="window"`, give a lane's window as a
        whole. A clip that is read without an announcement costs a request of its own.
        """
        wanted = [clip for clip in clips if clip.size and self.is_remote(clip.shard)]
        if self._cache:
            wanted = [clip for clip in wanted if not self._cache.holds(clip.content_hash)]
        if wanted:
            self._ahead.announce(wanted)

    def can_read(self, shard: str) -> bool:
        """Whether the beginning of a shard can be read, from the storage itself and not from a cache: at once, or not."""
        try:
            if self.is_remote(shard):
                remote.fetch_range(self._url(shard), 0, 1, time.monotonic() + PROBE_PATIENCE)
                return True
            with open(os.path.join(self.root, shard), "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, PROBE_BYTES, os.POSIX_FADV_DONTNEED)
                return bool(file.read(1))
        except OSError:
            return False

    def counts(self) -> dict[str, int]:
        """Of remote shards, so far: requests ("gets", without repetitions), "bytes" they brought, clips found "cached" on the
        local disk, clips that were "ahead" in memory, and clips whose bytes were "wrong" at first."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        self._ahead.close()
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _url(self, shard: str) -> str:
        return shard if "://" in shard or shard.startswith("/") else f"{self.root}/{shard}"

    def _read_remote(self, clip: Clip) -> bytes:
        deadline = time.monotonic() + self._patience
        if (cached := self._cached(clip)) is not None:
            return cached
        if (data := self._ahead.take(clip, deadline)) is not None:
            self._note(ahead=1)
        elif (cached := self._cached(clip)) is not None:  # it may have been kept while we waited
            return cached
        else:
            data = self._fetch(clip.shard, clip.offset, clip.offset + clip.size, deadline)
        if content_hash(data) != clip.content_hash:
            self._note(wrong=1)
            data = self._fetch(clip.shard, clip.offset, clip.offset + clip.size, deadline)
            self._check(clip, data)
        if self._cache:
            self._cache.put(clip.content_hash, data)
        return data

    def _cached(self, clip: Clip) -> bytes | None:
        if self._cache is None or (data := self._cache.get(clip.content_hash)) is None:
            return None
        if content_hash(data) != clip.content_hash:
            self._cache.discard(clip.content_hash)
            return None
        self._note(cached=1)
        return data

    def _keep(self, clip: Clip, data: bytes) -> bool:
        """Put a clip that was read ahead into the cache, if there is one, rather than hold it in memory."""
        return self._cache is not None and content_hash(data) == clip.content_hash and self._cache.put(clip.content_hash, data)

    def _fetch(self, shard: str, start: int, stop: int, deadline: float | None = None) -> bytes:
        data = remote.fetch_range(self._url(shard), start, stop, deadline or time.monotonic() + self._patience)
        self._note(gets=1, bytes=len(data))
        return data

    def _check(self, clip: Clip, data: bytes) -> None:
        if len(data) < clip.size:
            where = self._url(clip.shard)
            raise WrongBytesError(
                f"{where}: it ends at byte {clip.offset + len(data)}, and clip {clip.key} lies at {clip.offset} to "
                f"{clip.offset + clip.size}: the shard is cut off; copy it again"
            )
        if content_hash(data) != clip.content_hash:
            raise WrongBytesError(
                f"{self._url(clip.shard)}: the {clip.size} bytes at {clip.offset} are not those of clip {clip.key} in the "
                "manifest: the shard is damaged, or of another build; copy it again"
            )

    def _note(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)

    def _local_error(self, clip: Clip, error: OSError) -> StorageError:
        hint = "; was the dataset moved or copied in part?" if isinstance(error, FileNotFoundError) else ""
        return StorageError(f"{self._url(clip.shard)}: {error.strerror}{hint}", transient=error.errno in STALE)

    def _read_local(self, clip: Clip) -> bytes:
        descriptor = self._descriptors.get(clip.shard)  # no lock: one look-up in a dict is atomic
        if descriptor is not None:
            return os.pread(descriptor, clip.size, clip.offset)
        descriptor = os.open(os.path.join(self.root, clip.shard), os.O_RDONLY | os.O_CLOEXEC)
        with self._lock:
            keep = clip.shard not in self._descriptors and len(self._descriptors) < self._most_open
            if keep:
                self._descriptors[clip.shard] = descriptor
        try:
            return os.pread(descriptor, clip.size, clip.offset)
        finally:
            if not keep:
                os.close(descriptor)

    def _read_anew(self, clip: Clip) -> bytes:
        """Past the open descriptor, which on a network file system can go stale."""
        with open(os.path.join(self.root, clip.shard), "rb", buffering=0) as file:
            return os.pread(file.fileno(), clip.size, clip.offset)
