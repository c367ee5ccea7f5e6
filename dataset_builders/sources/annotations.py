"""Annotation files: their lines, and what is left when one video is listed more than once."""

import codecs
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from dataset_builders.plan import Drop

AnyPath = str | bytes | os.PathLike[str]
Files = AnyPath | Sequence[AnyPath] | None  # one annotation file, several, or none
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A video that an annotation file lists. Two are equal if they are the same object: each is one line of one file."""

    id: str  # the name of its file, without folder and extension
    split: str
    label: str | None
    file: str  # the annotation file, and the line in it, from 1
    line: int
    extra: str | None = None  # what it says besides, see `columns.as_extra`

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class DroppedEntry:
    """An entry that is not asked for. `id` is None where the line could not be read so far."""

    id: str | None
    split: str
    reason: Drop
    detail: str


def malformed(file: AnyPath, line: int | str, split: str, what: str, id: str | None = None) -> DroppedEntry:
    """A line that cannot be understood."""
    return DroppedEntry(id, split, Drop.MALFORMED, f"{shown(file)}:{line}: {what}")


def as_files(files: Files) -> tuple[AnyPath, ...]:
    """One file, several or none -> a tuple."""
    if files is None:
        return ()
    return (files,) if isinstance(files, str | bytes | os.PathLike) else tuple(files)


def read_bytes(file: AnyPath) -> bytes:
    """Raises ValueError if it cannot be read."""
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise ValueError(f"annotation file {shown(file)} cannot be read: {error.strerror}") from None


def read_text(file: AnyPath) -> str:
    """A text file without its byte order mark, UTF-8 or what that says; bytes that are not UTF-8 become lone surrogates (see
    os.fsencode). Raises ValueError if it cannot be read."""
    data = read_bytes(file)
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-8-sig", "surrogateescape")
    try:
        return data.decode("utf-16")
    except UnicodeDecodeError as error:
        raise ValueError(f"annotation file {shown(file)} begins as UTF-16 and is none: {error.reason}") from None


def read_lines(file: AnyPath) -> list[str]:
    """The lines of a text file, as `read_text`. Only LF and CR LF end a line: other separators occur in file names."""
    lines = [line.removesuffix("\r") for line in read_text(file).split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def read_json(file: AnyPath) -> Any:
    """A JSON file; raises ValueError that names the place of what is wrong."""
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{shown(file)}:{error.lineno}: is no JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{shown(file)}: is no annotation file: JSON nested too deeply") from None


def shown(path: AnyPath) -> str:
    """A path for people: always valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_text(text: object) -> TypeGuard[str]:
    """Whether it is a string that can stand in the tables: not empty, and UTF-8."""
    if not isinstance(text, str) or not text or "\0" in text:
        return False
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def settle(lines: Iterable[Entry | DroppedEntry]) -> tuple[list[Entry], list[DroppedEntry]]:
    """Keep one entry for a video. The first of several counts, the others are duplicates, after what was dropped before.

    But an entry for training whose video is also listed for validation or test is a leak, and leaves: measured accuracy
    must stay true, whatever order the lists have.
    """
    lines = list(lines)
    entries = [line for line in lines if isinstance(line, Entry)]
    dropped = [line for line in lines if isinstance(line, DroppedEntry)]
    held_out: dict[str, Entry] = {}
    for entry in entries:
        if entry.split in ("val", "test"):
            held_out.setdefault(entry.id, entry)
    kept: dict[str, Entry] = {}
    for entry in entries:
        first = held_out.get(entry.id, entry)
        if entry.split == "train" and first is not entry:
            detail = f"{entry.where} lists it for training, {first.where} for {first.split}"
            dropped.append(DroppedEntry(entry.id, entry.split, Drop.LEAK, detail))
            continue
        first = kept.setdefault(entry.id, first)
        if first is not entry:
            other = "" if first.label == entry.label else f" with label {first.label!r} instead of {entry.label!r}"
            detail = f"{entry.where} repeats {first.where}{other}"
            dropped.append(DroppedEntry(entry.id, entry.split, Drop.DUPLICATE, detail))
    return [entry for entry in entries if kept.get(entry.id) is entry], dropped
