"""The videos of a WebDataset tar, and what lies beside them: decoded where they lie and described for the manifest."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

from dataset_builders.media.clip import ClipRequest, Reject
from dataset_builders.media.decode_check import manifest_row, verify
from dataset_builders.media.rejects import Reason, RejectedError
from dataset_builders.tars.headers import Member, read_members
from dataset_builders.tars.remote import read_remote_members
from pipeline.storage import files, remote
from pipeline.storage.columns import as_extra
from pipeline.storage.remote import StorageError, WrongBytesError, is_url

# what of a tar is taken for a video; WebDataset has no rule, and a tar holds text, sound and pictures beside them
VIDEO_EXTENSIONS = (
    *("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4"),
    *("mpeg", "mpg", "mts", "ogv", "ts", "video", "webm", "wmv"),
)
MAX_SIDE_FILE = 1 << 20  # bytes of KEY.json, KEY.cls, KEY.txt; larger ones are not what this is for
SIDE_FILES = ("json", "cls", "txt")  # the label is that of the first of them that has one
SPLITS = ("train", "val", "test")
IDS = ("source_id", "youtube_id", "videoid", "video_id", "id")  # video2dataset writes "videoid"


@dataclass(frozen=True, slots=True)
class Video:
    """A member that is asked for, and what lies beside it."""

    member: Member
    side_files: tuple[tuple[str, Member], ...]  # (json, cls or txt; the member)


@dataclass(frozen=True, slots=True)
class Listed:
    """What a tar holds."""

    videos: dict[str, Video]  # by name, in their order
    fault: RejectedError | None  # what is wrong with the tar as a whole
    repeated: tuple[str, ...]  # names of videos that are there again
    alone: tuple[str, ...]  # side files that belong to no video


@dataclass(frozen=True, slots=True)
class IndexedClip:
    """A clip that was taken where it lies. `row` has the manifest's columns, shard, offset and size among them."""

    row: dict[str, Any]


def is_utf8(text: str) -> bool:
    """Whether it can be written as such: names of files may hold surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_videos(file: str | os.PathLike[str]) -> Listed:
    """WebDataset's rule, members side by side whose names agree up to the first dot, says which .json, .cls and .txt (in either
    case) belong to a video; one that agrees up to its last dot comes first. One that lies apart belongs to the video of its
    name, if there is no second of its own. Of two members with one name the first counts. Raises OSError.
    """
    members, fault = read_remote_members(os.fspath(file)) if is_url(file) else read_members(file)
    found: dict[str, tuple[Member, dict[str, Member]]] = {}  # videos with their side files by kind
    repeated: list[str] = []
    apart: dict[str, list[Member]] = {}
    for _, run in groupby(members, lambda member: _sample_key(member.name)):
        sample = list(run)
        beside: dict[str, Member] = {}
        for member in sample:
            if _extension(member.name) in SIDE_FILES:
                beside.setdefault(os.path.splitext(member.name)[0] + "." + _extension(member.name), member)
        of_nobody = set(beside)
        for member in sample:
            if _extension(member.name) not in VIDEO_EXTENSIONS:
                continue
            names = {kind: f"{os.path.splitext(member.name)[0]}.{kind}" for kind in SIDE_FILES}
            names = {kind: name if name in beside else f"{_sample_key(member.name)}.{kind}" for kind, name in names.items()}
            of_nobody -= {*names.values()}
            if member.name in found:
                repeated.append(member.name)
            else:
                found[member.name] = member, {kind: beside[name] for kind, name in names.items() if name in beside}
        for name in of_nobody:
            apart.setdefault(name, []).append(beside[name])
    for name, (_, side_files) in found.items() if apart else ():
        for kind in SIDE_FILES:
            far = apart.get(f"{os.path.splitext(name)[0]}.{kind}", ())
            if kind not in side_files and len(far) == 1:
                side_files[kind] = far[0]
    taken = {id(member) for _, side_files in found.values() for member in side_files.values()}
    alone = [member.name for some in apart.values() for member in some if id(member) not in taken]
    videos = {name: Video(member, tuple(sorted(side.items(), key=_order))) for name, (member, side) in found.items()}
    if not fault and not videos:
        wanted = ", ".join(VIDEO_EXTENSIONS)
        fault = RejectedError(Reason.NOT_VIDEO, f"none of its {len(members)} members has the extension of a video ({wanted})")
    return Listed(videos, fault, tuple(repeated), tuple(alone))


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _order(side_file: tuple[str, Member]) -> int:
    return SIDE_FILES.index(side_file[0])


def _sample_key(name: str) -> str:
    """WebDataset's: the path up to the first dot of its last part."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.split(".", 1)[0])


@lru_cache(maxsize=64)
def _exists(url: str) -> bool:
    return files.exists(url)


@lru_cache(maxsize=4)  # a worker's clips come tar by tar
def _listed(file: str, state: tuple[int, int] | None) -> Listed:
    return list_videos(file)


