"""The lines of file lists: what the official VideoMAE code reads, and CSV files with a header. No disk is looked at.

- `path label`, for fine-tuning: `k400/clip 1.mp4 17`. The label is a class number, or after a comma or tab a name.
- `path start total`, for pre-training: `k400/clip.mp4 0 -1` is a video file, any other total a folder of frames of which
  `total` are wanted, from the one with number `start` in its name: `ssv2/182040 1 58`, `ava/ID 9601 300`.
- `folder total label`, for fine-tuning on folders of frames: the first `total` images.
- `csv`: the first line names the columns: `path` and, optional, `label` and `split` (train, val, test); others go into `extra`,
  a `caption` as one of `captions`: rows that repeat path, label and split are further ones. Other names for these are known,
  see HEADINGS.

All but the last have no header, and space, comma, tab or semicolon between the fields. The official code splits at every space;
here a path may hold some, because the numbers stand at the end; or quotes stand around it.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dataset_builders.sources.annotations import AnyPath, is_text, read_lines, read_text, shown
from dataset_builders.sources.rows import NUMBER, cells, cut_number, quoted, separator
from pipeline.storage.columns import CAPTIONS, as_extra

Columns = Literal["path label", "path start total", "folder total label", "csv"]
COLUMNS: tuple[Columns, ...] = get_args(Columns)
HEADINGS = {
    "path": ("path", "video_path", "filepath", "file_path", "filename", "file_name", "file", "video", "video_name", "video_id"),
    "label": ("label", "class", "class_name", "label_name", "category", "action", "label_id", "class_id"),
    "split": ("split", "subset"),
    "caption": ("caption", "sentence"),
}
_NAME = re.compile(r"(.*) *[,\t;] *([^,\t;]*)", re.DOTALL).fullmatch
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
    extra: str | None = None  # the other columns of a CSV file, and captions, see `columns.as_extra`
    caption: str | None = None  # of a row alone: those of a video are together in `extra`


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
        yield from _together(_read_csv(file, classes))
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
    header = [cell.lower() for cell in cells(lines[0], separator(lines[:1]))]
    if {"youtube_id", "time_start"} <= {*header}:
        told = f"{shown(file)}: the first line {lines[0]!r} is that of a list of Kinetics, which says parts of videos"
        raise ValueError(f"{told}; give it as --k400 VIDEOS LISTS (or --k600, --k700)")
    if "path" in (places := _places(header)) and ("path" in header or len(places) > 1):
        return "csv"
    plain = [line.replace('"', "") for line in lines]
    sample = plain[:: 1 + len(plain) // 1000]
    cut = [cut_number(line) for line in sample]
    num_pairs = sum(number is not None and cut_number(rest)[1] is not None for rest, number in cut)
    if 2 * num_pairs <= len(sample):
        return "path label"
    if any(line.endswith(("\t-1", " -1", ",-1", ";-1")) for line in plain):
        return "path start total"
    raise ValueError(
        f"{shown(file)}: the first line {lines[0]!r} ends with two numbers, which can mean 'path start total' (pre-training) "
        "or 'folder total label' (fine-tuning), or the path of a 'path label' ends with a number; say which by `columns`"
    )


def _places(header: list[str]) -> dict[str, int]:
    """Where the columns are that a header names."""
    found = {column: [header.index(name) for name in names if name in header] for column, names in HEADINGS.items()}
    return {column: places[0] for column, places in found.items() if places}


def _parse(number: int, text: str, columns: Columns, classes: list[str] | None) -> Line:
    """Raises ValueError with what is wrong with the line."""
    row = quoted(text)
    if columns == "path label":
        if row is None:
            path, label = cut_number(text)
            named = _NAME(text)
            row = [path, str(label)] if label is not None else [part.strip() for part in named.groups()] if named else []
        if len(row) != 2 or not row[0]:
            raise ValueError(f"{text!r} is not 'path label'")
        return Line(number, row[0], class_name(row[1], classes))
    path, second = cut_number(text if row is None else " ".join(row))
    path, first = cut_number(path)
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


def _together(lines: Iterable[Line | BadLine]) -> Iterator[Line | BadLine]:
    """Rows of one video that have a caption each become one, in the place of the first."""
    lines = list(lines)
    captions: dict[tuple[str, str | None, str | None], list[str]] = {}
    for line in lines:
        if isinstance(line, Line) and line.caption is not None:
            captions.setdefault((line.path, line.label, line.split), []).append(line.caption)
    for line in lines:
        if isinstance(line, BadLine) or line.caption is None:
            yield line
        elif found := captions.pop((line.path, line.label, line.split), None):
            others = json.loads(line.extra) if line.extra else {}
            extra = as_extra({CAPTIONS: list(dict.fromkeys(found)), **others})
            yield replace(line, caption=None, extra=extra)


def _read_csv(file: AnyPath, classes: list[str] | None) -> Iterator[Line | BadLine]:
    """Here a field in quotes may go on in the next line."""
    text = read_text(file)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator([text.partition("\n")[0]]))
    header = [cell.strip().lower() for cell in next(rows, [])]
    places = _places(header)
    if "path" not in places:
        raise ValueError(f"{shown(file)}: the first line {header} names no column 'path'")
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
                yield _parse_cells(number, cells, header, places, classes)
            except ValueError as error:
                yield BadLine(number, str(error))
        number = rows.line_num + 1


def _parse_cells(number: int, cells: list[str], header: list[str], places: dict[str, int], classes: list[str] | None) -> Line:
    """Raises ValueError with what is wrong with the row."""
    if len(cells) != len(header):
        raise ValueError(f"{cells!r} has {len(cells)} columns instead of {len(header)}")
    values = {column: cells[place] for column, place in places.items()}
    if not values["path"]:
        raise ValueError(f"{cells!r} has no path")
    label, split = values.get("label", "").strip(), values.get("split", "").strip()
    if split and split.lower() not in _SPLITS:
        raise ValueError(f"split {split!r} is not known; allowed are train, val and test")
    extra = as_extra({name: cells[place] for place, name in enumerate(header) if name and place not in places.values()})
    name, caption = class_name(label, classes) if label else None, values.get("caption", "").strip()
    if caption and not is_text(caption):
        raise ValueError(f"{caption!r} is no caption")
    return Line(number, values["path"], name, _SPLITS.get(split.lower()), extra=extra, caption=caption or None)


def class_name(text: str, classes: list[str] | None) -> str:
    """A label as it stands in a list -> the name of the class. Raises ValueError for one that is none."""
    if classes is None:
        if is_text(text):
            number = NUMBER(text)
            return number[1] if number else text
        raise ValueError(f"{text!r} is no label")
    if (number := NUMBER(text)) and 0 <= int(number[1]) < len(classes):
        return classes[int(number[1])]
    if text in classes:
        return text
    raise ValueError(f"label {text!r} is neither one of the {len(classes)} class names nor a number below {len(classes)}")
