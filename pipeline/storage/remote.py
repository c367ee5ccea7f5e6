"""Requests to object storage: bounded in time, retried where that may help, and explained where it does not.

URLs go through fsspec, whose protocols (s3, gs, https ...) each need their own package. Its file systems retry by themselves,
in nested loops and without a bound (s3fs 5 x 5 times around botocore's own five); here they try once, and `patiently` does
the rest, so that every request that is made is known and the time it may take is the caller's.
"""

import errno
import math
import os
import random
import re
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.console import complain

if TYPE_CHECKING:
    import fsspec  # where it is needed only: asyncio comes with it, a fifth of the imports of a process that decodes

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
TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "RequestThrottled"}
CREDENTIALS = "(aws sso login, a new session token, AWS_PROFILE or the like)"
# S3's codes whose own text leaves open what to do; their statuses are 400 and 403, and 301 of a redirect
ADVICE = dict.fromkeys(
    ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"),
    f"the credentials have expired; renew them {CREDENTIALS}",
)
ADVICE |= dict.fromkeys(
    ("InvalidToken", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSecurity", "SignatureDoesNotMatch", "AuthFailure"),
    f"the credentials are not valid there; check them {CREDENTIALS}, and that the endpoint is theirs",
)
ADVICE |= dict.fromkeys(
    ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    "the bucket is in another region; set AWS_DEFAULT_REGION",
)
ADVICE |= {
    "RequestTimeTooSkewed": "the clock of this machine and the server's are too far apart; set it (NTP)",
    "NoSuchBucket": "the bucket does not exist; check its name, and the endpoint",
    "InvalidObjectState": "the object is in an archive; restore it first",
}
UNTOLD = ("", "301", "400", "401", "403")  # botocore's codes of answers without a body, as all to a HEAD are
NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),  # botocore
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "RefreshError", "DefaultCredentialsError"),
}
QUIET, BETWEEN_COMPLAINTS = 10.0, 30.0  # seconds in which a long wait is not mentioned: at its beginning; since it was
RENEWAL = 5.0  # seconds, at least, between two looks for renewed credentials
PERMANENT_ERRNO = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL}


class StorageError(OSError):
    """Bytes that could not be read or written: where, what is wrong and what to do.

    `transient`: the storage did not answer properly for as long as it was given; a later attempt may succeed. Otherwise the
    same request would fail again, until somebody puts right what is wrong: an object that is missing, or forbidden.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class WrongBytesError(StorageError):
    """The storage answered; what it holds there is not what the manifest says."""


class RemovedClipError(WrongBytesError):
    """The manifest says that the clip's bytes were removed."""


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, also one that `Path` has made `s3:/bucket` of."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)) is not None


def as_url(path: str | os.PathLike[str]) -> str:
    """A URL with two slashes and none at its end; `Path("s3://bucket/x")` has only one."""
    protocol, _, rest = os.fspath(path).partition(":")
    return f"{protocol}://{rest.strip('/')}"


def as_given(path: str | os.PathLike[str]) -> str:
    """A path, or a URL with both of its slashes, for people and for config.json."""
    return as_url(path) if is_url(path) else os.fspath(path)


def on_disk(text: str) -> Path:
    """A path of a command line that has to be on a disk; argparse says what is wrong with a URL."""
    if is_url(text):
        raise ArgumentTypeError(f"{text} is a URL; a path on a disk is needed")
    return Path(text)


_filesystems: dict[tuple[int, str], "fsspec.AbstractFileSystem"] = {}
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def filesystem(url: str) -> "fsspec.AbstractFileSystem":
    """The file system of a URL's protocol, one for all threads of a process; fsspec's do not survive a fork.

    Endpoint and credentials are the environment's (AWS_ENDPOINT_URL, AWS_PROFILE ...) and fsspec's own configuration
    (FSSPEC_S3_ANON=true ...). Raises StorageError for a protocol that is not known or not installed.
    """
    protocol = url.partition("://")[0]
    key = os.getpid(), protocol
    found = _filesystems.get(key)
    if found is None:
        with _lock:
            found = _filesystems[key] = _filesystems.get(key) or _connect(protocol)
    return found


def forget_connections() -> None:
    """Connect anew at the next request, for instance because the environment names another endpoint."""
    with _lock:
        _filesystems.clear()


_looked = -math.inf


def _look_for_renewed_credentials() -> None:
    """Libraries read a file of credentials once; whoever renews it wants it read again."""
    global _looked
    if time.monotonic() - _looked > RENEWAL:
        _looked = time.monotonic()
        forget_connections()


