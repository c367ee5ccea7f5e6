"""Is a shard, or a clip in it, still what the manifest says? What the worker processes of a recheck do."""

import json
import math
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from dataset_builders.media.decode_check import VerifiedClip, verify
from dataset_builders.media.rejects import RejectedError
from dataset_builders.tars.headers import BLOCK, Member, read_members
from dataset_builders.tars.writer import REMOVED, dali_index, side_file
from pipeline.storage import files
from pipeline.storage.manifest import Clip, content_hash
from pipeline.storage.remote import StorageError, WrongBytesError, is_missing
from pipeline.storage.shards import ShardReader


class Fault(StrEnum):
    """What can be wrong."""

    DATASET = "dataset"  # manifest.parquet and dataset.json do not agree, or cannot be read
    FINGERPRINT = "fingerprint"  # the manifest's rows are not those that its version was made of
    SHARD = "shard"  # a shard is missing or cannot be read
    TAR = "tar"  # a shard's headers do not lead through it, or it holds another number of clips
    INDEX = "index"  # the .idx beside a shard is missing or does not fit it
    RANGE = "range"  # the clip's bytes lie outside its shard
    MEMBER = "member"  # what lies there is not the clip of that key
    CONTENT = "content"  # it is, but its bytes have changed
    SIDE_FILE = "side_file"  # the KEY.json beside it says something else than the manifest
    DECODING = "decoding"  # it does not decode, or only by crashing or hanging
    COLUMNS = "columns"  # it decodes to something else than the manifest says
    REMOVED = "removed"  # the clip was removed, but its bytes were not overwritten, or the manifest does not say so
    UNKNOWN_KEY = "unknown_key"  # a training run complains of a clip that this dataset does not have


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `shard` and `key` are empty where it concerns all of the dataset or of the shard."""

    what: Fault
    shard: str
    key: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to be looked at as a tar."""

    shard: str
    num_clips: int  # rows of the manifest that lie in it, without removed ones


