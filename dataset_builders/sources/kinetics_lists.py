"""The official lists of Kinetics-400, 600 and 700: CSV (columns in any order, with and without `is_cc` and `label`) or
DeepMind's JSON -> tables."""

import json
import os
import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dataset_builders.sources import k710
from dataset_builders.sources.annotations import AnyPath, is_text, read_json, read_lines, read_text, shown
from dataset_builders.sources.rows import separator

ID = "[A-Za-z0-9_-]{11}"
NUMBER = r"[0-9]{1,7}(?:\.[0-9]+)?"
ANNOTATION_SCHEMA = pa.schema(
    [
        ("youtube_id", pa.string()),
        ("start", pa.float64()),  # seconds in the YouTube video; null if the list has no times
        ("end", pa.float64()),
        ("label", pa.string()),  # as listed; null in test lists
        ("split", pa.string()),  # "train", "val" or "test"
    ]
)
HEADINGS = {  # what the lists of different years and crawlers call their columns
    "youtube_id": ("youtube_id", "youtube_identifier", "video_id", "id"),
    "start": ("time_start", "start_time", "start"),
    "end": ("time_end", "end_time", "end"),
    "label": ("label", "class_label", "label_name", "class"),
    "split": ("split", "subset"),
}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
# One CSV row: quotes stand around a whole field or not at all. What this refuses could make a CSV parser swallow the rows that
# follow. The mark between fields takes the comma's place.
CSV_ROW = r'^(?:"(?:[^"]|"")*"|[^",]*)(?:,(?:"(?:[^"]|"")*"|[^",]*))*$'
# what stands before an id where a column has addresses, or a spreadsheet was kept from taking "-id" for a formula
BEFORE_ID = r"^(?:'|https?://\S*(?:[?&]v=|/))"


def list_paths(name: str, version: int, annotations: Sequence[AnyPath]) -> list[bytes]:
    """Lists, and those in folders. DeepMind's folders hold every list as CSV and as JSON: of one name the CSV is read."""
    found = []
    for path in map(os.fsencode, annotations):
        if not os.path.isdir(path):
            found.append(path)
            continue
        inside = sorted(name for name in os.listdir(path) if name.lower().endswith((b".csv", b".json")))
        as_csv = {name.lower()[:-4] for name in inside if name.lower().endswith(b".csv")}
        read = [name for name in inside if name.lower().endswith(b".csv") or name.lower()[:-5] not in as_csv]
        found += [os.path.join(path, name) for name in read]
    if not found:
        places = [shown(path) for path in annotations]
        raise ValueError(f"source {name}: no list (.csv or .json) of Kinetics-{version} in {places}")
    return found


def read_classes(path: AnyPath) -> list[str]:
    """Class names in order: a line each (label_map_k710.txt), or a JSON list. Raises ValueError."""
    is_json = os.fsencode(path).lower().endswith(b".json")
    names = read_json(path) if is_json else [line for line in read_lines(path) if line.strip()]
    if not isinstance(names, list) or not names or not all(is_text(entry) for entry in names):
        raise ValueError(f"{shown(path)} is no list of class names: one a line, or a JSON list of strings")
    return names


def read_annotations(path: AnyPath) -> tuple[pa.Table, list[str]]:
    """One official list -> (ANNOTATION_SCHEMA in the file's order, a sentence for every row that cannot be understood).

    JSON is told by its first character. Without a split column the file's name decides. The sentences name file, line (in
    JSON: entry) and value. Raises ValueError if the file is no such list at all.
    400,000 rows take 1 s as CSV, 3 s and 0.3 GiB as JSON.
    """
    data = read_text(path).encode("utf-8", "surrogateescape")
    name = os.path.basename(shown(path))
    texts, places, malformed = (_read_json if data.lstrip()[:1] in (b"{", b"[") else _read_csv)(data, name)
    table, sentences = _understand(texts, places, malformed, name)
    if sentences and not len(table):
        raise ValueError(f"{name} has no row that can be understood; the first of {len(sentences)}: {sentences[0]}")
    return table, sentences


