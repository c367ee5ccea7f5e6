"""Why an input was not taken: a closed list of reasons, and the exception that carries one with its detail."""

from collections.abc import Sequence
from enum import StrEnum


class Reason(StrEnum):
    """The `reason` column of rejects.parquet."""

    UNREADABLE = "unreadable"  # the operating system cannot read the file: permissions, broken link, vanished, I/O error
    NOT_VIDEO = "not_video"  # empty, text, a still image: nothing that FFmpeg takes for a video container
    NO_VIDEO_STREAM = "no_video_stream"  # sound only
    UNSUPPORTED = "unsupported"  # a video, but of a codec, colour matrix or layout that the preset cannot take
    TOO_SHORT = "too_short"  # fewer decoded frames than --min-frames
    TOO_SMALL = "too_small"  # less than 16 pixels on a side after scaling
    TRUNCATED = "truncated"  # the header promises clearly more than the file holds
    DAMAGED = "damaged"  # packets or frames that do not decode
    TIMEOUT = "timeout"  # took longer than --time-limit
    OUT_OF_MEMORY = "out_of_memory"  # took more than --memory-limit
    CRASH = "crash"  # took the worker process down, or a fault in our own code
    ENCODE_FAILED = "encode_failed"  # FFmpeg could not encode it
    VERIFY_FAILED = "verify_failed"  # the finished clip does not decode to the frames that went in


# trouble of the machine that day, as far as anyone can tell: another day, limit or program may take the file
MACHINE = frozenset(
    (Reason.UNREADABLE, Reason.TIMEOUT, Reason.OUT_OF_MEMORY, Reason.CRASH, Reason.ENCODE_FAILED, Reason.VERIFY_FAILED)
)


def retried(names: Sequence[str] | None) -> frozenset[Reason]:
    """--retry REASON ... -> the reasons whose rejects are tried again; raises ValueError for one that is none."""
    if names is None:
        return MACHINE
    if unknown := [name for name in names if name not in (*Reason, "all", "none")]:
        raise ValueError(f"--retry {unknown[0]!r} is no reason of rejects; allowed are all, none, {', '.join(Reason)}")
    if "none" in names:
        if len(names) > 1:
            raise ValueError(f"--retry {' '.join(names)}: none goes without others")
        return frozenset()
    return frozenset(Reason) if "all" in names else MACHINE | {Reason(name) for name in names}


class RejectedError(Exception):
    """Raised anywhere below a clip; it becomes the clip's row in rejects.parquet."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # both in args, or the exception could not be pickled
        self.reason = reason
        self.detail = detail
