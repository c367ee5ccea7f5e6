"""The lines of file lists: what the official VideoMAE code reads, and CSV files with a header. No disk is looked at.

- `path label`, for fine-tuning: `k400/clip 1.mp4 17`. The label is a class number, or after a comma or tab a name.
- `path start total`, for pre-training: `k400/clip.mp4 0 -1` is a video file, any other total a folder of frames of which
  `total` are wanted, from the one with number `start` in its name: `ssv2/182040 1 58`, `ava/ID 9601 300`.
- `folder total label`, for fine-tuning on folders of frames: the first `total` images.
- `csv`: the first line names the columns: `path` and, optional, `label` and `split` (train, val, test); others are ignored.

All but the last have no header, and space, comma or tab between the fields. The official code splits at every space; here a
path may hold some, because the numbers stand at the end.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from dataset_builders.sources.annotations import AnyPath, is_text, read_lines, read_text, shown

Columns = Literal["path label", "path start total", "folder total label", "csv"]
COLUMNS: tuple[Columns, ...] = get_args(Columns)
_NUMBER = re.compile(r"-?[0-9]{1,9}").fullmatch
_NAME = re.compile(r"(.*) *[,\t] *([^,\t]*)", re.DOTALL).fullmatch
_SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line, understood. Without `total` only the disk knows whether it is a video or a folder of frames."""

    number: int  # in its file, from 1
    path: str
    label: str | None = None
    split: str | None = None  # None: what the whole list is for
    start: int | None = None  # number in the name of the first image; None: the first there is
    total: int | None = None  # images; -1 for a video file


@dataclass(frozen=True, slots=True)
class BadLine:
    """One line, not understood."""

    number: int
    detail: str


def read_list(file: AnyPath, columns: Columns | None, classes: list[str] | None) -> Iterator[Line | BadLine]:
    """The lines of a list, blank ones left out. `classes` are names to put for class numbers.

    Raises ValueError if the file cannot be read, or it is not clear which columns it has.
    """
    lines = read_lines(file)
    columns = columns or _columns(file, lines)
    if columns == "csv":
        yield from _read_csv(file, classes)
        return
    for number, text in enumerate(lines, start=1):
        if text.strip():
            try:
                yield _parse(number, text.strip(" \t"), columns, classes)
            except ValueError as error:
                yield BadLine(number, str(error))


def _columns(file: AnyPath, lines: list[str]) -> Columns:
    """What a list seems to have: half of a thousand lines decide, so that one bad line does not."""
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        return "path label"
    if "path" in re.split("[,\t]", lines[0].lower()):
        return "csv"
    sample = lines[:: 1 + len(lines) // 1000]
    cut = [_cut_number(line) for line in sample]
    num_pairs = sum(number is not None and _cut_number(rest)[1] is not None for rest, number in cut)
    if 2 * num_pairs <= len(sample):
        return "path label"
    if any(line.endswith(("\t-1", " -1", ",-1")) for line in lines):
        return "path start total"
    raise ValueError(
        f"{shown(file)}: the first line {lines[0]!r} ends with two numbers, which can mean 'path start total' (pre-training) "
        "or 'folder total label' (fine-tuning), or the path of a 'path label' ends with a number; say which by `columns`"
    )


def _cut_number(text: str) -> tuple[str, int | None]:
    """`"a b.mp4, 3"` -> ("a b.mp4", 3); without a number at the end, the text and None."""
    place = max(text.rfind(" "), text.rfind(","), text.rfind("\t"))
    if place < 0 or not _NUMBER(text, place + 1):
        return text, None
    rest = text[:place].rstrip(" \t")
    if text[place] != "," and rest.endswith(","):
        rest = rest[:-1].rstrip(" \t")
    return rest, int(text[place + 1 :])


def _parse(number: int, text: str, columns: Columns, classes: list[str] | None) -> Line:
    """Raises ValueError with what is wrong with the line."""
    path, second = _cut_number(text)
    if columns == "path label":
        if path and second is not None:
            return Line(number, path, class_name(str(second), classes))
        named = _NAME(text)
        if not named or not named[1]:
            raise ValueError(f"{text!r} is not 'path label'")
        return Line(number, named[1].rstrip(), class_name(named[2], classes))
    path, first = _cut_number(path)
    if not path or first is None or second is None:
        raise ValueError(f"{text!r} is not '{columns}' with two numbers at the end")
    if columns == "folder total label":
        if first < 1:
            raise ValueError(f"{text!r}: {first} images are wanted; there must be at least one")
        return Line(number, path, class_name(str(second), classes), total=first)
    if second == 0 or first < 0:
        raise ValueError(
            f"{text!r}: start {first} and total {second}; 'START TOTAL' are at least 0 and 1, or '0 -1' for a video"
        )
    return Line(number, path, start=first if second > 0 else None, total=max(second, -1))


def _read_csv(file: AnyPath, classes: list[str] | None) -> Iterator[Line | BadLine]:
    text = read_text(file)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [cell.strip().lower() for cell in next(rows, [])]
    if "path" not in header:
        raise ValueError(f"{shown(file)}: the first line {header} names no column 'path'")
    places = {str(column): header.index(column) for column in ("path", "label", "split") if column in header}
    number = rows.line_num + 1
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:  # a field of over 128 KiB: an open quote
            yield BadLine(number, f"is no CSV: {error}")
            cells = []
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            try:
                yield _parse_cells(number, cells, len(header), places, classes)
            except ValueError as error:
                yield BadLine(number, str(error))
        number = rows.line_num + 1


def _parse_cells(number: int, cells: list[str], num_columns: int, places: dict[str, int], classes: list[str] | None) -> Line:
    """Raises ValueError with what is wrong with the row."""
    if len(cells) != num_columns:
        raise ValueError(f"{cells!r} has {len(cells)} columns instead of {num_columns}")
    values = {column: cells[place] for column, place in places.items()}
    if not values["path"]:
        raise ValueError(f"{cells!r} has no path")
    label, split = values.get("label", "").strip(), values.get("split", "").strip()
    if split and split.lower() not in _SPLITS:
        raise ValueError(f"split {split!r} is not known; allowed are train, val and test")
    return Line(number, values["path"], class_name(label, classes) if label else None, _SPLITS.get(split.lower()))


def class_name(text: str, classes: list[str] | None) -> str:
    """A label as it stands in a list -> the name of the class. Raises ValueError for one that is none."""
    if classes is None:
        if is_text(text):
            return text
        raise ValueError(f"{text!r} is no label")
    if text.isascii() and text.isdigit() and int(text) < len(classes):
        return classes[int(text)]
    if text in classes:
        return text
    raise ValueError(f"label {text!r} is neither one of the {len(classes)} class names nor a number below {len(classes)}")