def _read_csv(data: bytes, name: str) -> tuple[dict[str, pa.ChunkedArray], np.ndarray, dict[int, str]]:
    """Columns as text, their line numbers, and what is malformed by line."""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    mark = separator(line.decode(errors="replace") for line in lines)
    sound = np.array(pc.match_substring_regex(pa.array(lines, pa.binary()), CSV_ROW.replace(",", mark)))
    malformed = {int(index) + 1: f"{_shown(lines[index])} has an unpaired quote" for index in np.flatnonzero(~sound)}
    try:
        data.decode()
    except UnicodeDecodeError:
        for index, line in enumerate(lines):
            if line.decode(errors="replace").encode() != line:
                malformed[index + 1] = f"{_shown(line)} is not UTF-8"
                sound[index] = False
    places = np.array([index + 1 for index in np.flatnonzero(sound) if lines[index].strip()], np.int64)
    if not len(places):
        raise ValueError(f"{name} has no rows that can be read")
    bad_rows: list[int] = []

    def skip(row: Any) -> str:
        bad_rows.append(row.number - 1)  # counted from 1; known because use_threads is off
        place = int(places[row.number - 1])
        malformed[place] = f"{_shown(lines[place - 1])} has {row.actual_columns} fields, the header {row.expected_columns}"
        return "skip"

    table = pyarrow.csv.read_csv(
        BytesIO(b"\n".join([lines[place - 1] for place in places]) + b"\n"),
        read_options=pyarrow.csv.ReadOptions(use_threads=False, autogenerate_column_names=True),
        parse_options=pyarrow.csv.ParseOptions(delimiter=mark, invalid_row_handler=skip, ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(
            strings_can_be_null=False, column_types={f"f{index}": pa.string() for index in range(100)}
        ),
    )
    places = np.delete(places, bad_rows)
    assert len(table) == len(places), f"{name}: {len(places)} rows became {len(table)}"
    header = [re.sub(r"[\s-]+", "_", column[0].as_py().strip()).lower() for column in table.columns]
    columns = {}
    for column, headings in HEADINGS.items():
        found = [header.index(heading) for heading in headings if heading in header]
        if found:
            columns[column] = table.column(found[0]).slice(1)
    if "youtube_id" not in columns or ("start" in columns) != ("end" in columns):
        raise ValueError(
            f"{name} is no Kinetics list: its first line has the columns {header}; needed are youtube_id and, if at all, "
            "both of time_start and time_end (label and split besides)"
        )
    return columns, places[1:], malformed


def _read_json(data: bytes, name: str) -> tuple[dict[str, pa.ChunkedArray], np.ndarray, dict[int, str]]:
    """Likewise for JSON, with an entry's number for a line's. Pairs, not dicts: an id may stand there twice, and a dict of
    540,000 nested ones takes a gigabyte."""

    def compact(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs) if len(pairs) < 16 else {}
        if "annotations" in found or "subset" in found:
            annotation = found.get("annotations")
            return (*(annotation if isinstance(annotation, tuple) else (None, None, None)), found.get("subset"))
        if "label" in found or "segment" in found:
            segment = found.get("segment", (None, None))
            return (found.get("label"), *(segment if isinstance(segment, list | tuple) and len(segment) == 2 else ("", "")))
        return pairs

    try:
        entries = json.loads(data, object_pairs_hook=compact)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, tuple) and len(entry) == 2 for entry in entries):
        raise ValueError(f'{name} is no Kinetics list: expected {{"ID": {{"annotations": …, "subset": …}}, …}}')
    malformed, places, rows = {}, [], []
    for number, (youtube_id, entry) in enumerate(entries, 1):
        if isinstance(entry, tuple) and len(entry) == 4:
            places.append(number)
            rows.append((youtube_id, *entry))
        else:
            malformed[number] = f"{_shown(repr((youtube_id, entry)))} has neither annotations nor subset"
    texts: dict[str, pa.ChunkedArray] = {}
    for index, column in enumerate(("youtube_id", "label", "start", "end", "split")):
        values = [None if row[index] is None else str(row[index]) for row in rows]
        texts[column] = pa.chunked_array([pa.array(values, pa.string())])
    absent = {column for column in texts if len(rows) and texts[column].null_count == len(rows)}
    if not absent >= {"start", "end"}:  # a list has both or none; one alone is wrong in every row
        absent -= {"start", "end"}
    for column in ("label", "start", "end", "split"):
        if column in absent:
            del texts[column]
        elif column != "label":
            texts[column] = texts[column].fill_null("")
    return texts, np.array(places, np.int64), malformed


