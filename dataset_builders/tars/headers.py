"""The members of a tar, from its headers alone: where each lies, and where the tar stops being one."""

import os
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.storage import files
from pipeline.storage.remote import is_url

COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
}
BLOCK = 512  # bytes; a header is one, and data begin and end on multiples of it


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar."""

    name: str  # bytes that are not UTF-8 as lone surrogates
    offset: int  # of its first byte in the tar
    size: int  # bytes
    problem: RejectedError | None = None  # why its content is not those bytes


def check_plain(file: str) -> None:
    """Raises ValueError for a compressed tar, OSError if it cannot be read."""
    if is_url(file):
        head = files.read_range(file, 0, 8)
    else:
        with open(file, "rb") as opened:
            head = opened.read(8)
    for magic, (name, unpack) in COMPRESSIONS.items():
        if head.startswith(magic):
            raise ValueError(
                f"{file} is compressed ({name}), so a clip in it has no byte range that could be read alone; "
                f"unpack it with {unpack} and index the result"
            )


def read_members(file: str | os.PathLike[str]) -> tuple[list[Member], RejectedError | None]:
    """As `members_of`, of a local file; see remote_tar.py for URLs. Raises OSError."""
    with open(file, "rb") as opened:
        return members_of(opened, os.path.getsize(file))


def members_of(opened: BinaryIO, size: int) -> tuple[list[Member], RejectedError | None]:
    """The files in a tar of `size` bytes -> (members in their order, what is wrong with the tar as a whole).

    USTAR, GNU (long names, base-256 sizes) and pax. Of a tar that was cut off or damaged, the members before the damage.
    Links and sparse files come with a problem: their content is not a run of bytes. Raises OSError.
    """
    members: list[Member] = []
    try:
        with tarfile.open(fileobj=opened, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            end = 0
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps them all, at about 1 kB each
                if tar.offset <= end or info.size < 0:
                    raise tarfile.ReadError("its headers lead backwards")
                end = tar.offset
                member = _member(info, size)
                if member is not None:
                    members.append(member)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        place = f"after member {members[-1].name!r}" if members else "from its beginning on"
        reason = Reason.TRUNCATED if members and members[-1].offset + members[-1].size > size else Reason.DAMAGED
        return members, RejectedError(reason, f"the tar cannot be read {place}: {error}")
    return members, _ending(opened, end, size)


def _member(info: tarfile.TarInfo, tar_size: int) -> Member | None:
    if info.islnk() or info.issym():
        link = RejectedError(Reason.UNSUPPORTED, f"it is a link to {info.linkname!r}, not a file of its own")
        return Member(info.name, info.offset_data, 0, link)
    if not info.isreg():
        return None  # a directory or a device
    problem: RejectedError | None = None
    if info.issparse():
        problem = RejectedError(Reason.UNSUPPORTED, "it is stored as a sparse file, not as a run of bytes")
    elif info.offset_data + info.size > tar_size:
        there = max(0, tar_size - info.offset_data)
        problem = RejectedError(Reason.TRUNCATED, f"the tar ends after {there} of its {info.size} bytes")
    return Member(info.name, info.offset_data, info.size, problem)


def _ending(opened: BinaryIO, end: int, size: int) -> RejectedError | None:
    """What follows the last member: tarfile stops at anything that is no header, without a word."""
    if end >= size:
        detail = f"the tar ends at byte {size} without an end mark: it was cut off, and members may be missing"
        return RejectedError(Reason.TRUNCATED, detail)
    opened.seek(end)
    if any(opened.read(BLOCK)):
        return RejectedError(Reason.DAMAGED, f"there is no valid header at byte {end} of {size}: what follows cannot be read")
    while data := opened.read(1 << 20):
        if data.count(0) != len(data):
            detail = f"the tar ends at byte {end}, but data follow (tars joined with cat?): they are not read"
            return RejectedError(Reason.DAMAGED, detail)
    return None
