"""Rows of lists as text, whoever saved them: commas, tabs or semicolons between the fields, and quotes around them or not.

A line is a row: an open quote costs that row, and none of those that follow. What a file has between its fields, its first
line with any of them says: that which stands first in it, outside of quotes.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from dataset_builders.sources.annotations import AnyPath, read_lines

QUOTED = re.compile(r'"(?:[^"]|"")*"')
MARK = re.compile("[,\t;]")
NUMBER = re.compile(r"(-?[0-9]{1,9})(?:\.0+)?").fullmatch  # whole ones; pandas writes 3.0 where a cell of the column is empty


def separator(lines: Iterable[str], without: str = ",") -> str:
    """What stands between the fields of these lines; `without` is for lines of one field."""
    found = (MARK.search(QUOTED.sub("", line)) for line in lines)
    return next((mark[0] for mark in found if mark), without)


def cells(text: str, mark: str, most: int = 0) -> list[str]:
    """The fields of a row, without quotes and blanks around them; what follows the last of `most` belongs to it."""
    row = text.split(mark)
    if '"' in text:
        with suppress(csv.Error):  # an open quote
            row = next(csv.reader([text], delimiter=mark, skipinitialspace=mark != " ", strict=True))
    if most and len(row) > most:
        row[most - 1 :] = [mark.join(row[most - 1 :])]
    return [cell.strip() for cell in row]


def read_rows(file: AnyPath, most: int = 0) -> Iterator[tuple[int, str, list[str]]]:
    """(number of the line from 1, its text, its `cells`) of every line that is not blank. Raises ValueError."""
    lines = read_lines(file)
    mark = separator(lines)
    for number, text in enumerate(lines, start=1):
        if text.strip():
            yield number, text, cells(text, mark, most)


def quoted(text: str) -> list[str] | None:
    """The fields of a row with quotes around its first or last field; None for others: a path may hold any separator."""
    if not (text.startswith('"') or text.endswith('"')) or '"' in (outside := QUOTED.sub("", text)):
        return None
    return [cell for cell in cells(text, separator([outside], " ")) if cell]


def cut_number(text: str) -> tuple[str, int | None]:
    """`"a b.mp4, 3"` -> ("a b.mp4", 3); without a number at the end, the text and None."""
    place = max(map(text.rfind, " ,\t;"))
    number = NUMBER(text, place + 1)
    if place < 0 or not number:
        return text, None
    rest = text[:place].rstrip(" \t")
    if text[place] not in ",;" and rest.endswith((",", ";")):
        rest = rest[:-1].rstrip(" \t")
    return rest, int(number[1])


def path_and_number(text: str) -> tuple[str, int | None]:
    """As `cut_number`, with quotes or without, of a path with either kind of slash."""
    text = text.strip()
    row = quoted(text)
    if row is None:
        path, number = cut_number(text)
    else:
        found = NUMBER(row[1]) if len(row) == 2 else None
        path, number = (row[0], int(found[1])) if found else ("".join(row), None)
    return path.replace("\\", "/"), number