@dataclass(frozen=True, slots=True)
class ClipTask:
    """A clip to be looked at: a row of the manifest."""

    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checker:
    """Callable for worker processes: ShardTask or ClipTask -> findings."""

    dataset: str
    decode: bool

    def __call__(self, task: ShardTask | ClipTask) -> Iterator[Finding]:
        shard = task.shard if isinstance(task, ShardTask) else task.row["shard"]
        try:
            yield from self._shard(task) if isinstance(task, ShardTask) else self._clip(task.row)
        except StorageError:
            raise
        except OSError as error:
            key = "" if isinstance(task, ShardTask) else task.row["key"]
            yield Finding(Fault.SHARD, shard, key, "a file that can be read", error.strerror or str(error))

    def _remote(self, row: dict[str, Any]) -> Iterator[Finding]:
        """A clip behind a URL: its bytes, read as in training."""
        columns = {name: row[name] for name in Clip.__dataclass_fields__ if name != "row"}
        try:
            data = _reader(self.dataset).read(Clip(row=0, **{**columns, "keyframes": tuple(row["keyframes"])}))
        except StorageError as error:
            if not (error.transient or is_missing(error) or isinstance(error, WrongBytesError)):
                raise  # credentials, a bucket: no clip is to blame
            wrong = isinstance(error, WrongBytesError)
            fault, expected = (Fault.CONTENT, "its bytes") if wrong else (Fault.SHARD, "a shard that can be read")
            yield Finding(fault, row["shard"], row["key"], expected, str(error))
        else:
            if self.decode:
                yield from _decoded(row, data)

    def _shard(self, task: ShardTask) -> Iterator[Finding]:
        """Headers, number of clips and index of a shard that the builder wrote; only the headers of one that was indexed."""
        file = os.path.join(self.dataset, task.shard)
        members, broken = read_members(file)
        if broken:
            key = _key_at_damage(file, members)
            yield Finding(Fault.TAR, task.shard, key, "a tar whose headers lead through it", broken.detail)
            return
        if not is_ours(task.shard):
            return
        keys = {member.name.split(".", 1)[0] for member in members if not member.name.startswith(REMOVED)}
        if len(keys) != task.num_clips:
            yield Finding(Fault.TAR, task.shard, "", f"{task.num_clips} clips, as in the manifest", f"{len(keys)} in the tar")
        index = Path(file).with_suffix(".idx")
        try:
            text = index.read_text("utf-8", "replace")
        except FileNotFoundError:
            yield Finding(Fault.INDEX, task.shard, "", f"an index {index.name} beside it", "none")
            return
        wanted = dali_index([(member.name, member.offset, member.size) for member in members if "." in member.name])
        if text != wanted:
            lines = zip(wanted.splitlines(), text.splitlines(), strict=False)
            number, (want, have) = next(
                ((number, pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1]),
                (0, (f"{wanted.count(chr(10))} lines", f"{text.count(chr(10))}")),
            )
            key = want.split(" ")[3].split(".", 1)[0] if want.count(" ") >= 3 else ""
            yield Finding(Fault.INDEX, task.shard, key, f"line {number}: {want}" if number else want, have)

    def _clip(self, row: dict[str, Any]) -> Iterator[Finding]:
        shard, key, offset, size = row["shard"], row["key"], row["offset"], row["size"]
        if is_remote(self.dataset, shard):
            if size:
                yield from self._remote(row)
            return
        file, ours = os.path.join(self.dataset, shard), is_ours(shard)
        whole = -(-size // BLOCK) * BLOCK  # with the zeros that fill its last block
        with open(file, "rb", buffering=0) as opened:
            shard_size = os.fstat(opened.fileno()).st_size
            if size == 0:
                if ours and any(str(name).split(".", 1)[0] == key for name in _members(file, os.stat(file).st_mtime_ns)):
                    yield Finding(Fault.REMOVED, shard, key, "no bytes: the clip was removed", "they are there still")
                return
            if offset < 0 or size < 0 or offset + size > shard_size:
                there = f"bytes {offset} to {offset + size}"
                yield Finding(Fault.RANGE, shard, key, there, f"the shard has {shard_size} bytes")
                return
            data = os.pread(opened.fileno(), whole, offset)
            header = os.pread(opened.fileno(), BLOCK, max(0, offset - BLOCK))
            members = _members(file, os.stat(file).st_mtime_ns)
            if (member := members.get(offset)) and member.name.startswith(REMOVED):
                yield Finding(Fault.REMOVED, shard, key, "the bytes of the clip", "it was removed from its shard")
                return
            yield from _check_member(row, member, header)
            if ours and (beside := members.get(f"{key}.json")):
                text = os.pread(opened.fileno(), -(-beside.size // BLOCK) * BLOCK, beside.offset)
                if wrong := _side_file_differs(row, text[: beside.size], text[beside.size :]):
                    yield Finding(Fault.SIDE_FILE, shard, key, *wrong)
        data, padding = data[:size], data[size:]
        if (found := content_hash(data)) != row["content_hash"]:
            yield Finding(Fault.CONTENT, shard, key, f"content hash {row['content_hash']}", found)
        elif ours and any(padding):
            yield Finding(Fault.CONTENT, shard, key, "zeros after its last byte", "something else")
        elif self.decode:  # changed bytes were found already: what they decode to would be no news
            yield from _decoded(row, data)


def is_remote(dataset: str | os.PathLike[str], shard: str) -> bool:
    """Behind a URL: by its own name, or because `dataset` is a mirror or the work folder of a dataset there."""
    return "://" in shard or (not shard.startswith("/") and files.origin(Path(dataset)) is not None)


@lru_cache(maxsize=1)
def _reader(dataset: str) -> ShardReader:
    return ShardReader(dataset)


def is_ours(shard: str) -> bool:
    """Written by the builder, and not a tar that was there before."""
    return os.path.dirname(shard) == "shards"


@lru_cache(maxsize=2)  # clips come shard by shard
def _members(file: str, changed: int) -> dict[int | str, Member]:
    """A tar's members by their offsets and by their names."""
    members, _ = read_members(file)
    return {member.offset: member for member in members} | {member.name: member for member in members}


def _key_at_damage(file: str, members: list[Member]) -> str:
    """The clip whose header is broken: the one before, if only its JSON was there, otherwise that of the next good header."""
    if members and members[-1].name.endswith(".json"):
        return members[-1].name.split(".", 1)[0]
    start = -(-(members[-1].offset + members[-1].size) // BLOCK) * BLOCK if members else 0
    with open(file, "rb") as opened:
        opened.seek(start)
        while block := opened.read(BLOCK):
            if info := _header(block):
                return info.name.split(".", 1)[0]
    return ""


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None


def _check_member(row: dict[str, Any], member: Member | None, header: bytes) -> Iterator[Finding]:
    """Is the tar member at the clip's offset the clip? Where damage hides the member, the header before it says."""
    shard, key, offset, size = row["shard"], row["key"], row["offset"], row["size"]
    if member is None:
        if (info := _header(header)) is None:
            found = f"no valid tar header at byte {offset - BLOCK}"
            yield Finding(Fault.MEMBER, shard, key, f"a tar member at byte {offset}", found)
            return
        member = Member(info.name, offset, info.size)
        if not is_ours(shard):
            return  # a long name or size stands elsewhere; the bytes are the clip's, and the tar is reported as broken
    named, path = member.name.split(".", 1)[0], b"/" + os.fsencode(member.name)
    # a shard of ours has keys for names, in a subset of its dataset as well; a tar that was indexed has the source's
    right = named == key or (not is_ours(shard) and row["path"].endswith(path))
    if not right or member.size != size:
        wanted = f"{key}.*" if is_ours(shard) else row["path"].decode("utf-8", "backslashreplace")
        found = f"{member.name.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')}, {member.size} bytes"
        yield Finding(Fault.MEMBER, shard, key, f"{wanted}, {size} bytes at byte {offset}", found)


def _side_file_differs(row: dict[str, Any], text: bytes, padding: bytes) -> tuple[str, str] | None:
    """Manifest's row and KEY.json -> (expected, found) of the first difference."""
    wanted = side_file(row)
    if text == wanted:
        return ("zeros after its last byte", "something else") if any(padding) else None
    try:
        found = json.loads(text)
    except ValueError as error:
        return "JSON", f"{error}"
    expected = json.loads(wanted)
    if not isinstance(found, dict):
        return "a JSON object", f"{found!r:.80}"
    # a builder of another version may have written fewer names, but none that are unknown, and never without these two
    for name in {"key": 0, "content_hash": 0} | found:
        if name not in expected or name not in found or found[name] != expected[name]:
            return f"{name} {expected.get(name)!r:.200}", f"{found.get(name)!r:.200}"
    return None


def _decoded(row: dict[str, Any], data: bytes) -> Iterator[Finding]:
    try:
        verified = asdict(verify(data))
    except RejectedError as error:
        found = f"{error.reason}: {error.detail}"
        yield Finding(Fault.DECODING, row["shard"], row["key"], f"{row['num_frames']} frames", found)
        return
    for column in fields(VerifiedClip):
        want, have = row[column.name], verified[column.name]
        same = math.isclose(want, have, rel_tol=1e-9) if isinstance(have, float) else want == have
        if not same:
            yield Finding(Fault.COLUMNS, row["shard"], row["key"], f"{column.name} {want!r:.200}", f"{have!r:.200}")