def _understand(
    texts: dict[str, pa.ChunkedArray], places: np.ndarray, malformed: dict[int, str], name: str
) -> tuple[pa.Table, list[str]]:
    """Text columns -> ANNOTATION_SCHEMA and sentences, those of `malformed` among them."""
    num_rows = len(places)
    good = np.ones(num_rows, bool)

    def refuse(bad: np.ndarray, column: str, what: str) -> None:
        for index in np.flatnonzero(bad & good):
            malformed[int(places[index])] = f"{column} {_shown(texts[column][int(index)].as_py())} {what}"
        good[bad] = False

    columns: dict[str, Any] = {}
    columns["youtube_id"] = pc.replace_substring_regex(pc.utf8_trim_whitespace(texts["youtube_id"]), BEFORE_ID, "")
    refuse(~_matches(columns["youtube_id"], f"^{ID}$"), "youtube_id", "is not 11 characters of A-Z a-z 0-9 _ -")
    seconds = {}
    for column in ("start", "end"):
        if column in texts:
            text = pc.utf8_trim_whitespace(texts[column])
            number = _matches(text, rf"^{NUMBER}$")
            refuse(~number, column, "is not a number of seconds")
            seconds[column] = pc.if_else(pa.array(number), text, "nan").cast(pa.float64()).to_numpy()
            columns[column] = pa.array(seconds[column])
    if seconds:
        refuse(~(seconds["end"] > seconds["start"]), "end", "is not after its start")
    if "split" in texts:
        place = pc.index_in(
            pc.utf8_lower(pc.utf8_trim_whitespace(texts["split"])), value_set=pa.array(list(SPLIT_NAMES), pa.string())
        )
        refuse(pc.is_null(place).to_numpy(), "split", f"is not one of {', '.join(SPLIT_NAMES)}")
        columns["split"] = pc.take(pa.array(list(SPLIT_NAMES.values())), place)
    else:
        in_name = [split for word, split in SPLIT_NAMES.items() if re.search(rf"(?:^|[^a-z]){word}(?:$|[^a-z])", name.lower())]
        if len(set(in_name)) != 1:
            raise ValueError(f"{name} has no split column, and its name does not say which of {k710.SPLITS} it is; rename it")
        columns["split"] = pa.repeat(pa.scalar(in_name[0]), num_rows)
    if "label" in texts:
        label = pc.utf8_trim_whitespace(texts["label"])
        columns["label"] = pc.if_else(pc.equal(label, ""), pa.scalar(None, pa.string()), label)
    arrays = [columns.get(field.name, pa.nulls(num_rows, field.type)) for field in ANNOTATION_SCHEMA]
    table = pa.table(arrays, schema=ANNOTATION_SCHEMA).filter(pa.array(good))
    return table, [f"{name} line {place}: {sentence}" for place, sentence in sorted(malformed.items())]


def _matches(column: pa.ChunkedArray, pattern: str) -> np.ndarray:
    return pc.fill_null(pc.match_substring_regex(column, pattern), False).to_numpy()


def _shown(value: str | bytes | None) -> str:
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")
