"""AVA's files of boxes: truth as it is annotated, detections as they are sent in, and seconds that are left out.

    ava_val_v2.2.csv                     movie,second,x0,y0,x1,y1,action,person    a row for each box and action
    detections.csv                       movie,second,x0,y0,x1,y1,action,score
    ava_val_excluded_timestamps_v2.2.csv movie,second

Boxes are fractions of the frame. A row that ends after the second, or has nothing behind it, is a frame without people. A frame
is told by its movie and the second, a whole one in the official files.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.storage.key_frames import stamp
from train.detection.mean_precision import Rows

FIELDS = ("movie", "second", "x0", "y0", "x1", "y1", "action", "score")  # in truth the last is the person
SIDES = FIELDS[2:6]


@dataclass(frozen=True, slots=True)
class BoxFile:
    """What a file holds; a number for each frame it gets among others, see `numbered`."""

    place: str
    movies: pa.ChunkedArray
    """Of R rows their names."""
    seconds: np.ndarray
    """Float64 (R,)."""
    rows: Rows
    notices: Sequence[str] = ()
    """What is to be said of it."""


def parse_boxes(data: bytes, place: str, scored: bool) -> BoxFile:
    """A file of truth, or, `scored`, of detections. Raises ValueError with the line for what is no such row: a file with one is
    not half a file."""
    table, empty = _read(data, place, len(FIELDS) if scored else None)
    named = FIELDS[1 : 8 if scored else 7] if len(table) else ()
    numbers = {name: _numbers(table[name], name, place, data) for name in named}
    none = np.empty(0)
    corners = np.stack([numbers.get(name, none) for name in SIDES], axis=1)
    actions = numbers.get("action", none)
    if len(wrong := np.flatnonzero((actions != np.floor(actions)) | (np.abs(actions) >= 2**31))):
        line = _line(data, "action", lambda text: float(text) != actions[wrong[0]])
        raise ValueError(f"{place}{line}: action {actions[wrong[0]]:g} is no number of a class")
    scores = numbers.get("score", none) if scored else np.ones(len(table))
    notices = [f"{empty:,} frames without people"] if empty else []
    inside = ((corners >= 0) & (corners <= 1)).all(1)
    if not inside.all():
        first = ", ".join(f"{side:g}" for side in corners[~inside][0])
        notices.append(f"{int((~inside).sum()):,} boxes reach out of the frame, such as ({first}); they are taken as they are")
    flat = ~((corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1]))
    if flat.any():
        notices.append(f"{int(flat.sum()):,} boxes have no area")
    rows = Rows(np.zeros(len(table), np.int64), corners, actions.astype(np.int64), scores)
    return BoxFile(place, table["movie"], numbers.get("second", none), rows, notices)


def parse_excluded(data: bytes, place: str) -> BoxFile:
    """Movies and seconds, without boxes. Raises ValueError as `parse_boxes`."""
    table, _ = _read(data, place, 2)
    seconds = _numbers(table["second"], "second", place, data)
    return BoxFile(place, table["movie"], seconds, replace(Rows.joined([]), images=np.zeros(len(table), np.int64)))


def numbered(files: Sequence[BoxFile]) -> tuple[list[Rows], list[tuple[str, float]]]:
    """Their rows, with a number for each frame that is the same in all of them; and which movie and second that is."""
    movies = pa.concat_arrays([pa.array([], pa.string()), *(chunk for file in files for chunk in file.movies.chunks)])
    coded = movies.dictionary_encode()
    seconds, at = np.unique(np.concatenate([file.seconds for file in files]), return_inverse=True)
    several = max(len(seconds), 1)
    keys, images = np.unique(coded.indices.to_numpy().astype(np.int64) * several + at, return_inverse=True)
    ends = np.cumsum([len(file.seconds) for file in files])[:-1]
    rows = [replace(file.rows, images=part) for file, part in zip(files, np.split(images, ends), strict=True)]
    names = coded.dictionary.to_pylist()
    return rows, [(names[movie], float(seconds[second])) for movie, second in (divmod(key, several) for key in keys.tolist())]


def written(names: Mapping[int, tuple[str, float]] | Sequence[tuple[str, float]], rows: Rows) -> bytes:
    """Detections of images with these movies and seconds, as they are sent in: boxes to four digits, scores to six."""
    out = io.StringIO()
    for image, (x0, y0, x1, y1), action, score in zip(
        rows.images.tolist(), rows.corners.tolist(), rows.actions.tolist(), rows.scores.tolist(), strict=True
    ):
        movie, second = names[image]
        out.write(f"{movie},{stamp(second)},{x0:.4f},{y0:.4f},{x1:.4f},{y1:.4f},{action},{score:.6g}\n")
    return out.getvalue().encode("utf-8", "surrogateescape")


def _read(data: bytes, place: str, columns: int | None) -> tuple[pa.Table, int]:
    """As text; and how many rows have no box. Of truth the person may be missing, which means nothing here."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    several = (n for line in io.BytesIO(data) if (n := line.count(b",") + 1) != 2 and line.strip())
    most = next(several, columns or len(FIELDS)) if columns != 2 else 2
    if most not in ((columns,) if columns else (7, 8)):
        wanted = ",".join(FIELDS[: columns or 7])
        raise ValueError(f"{place} has rows of {most} fields, where {wanted} are expected")
    empty = 0

    def odd(row: pacsv.InvalidRow) -> str:
        nonlocal empty
        if row.actual_columns == 2 and most > 2:
            empty += 1
            return "skip"
        return "error"

    names, texts = FIELDS[:most], dict.fromkeys(FIELDS[:most], pa.string())
    how = (
        pacsv.ReadOptions(column_names=names, use_threads=False),
        pacsv.ParseOptions(quote_char=False, invalid_row_handler=odd),
        pacsv.ConvertOptions(column_types=texts, strings_can_be_null=False),
    )
    try:
        table = pacsv.read_csv(io.BytesIO(data), *how) if data.strip() else pa.schema(texts.items()).empty_table()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{place}: {error}") from None
    if most > 2:
        there = pc.not_equal(pc.utf8_trim_whitespace(table["x0"]), "")
        empty += len(table) - pc.sum(there).as_py() if len(table) else 0
        table = table.filter(there)
    return table, empty


def _numbers(column: pa.ChunkedArray, name: str, place: str, data: bytes) -> np.ndarray:
    """Float64 (R,). Raises ValueError with the first text that is no finite number, and its line."""
    texts = pc.utf8_trim_whitespace(column)
    try:
        found = pc.cast(texts, pa.float64()).to_numpy()
        bad = None if np.isfinite(found).all() else str(found[~np.isfinite(found)][0])
    except pa.ArrowInvalid:
        bad = next(text for text in texts.to_pylist() if not _is_number(text))
    if bad is None:
        return found
    raise ValueError(f"{place}{_line(data, name, _is_number)}: {name} {bad!r} is no number")


def _line(data: bytes, name: str, right: Callable[[str], bool]) -> str:
    """ ":7", the first line whose field is not right; "" if there is none. Frames without people have no fields."""
    at, rows = FIELDS.index(name), (line.split(",") for line in data.decode("utf-8", "replace").splitlines())
    wrong = (n for n, row in enumerate(rows, 1) if len(row) > at and "".join(row[2:3] or "x").strip() and not right(row[at]))
    return next((f":{line}" for line in wrong), "")


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
