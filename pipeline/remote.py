"""Requests to object storage: bounded in time, retried where that may help, and explained where it does not.

URLs go through fsspec, whose protocols (s3, gs, https ...) each need their own package. Its file systems retry by themselves,
in nested loops and without a bound (s3fs 5 x 5 times around botocore's own five); here they try once, and `patiently` does
the rest, so that every request that is made is known and the time it may take is the caller's.
"""

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import fsspec
import fsspec.asyn

Result = TypeVar("Result")

PATIENCE = 40.0  # seconds for one request with all its repetitions: less than a clip's 60, after which its process is killed
STALL = 15.0  # seconds without a byte, or without a connection, after which an attempt is given up
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0  # seconds between attempts, doubling
MAX_CONNECTIONS = 64  # of a process to one server; botocore's default of 10 would queue the read-ahead

# errors of the libraries below fsspec, by name: they are optional packages, and one that is not there raises nothing
TRANSIENT_NAMES = {
    *("HTTPClientError", "ConnectionError", "ResponseParserError"),  # botocore: time-out, no connection; a body that is no XML
    *("ClientConnectionError", "ClientPayloadError", "BadHttpMessage"),  # aiohttp: disconnect; truncated body; no HTTP
    *("IncompleteRead", "ProtocolError"),  # urllib3, http.client
}
TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "RequestTimeTooSkewed"}
PERMANENT_ERRNO = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL}


