"""Whole files, on a local disk or behind a URL: written whole or not at all, read, mirrored.

Object storage has no rename and needs none: an object appears when its upload is complete. Mirrors are not fsspec's
`filecache`, which names a file after its URL alone: a new version would take the place of a running job's.
"""

import base64
import contextlib
import errno
import hashlib
import os
import platform
import shutil
import stat as file_modes
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.storage import remote
from pipeline.storage.remote import StorageError

UPLOAD_PATIENCE = 600.0  # seconds for one upload or download of a whole file, with all its repetitions
SLOWEST = 1_000_000  # bytes per second of a connection over which shards can be uploaded
PART = 50 << 20  # bytes: s3fs uploads files of 100 MiB and more in such parts, and S3 then states the MD5 of their MD5s
ORIGIN = "origin.url"  # in a mirrored dataset: where its shards are


def write_durably(target: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that, whatever happens, it is there whole or not at all. Raises OSError."""
    if remote.is_url(target):
        url = _writable(target)
        _patiently("pipe_file", url, url, data)
        return
    path = Path(target)
    # a name of its own: two processes that write the same, by mistake, do so one after the other
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


Write = Callable[[BinaryIO], None]


def write_whole(target: Path, write: Write | Mapping[str, Write]) -> None:
    """A file, written by `write`; or a folder of several, by name. Nothing has a name before it is whole: a process that is
    killed leaves nothing (but on NFS and others without nameless files a .writing-*). A file takes the place of one that is
    there, a folder does not. Raises OSError."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with contextlib.ExitStack() as opened:
        if not isinstance(write, Mapping):
            _name(opened.enter_context(_nameless(target.parent, write)), temporary)
            try:
                os.replace(temporary, target)
            except OSError:  # a folder has that name
                temporary.unlink()
                raise
        else:
            files = {name: opened.enter_context(_nameless(target.parent, each)) for name, each in write.items()}
            temporary.mkdir()
            try:
                for name, file in files.items():
                    _name(file, temporary / name)
                sync_directory(temporary)
                temporary.rename(target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    sync_directory(target.parent)


@contextlib.contextmanager
def _nameless(folder: Path, write: Write) -> Iterator[BinaryIO]:
    """An open file that has been written: without a name or, where the file system has no such, under one that goes."""
    try:
        file = os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):  # NFS and others
            raise
        file = (folder / f".writing-{uuid.uuid4().hex}").open("w+b")
    with file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            yield file
        finally:
            if isinstance(file.name, str):
                Path(file.name).unlink(missing_ok=True)


def _name(file: BinaryIO, name: Path) -> None:
    if isinstance(file.name, str):
        Path(file.name).rename(name)
    else:  # with a folder's descriptor, which an absolute path has no use for, os.link follows links
        os.link(f"/proc/self/fd/{file.fileno()}", name, src_dir_fd=file.fileno(), follow_symlinks=True)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def upload(file: Path, url: str) -> None:
    """Copy a local file to a URL, in parts where it is large, and check the size that arrived. Raises OSError."""
    url = _writable(url)
    expected = file.stat().st_size
    _patiently("put_file", url, str(file), url, patience=UPLOAD_PATIENCE + 2 * expected / SLOWEST)
    arrived = size(url)
    if arrived != expected:
        raise StorageError(f"{url}: {arrived} of {expected} bytes arrived; run it again", transient=True)


def download(url: str, file: Path) -> None:
    """Copy a whole object to a local file, which is cut off if this fails. Raises OSError."""
    url = remote.as_url(url)
    patience = UPLOAD_PATIENCE + 2 * (size(url) or 0) / SLOWEST
    _patiently("get_file", url, url, str(file), patience=patience)


def listed(url: str) -> list[str]:
    """The names, relative to it, of all objects below a URL; none if there is no such place. Raises OSError."""
    return sorted(states(url))


def states(url: str) -> dict[str, dict[str, Any]]:
    """The same names -> size, and whatever names the version (ETag or the like), as `is_copy` takes it. Raises OSError."""
    url = remote.as_url(url)
    # the file system answers with paths of its own, without the protocol
    root = remote.filesystem(url)._strip_protocol(url).rstrip("/") + "/"
    found = _patiently("find", url, url, detail=True)
    return {path.removeprefix(root): _version(info) for path, info in found.items() if path.startswith(root)}


def is_copy(url: str, file: Path, state: Mapping[str, Any] | None = None) -> bool:
    """Whether an object holds the bytes of a local file; False if there is none. Raises OSError.

    By its size, and the MD5 that the storage states: S3's ETag, of the whole or of its parts, or Google's md5Hash. Where it
    states none, or another (ETags of encrypted objects are no MD5), the object is read back. `state` is what `states` says.
    """
    url = remote.as_url(url)
    state = state or stat(url)
    if state is None or state["size"] != file.stat().st_size:
        return False
    stated = str(state.get("ETag", "")).strip('"') or state.get("md5Hash")
    with file.open("rb") as opened:
        if stated and stated in _digests(opened):
            return True
        opened.seek(0)
        starts = range(0, state["size"], PART)
        return all(opened.read(PART) == read_range(url, start, min(start + PART, state["size"])) for start in starts)


def read(target: str | os.PathLike[str]) -> bytes:
    """A whole file. Raises OSError."""
    if not remote.is_url(target):
        return Path(target).read_bytes()
    url = remote.as_url(target)
    return _patiently("cat_file", url, url)


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of an object, fewer where it ends before. Raises OSError."""
    return remote.fetch_range(url, start, stop, time.monotonic() + UPLOAD_PATIENCE) if stop > start else b""


def size(target: str | os.PathLike[str]) -> int | None:
    """Bytes of a file, None if it is not there. Raises OSError if that cannot be found out."""
    if not remote.is_url(target):
        path = Path(target)
        return path.stat().st_size if path.is_file() else None
    state = stat(os.fspath(target))
    return None if state is None else int(state["size"])


def stat(url: str) -> dict[str, Any] | None:
    """Size, and whatever names the version, of an object; None if it is not there. Raises OSError."""
    url = remote.as_url(url)
    try:
        info = _patiently("info", url, url)
    except StorageError as error:
        if remote.is_missing(error):
            return None
        raise
    if info.get("type") == "directory" or info.get("size") is None:
        return None
    return _version(info)


def name_of(url: str, state: Mapping[str, Any]) -> str:
    """A name for what one version of an object is kept under; `state` is what `stat` says."""
    return hashlib.blake2b(repr((url, sorted(state.items()))).encode(), digest_size=16).hexdigest()


def exists(target: str | os.PathLike[str]) -> bool:
    """Whether a file is there. Raises OSError if that cannot be found out."""
    return size(target) is not None


def remove(target: str | os.PathLike[str]) -> None:
    """Remove a file; one that is not there is no error. Raises OSError."""
    if not remote.is_url(target):
        Path(target).unlink(missing_ok=True)
        return
    url = _writable(target)
    if exists(url):
        _patiently("rm_file", url, url)


def fetch_manifest(url: str | os.PathLike[str]) -> Path:
    """Mirror a remote dataset's manifest -> a local folder with manifest.parquet, dataset.json and `origin.url`.

    The folder lies in the user's cache and is named after the URL and the manifest's state (ETag or the like, size), so that a
    new version makes a new one and a running job keeps its own; several processes may ask for it at once. Its shards stay
    where they are: `ShardReader` follows `origin.url`. Raises ValueError if there is no dataset, OSError if it cannot be read.
    """
    url = remote.as_url(url)
    manifest = f"{url}/manifest.parquet"
    home = cache_folder() / "mirrors"
    for _ in range(3):
        if (state := stat(manifest)) is None:
            try:
                remote.fetch_range(manifest, 0, 1, time.monotonic() + remote.PATIENCE)
            except StorageError as error:
                if not remote.is_missing(error):  # the bucket is, which the answer to a HEAD does not say
                    raise
            raise ValueError(f"{url} is no dataset: it has no manifest.parquet; upload the folder that the build command made")
        folder = home / name_of(url, state)
        if (folder / "manifest.parquet").exists():
            return folder
        temporary = home / f".{folder.name}.{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
        try:
            (temporary / ORIGIN).write_text(url)
            (temporary / "manifest.parquet").write_bytes(read(manifest))
            if exists(f"{url}/dataset.json"):
                (temporary / "dataset.json").write_bytes(read(f"{url}/dataset.json"))
            if stat(manifest) != state or (temporary / "manifest.parquet").stat().st_size != state["size"]:
                continue  # it was replaced meanwhile
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
            return folder  # ours, or of a process that was faster
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise ValueError(f"{manifest} changes while it is read; wait for the build that writes it")


def cache_folder() -> Path:
    """Where this user's files may lie that can be made again; it is made. Raises OSError if there is no such place.

    Containers run as users that have no home, or one that cannot be written: then it is a folder of this user's alone among
    the temporary files. (What is compiled lies here and is loaded: nobody else may write to it.)
    """
    if named := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(named, "tubecell")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    with suppress(OSError, RuntimeError):  # RuntimeError: no home at all
        folder = Path.home() / ".cache" / "tubecell"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir(), f"tubecell-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not file_modes.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone; set XDG_CACHE_HOME to a folder that is")
    return folder


def origin(folder: Path) -> str | None:
    """Where the shards of a mirrored dataset are; None for a folder that holds its own."""
    file = folder / ORIGIN
    return file.read_text().strip() if file.exists() else None


def _version(info: Mapping[str, Any]) -> dict[str, Any]:
    names = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "updated", "created", "size")
    return {name: str(info[name]) if name != "size" else int(info[name]) for name in names if info.get(name) is not None}


def _digests(opened: BinaryIO) -> tuple[str, str, str]:
    """What storages say of a file's bytes: ETag of the whole, ETag of parts, md5Hash."""
    whole, parts = hashlib.md5(usedforsecurity=False), []
    while data := opened.read(PART):
        whole.update(data)
        parts.append(hashlib.md5(data, usedforsecurity=False).digest())
    of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return whole.hexdigest(), f"{of_parts}-{len(parts)}", base64.b64encode(whole.digest()).decode()


def _writable(target: str | os.PathLike[str]) -> str:
    url = remote.as_url(target)
    if url.startswith(("http://", "https://")):
        raise StorageError(f"{url}: web servers are only read from; write to s3:// or the like", transient=False)
    return url


def _patiently(method: str, url: str, *arguments: Any, patience: float = UPLOAD_PATIENCE, **options: Any) -> Any:
    deadline = time.monotonic() + patience
    return remote.patiently(lambda limit: remote.call(url, method, *arguments, timeout=limit, **options), url, deadline)