@dataclass(frozen=True, slots=True)
class MemberIndexer:
    """Callable for worker processes: a request of kind "member" -> IndexedClip or Reject."""

    dataset: str  # a tar inside it is named relative to it, so that both can move together; others by their absolute path
    min_frames: int = 16

    def __call__(self, request: ClipRequest) -> Iterator[IndexedClip | Reject]:
        try:
            yield IndexedClip(self._row(request))
        except RejectedError as error:
            yield Reject(error.reason, error.detail)
        except StorageError as error:  # raised again if it is not the member's fault that it cannot be read
            if not isinstance(error, WrongBytesError) and not remote.is_missing(error):
                raise
            yield Reject(Reason.UNREADABLE, str(error))
        except OSError as error:
            yield Reject(Reason.UNREADABLE, error.strerror or str(error))

    def _row(self, request: ClipRequest) -> dict[str, Any]:
        """Find the member and what lies beside it, decode it whole; raises RejectedError, StorageError, OSError."""
        file, name = split_member(request.folder, request.path)
        state = None if is_url(file) else os.stat(file)
        listed = _listed(file, state and (state.st_mtime_ns, state.st_size))
        videos, fault = listed.videos, listed.fault
        if name not in videos:
            if not name and fault:
                raise RejectedError(fault.reason, fault.detail)  # a new one: this one is kept for the next request
            raise RejectedError(Reason.UNREADABLE, "it is no longer in the tar, which has changed since the plan was made")
        member = videos[name].member
        if member.problem:
            raise RejectedError(member.problem.reason, member.problem.detail)
        with member_reader(file) as read:
            data = read(member)
            known = read_side_files(read, videos[name].side_files)
        place = {"shard": shard_name(self.dataset, file), "offset": member.offset, "size": member.size}
        row = manifest_row(request, verify(data), data, self.min_frames)
        return {**row, **place, "source_id": _text(os.path.basename(_sample_key(name))), **known}


def split_member(folder: bytes, path: bytes) -> tuple[str, str]:
    """The path TAR/MEMBER below a folder -> (the tar's own path, the member's name: empty if the tar itself is meant)."""
    parts = path.split(b"/")
    for number in range(1, len(parts) + 1):
        file = os.fsdecode(os.path.join(folder, *parts[:number]))
        if _exists(file) if is_url(file) else os.path.isfile(file):
            return file, os.fsdecode(b"/".join(parts[number:]))
    raise RejectedError(Reason.UNREADABLE, "its tar has vanished")


def shard_name(dataset: str, file: str) -> str:
    """What the manifest calls a tar: readers join it to the dataset's path, which leaves an absolute one as it is, or a URL."""
    if is_url(file):
        return file
    home, real = os.path.realpath(dataset), os.path.realpath(file)
    return os.path.relpath(real, home) if real.startswith(home + os.sep) else os.path.abspath(file)


@contextmanager
def member_reader(file: str) -> Iterator[Callable[[Member], bytes]]:
    """A tar -> what gives the bytes of its members; that raises OSError."""
    if is_url(file):
        yield lambda member: files.read_range(file, member.offset, member.offset + member.size)
    else:
        with open(file, "rb", buffering=0) as tar:
            yield lambda member: os.pread(tar.fileno(), member.size, member.offset)


def read_side_files(read: Callable[[Member], bytes], side_files: Sequence[tuple[str, Member]]) -> dict[str, Any]:
    """What lies beside a video -> columns of the manifest that it knows: split, label, source_id, start, end, extra.

    The label is the JSON's "label" (a list stays one, as JSON), else the text of the .cls, else that of the .txt (a class name
    or a caption). What else the JSON says, and a text that is no label, is `extra`. Other members stay in the tar for readers
    of WebDataset. Raises RejectedError(damaged) for text that cannot be read: a label lost in silence would be worse.
    """
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for kind, member in side_files:
        if member.size > MAX_SIDE_FILE or member.problem:
            detail = member.problem.detail if member.problem else f"it has {member.size} bytes, more than {MAX_SIDE_FILE}"
            raise RejectedError(Reason.UNSUPPORTED, f"the .{kind} beside it cannot be read: {detail}")
        try:
            text = read(member).decode()
            content = json.loads(text) if kind == "json" else text.strip()
        except (ValueError, RecursionError) as error:
            raise RejectedError(Reason.DAMAGED, f"the .{kind} beside it cannot be read: {error}") from None
        if kind != "json":
            if content and "label" not in known:
                known["label"] = content
            elif content != known.get("label"):
                extra[kind] = content
        elif isinstance(content, dict):
            known |= _from_json(content)
            extra |= _beside(content, known)
    return known | {"extra": as_extra(extra)}


def _beside(content: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What of a JSON went into no column. In a tar of ours it has its own name, and all else is of the other dataset."""
    if "content_hash" in content:
        of_ours = content.get("extra")
        return of_ours if isinstance(of_ours, dict) else {}
    used = known.get("source_id")
    ids = [name for name in IDS if used is not None and _text(content.get(name)) == used]
    taken = {"label", "split", "start", "end"} & known.keys() | {*ids}
    return {name: value for name, value in content.items() if name not in taken}


def _from_json(content: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    given = label = content.get("label")
    if isinstance(label, list) and label and all(_text(name) is not None for name in label):
        known["label"] = json.dumps([_text(name) for name in label], ensure_ascii=False)
    elif (label := _text(label)) is not None:
        known["label"] = label
    elif given not in (None, "", []):  # there is one
        told = f"its label is {json.dumps(given)[:80]}; wanted is text, a number, or a list of these"
        raise RejectedError(Reason.DAMAGED, f"the .json beside it cannot be read: {told}")
    if content.get("split") in SPLITS:
        known["split"] = content["split"]
    for name in IDS:
        if (value := _text(content.get(name))) is not None:
            known["source_id"] = value
            break
    start, end = content.get("start"), content.get("end")
    numbers = type(start) in (int, float) and type(end) in (int, float)
    if numbers and 0 <= start < end < math.inf:  # type: ignore[operator]
        known |= {"start": float(start), "end": float(end)}  # type: ignore[arg-type]
    return known


def _text(value: Any) -> str | None:
    """A string or number as UTF-8 can hold it (JSON can escape lone surrogates); None for anything else or nothing."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) not in (int, float, str) or value == "":
        return None
    return str(value).encode("utf-8", "replace").decode()