def _connect(protocol: str) -> "fsspec.AbstractFileSystem":
    import fsspec

    configured = fsspec.config.conf.get(protocol, {})
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        mine: dict[str, Any] = {"connect_timeout": STALL, "read_timeout": STALL, "max_pool_connections": MAX_CONNECTIONS}
        mine["retries"] = {"total_max_attempts": 1, "mode": "standard"}
        options["config_kwargs"] = mine | configured.get("config_kwargs", {})
    elif protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        options["client_kwargs"] = {"timeout": timeout} | configured.get("client_kwargs", {})
    try:
        found = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise StorageError(f"{protocol}:// URLs need a package that is not here: {error}") from error
    except ValueError as error:
        raise StorageError(f"{protocol}:// URLs are not known to fsspec: {error}") from error
    found.retries = 1  # of s3fs and gcsfs
    return found


def call(url: str, method: str, *arguments: Any, timeout: float, **options: Any) -> Any:
    """Call a method of the URL's file system, from any thread, and give it up after `timeout` seconds.

    File systems that are not asynchronous (memory, sftp ...) have no time limit but their own.
    """
    files = filesystem(url)
    if not files.async_impl:
        return getattr(files, method)(*arguments, **options)
    import fsspec.asyn

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
            error = _told_more(error, url)
            transient, why = diagnosis(error)
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (tries - 1)) * random.uniform(0.5, 1.5)
            if not transient:
                status, _ = _status(error)
                if status in (400, 401, 403) or _is_named(error, NO_CREDENTIALS):
                    _look_for_renewed_credentials()
                raise (WrongBytesError if status == 416 else StorageError)(f"{url}: {why}") from error
            if time.monotonic() + delay >= deadline:
                attempts = f"{tries} attempt{'s' if tries > 1 else ''} in {time.monotonic() - began:.0f} s"
                raise StorageError(
                    f"{url}: no proper answer after {attempts}, the last: {why}; check the network, the endpoint and whether "
                    "the storage limits the rate of requests",
                    transient=True,
                ) from error
            left = deadline - time.monotonic()
            _mention(f"{url}: no proper answer yet ({why}); trying for {left:.0f} s more", began, deadline)
        time.sleep(delay)


_mentioned = -math.inf


def _mention(text: str, began: float, deadline: float) -> None:
    """Of whole files, which are waited for for minutes; clips are `StorageWatch`'s to speak of."""
    global _mentioned
    now = time.monotonic()
    if deadline - began > 2 * PATIENCE and now - began >= QUIET and now - _mentioned > BETWEEN_COMPLAINTS:
        _mentioned = now
        complain(text)


def _told_more(error: Exception, url: str) -> Exception:
    """Of an answer without a body, S3's to a HEAD, the one to a GET, which says why."""
    status, code = _status(error)
    if status in (301, 400, 401, 403) and code in UNTOLD and not isinstance(error, StorageError):
        try:
            call(url, "cat_file", url, start=0, end=1, timeout=STALL)
        except Exception as fuller:
            if _status(fuller)[0] == status:
                return fuller
    return error


def _is_named(error: BaseException, names: set[str]) -> bool:
    return any(kind.__name__ in names for cause in _chain(error) for kind in type(cause).__mro__)


def diagnosis(error: BaseException) -> tuple[bool, str]:
    """(whether trying again may help, what is wrong and what to do about it) of an error below fsspec."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if re.search(r"certificate.verify.failed|WRONG_VERSION_NUMBER|CERTIFICATE", text, re.IGNORECASE):
        return False, (
            f"no secure connection: {text}; check the endpoint's protocol and name, this machine's clock, and the certificates "
            "that it trusts (AWS_CA_BUNDLE, SSL_CERT_FILE)"
        )
    if _is_named(error, TRANSIENT_NAMES):  # before its status: aiohttp gives a truncated body a 400
        cause = getattr(error, "kwargs", {}).get("error")  # botocore's words leave out which host, and why
        return True, f"{type(error).__name__}: {text}{f' ({cause})' if cause and str(cause) not in text else ''}"
    status, code = _status(error)
    if status is None and isinstance(error, FileNotFoundError):
        status = 404
    elif status is None and isinstance(error, PermissionError):
        status = 403
    if code in ADVICE:
        return False, f"{ADVICE[code]} ({code}: {text})"
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
        transient = (status >= 500 and status != 501) or status in (408, 425, 429) or code in TRANSIENT_CODES
        return transient, f"{text} ({f'{code}, ' if code not in ('', str(status)) else ''}{status})"
    if _is_named(error, NO_CREDENTIALS):
        what = f"no credentials were found ({text}); set AWS_PROFILE or the like, or FSSPEC_S3_ANON=true for a public bucket"
        return False, what
    if isinstance(error, TimeoutError):
        return True, f"no answer in time ({text})"
    return isinstance(error, OSError) and error.errno not in PERMANENT_ERRNO, f"{type(error).__name__}: {text}"


def is_missing(error: StorageError) -> bool:
    """Whether the storage answered that there is no such object, and not that there is no such bucket."""
    cause = error.__cause__
    return isinstance(cause, FileNotFoundError) and _status(cause)[1] != "NoSuchBucket"


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
                "use a server that does (nginx, Caddy, any object storage), or copy the dataset to a local disk"
            )
        return data

    return patiently(attempt, url, deadline)