class StorageError(OSError):
    """Bytes that could not be read or written: where, what is wrong and what to do.

    `transient`: the storage did not answer properly for as long as it was given; a later attempt may succeed. Otherwise the
    same request would fail again: an object that is missing, forbidden, or other than the manifest says.
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, also one that `Path` has made `s3:/bucket` of."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)) is not None


def as_url(path: str | os.PathLike[str]) -> str:
    """A URL with two slashes and none at its end; `Path("s3://bucket/x")` has only one."""
    protocol, _, rest = os.fspath(path).partition(":")
    return f"{protocol}://{rest.strip('/')}"


_filesystems: dict[tuple[int, str], fsspec.AbstractFileSystem] = {}
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def filesystem(url: str) -> fsspec.AbstractFileSystem:
    """The file system of a URL's protocol, one for all threads of a process; fsspec's do not survive a fork.

    Endpoint and credentials are the environment's (AWS_ENDPOINT_URL, AWS_PROFILE ...) and fsspec's own configuration
    (FSSPEC_S3_ANON=true ...). Raises StorageError for a protocol that is not known or not installed.
    """
    protocol = url.partition("://")[0]
    key = os.getpid(), protocol
    found = _filesystems.get(key)
    if found is None:
        with _lock:
            found = _filesystems.get(key)
            if found is None:
                found = _filesystems[key] = _connect(protocol)
    return found


def forget_connections() -> None:
    """Connect anew at the next request, for instance because the environment names another endpoint."""
    with _lock:
        _filesystems.clear()


def _connect(protocol: str) -> fsspec.AbstractFileSystem:
    configured = fsspec.config.conf.get(protocol, {})
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        mine = {
            "connect_timeout": STALL,
            "read_timeout": STALL,
            "max_pool_connections": MAX_CONNECTIONS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }
        options["config_kwargs"] = mine | configured.get("config_kwargs", {})
    elif protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        options["client_kwargs"] = {"timeout": timeout} | configured.get("client_kwargs", {})
    try:
        found = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise StorageError(f"{protocol}:// URLs need a package that is not here: {error}", transient=False) from error
    except ValueError as error:
        raise StorageError(f"{protocol}:// URLs are not known to fsspec: {error}", transient=False) from error
    found.retries = 1  # of s3fs and gcsfs
    return found


def call(url: str, method: str, *arguments: Any, timeout: float, **options: Any) -> Any:
    """Call a method of the URL's file system, from any thread, and give it up after `timeout` seconds.

    File systems that are not asynchronous (memory, sftp ...) have no time limit but their own.
    """
    files = filesystem(url)
    if not files.async_impl:
        return getattr(files, method)(*arguments, **options)
    return fsspec.asyn.sync(files.loop, getattr(files, f"_{method}"), *arguments, timeout=timeout, **options)


def patiently(attempt: Callable[[float], Result], url: str, deadline: float) -> Result:
    """Call `attempt(time limit in seconds)` until it succeeds, fails for good, or `deadline` (time.monotonic) has come.

    Delays grow exponentially, with jitter, so that a thousand ranks do not come back together. An attempt gets half of the
    time that is left, so that one that hangs leaves time for another. Raises StorageError.
    """
    began, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            return attempt(max(1.0, (deadline - time.monotonic()) / 2))
        except Exception as error:
            if isinstance(error, StorageError):
                raise
            transient, why = diagnosis(error)
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (tries - 1)) * random.uniform(0.5, 1.5)
            if not transient:
                raise StorageError(f"{url}: {why}", transient=False) from error
            if time.monotonic() + delay >= deadline:
                attempts = f"{tries} attempt{'s' if tries > 1 else ''} in {time.monotonic() - began:.0f} s"
                raise StorageError(
                    f"{url}: no proper answer after {attempts}, the last: {why}; check the network, the endpoint and whether "
                    "the storage limits the rate of requests",
                    transient=True,
                ) from error
        time.sleep(delay)


def diagnosis(error: BaseException) -> tuple[bool, str]:
    """(whether trying again may help, what is wrong and what to do about it) of an error below fsspec."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if any(kind.__name__ in TRANSIENT_NAMES for cause in _chain(error) for kind in type(cause).__mro__):
        return True, f"{type(error).__name__}: {text}"  # before its status: aiohttp gives a truncated body a 400
    status, code = _status(error)
    if status is None and isinstance(error, FileNotFoundError):
        status = 404
    elif status is None and isinstance(error, PermissionError):
        status = 403
    if status == 404:
        return False, "it does not exist (404); check the name, and that the whole dataset was uploaded"
    if status in (401, 403) and code not in TRANSIENT_CODES:
        return False, (
            f"access is denied ({status}: {text}); check the credentials (AWS_PROFILE or the like; FSSPEC_S3_ANON=true for a "
            "public bucket) and the bucket's policy. Where listing is not permitted, S3 says this of missing objects, too"
        )
    if status == 416:
        return False, "it ends before these bytes (416): it is not the file that the manifest was written for"
    if status is not None:
        return (status >= 500 and status != 501) or status in (408, 425, 429) or code in TRANSIENT_CODES, f"{text} ({status})"
    if type(error).__name__ == "NoCredentialsError":
        return False, "no credentials were found; set AWS_PROFILE or the like, or FSSPEC_S3_ANON=true for a public bucket"
    if isinstance(error, TimeoutError):
        return True, f"no answer in time ({text})"
    return isinstance(error, OSError) and error.errno not in PERMANENT_ERRNO, f"{type(error).__name__}: {text}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    for _ in range(5):
        if error is not None:
            yield error
            error = error.__cause__


def _status(error: BaseException) -> tuple[int | None, str]:
    """(HTTP status, S3's error code), as far as they are known."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int):
                return status, str(response.get("Error", {}).get("Code", ""))
        for name in ("status", "code"):  # aiohttp, gcsfs
            status = getattr(cause, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return status, ""
    return None, ""


def fetch_range(url: str, start: int, stop: int, deadline: float) -> bytes:
    """Bytes [start, stop) of an object, fewer where it ends before. Raises StorageError."""

    def attempt(timeout: float) -> bytes:
        data = call(url, "cat_file", url, start=start, end=stop, timeout=timeout)
        if len(data) > stop - start:
            raise StorageError(
                f"{url}: the server sent {len(data)} bytes where {stop - start} were asked for: it does not serve byte ranges; "
                "use a server that does (nginx, Caddy, any object storage), or copy the dataset to a local disk",
                transient=False,
            )
        return data

    return patiently(attempt, url, deadline)
