"""Tars behind URLs: their headers are read in short pieces, once a machine, and kept in the user's cache folder."""

import io
import json
from typing import Any

from dataset_builders.media.rejects import Reason, RejectedError
from dataset_builders.tars.headers import Member, members_of
from pipeline.storage import files

PIECE = 1 << 16  # bytes: the header of a clip and, before it, the small files beside it; what clips hold is passed over


def read_remote_members(url: str) -> tuple[list[Member], RejectedError | None]:
    """As tar_headers.read_members, of an object behind a URL; raises OSError, also if there is none.

    About one request a clip. What they said is kept under a name made of the URL and the object's state (ETag, size).
    """
    state = files.stat(url)
    if state is None:
        raise FileNotFoundError(f"{url} does not exist")
    kept = files.cache_folder() / "tars" / f"{files.name_of(url, state)}.json"
    if kept.exists():
        content = json.loads(kept.read_bytes())
        members = [Member(name, offset, size, _rejected(why)) for name, offset, size, why in content["members"]]
        return members, _rejected(content["fault"])
    with io.BufferedReader(RangedFile(url, state["size"]), PIECE) as opened:
        members, fault = members_of(opened, state["size"])
    entries = [(member.name, member.offset, member.size, _told(member.problem)) for member in members]
    kept.parent.mkdir(parents=True, exist_ok=True)
    files.write_durably(kept, json.dumps({"members": entries, "fault": _told(fault)}).encode())
    return members, fault


def _told(error: RejectedError | None) -> tuple[str, str] | None:
    return (str(error.reason), error.detail) if error else None


def _rejected(told: list[str] | None) -> RejectedError | None:
    return RejectedError(Reason(told[0]), told[1]) if told else None


class RangedFile(io.RawIOBase):
    """An object behind a URL as a file that can only be read: every read is one request."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._place = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = max(self._place, min(self._place + len(buffer), self._size))
        data = files.read_range(self._url, self._place, stop)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
