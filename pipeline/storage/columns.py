"""What stands in a dataset's tables: a name, a type and a meaning for every column; how paths are written, and `extra`.

A path is bytes, because on Linux it need not be UTF-8, and people want text. So a table on disk has it twice: `path` is text,
with `\\xff` for what is no UTF-8, and `path_bytes` has the bytes of such a path, null for all others. In memory it is bytes.
Datasets of format 2 have the bytes in `path`, and no `path_bytes`, no `extra`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PATH_BYTES = "path_bytes"
MAX_EXTRA = 1 << 10  # bytes of a value in `extra`: whole subtitles stay in the annotations
CAPTIONS = "captions"  # of `extra`: a list of sentences about the clip, each of the whole of it
MAX_CAPTIONS = 1 << 16  # bytes of them: MSVD has up to 81 for a clip


class Column(NamedTuple):
    """Of a table on disk."""

    name: str
    type: pa.DataType
    about: str


_NO_UTF8 = "the same path where it is no UTF-8, else null"
_FILE = (
    Column("root", pa.string(), "name of the folder that the file was found in, as dataset.json lists them"),
    Column("path", pa.string(), "of the source file in `root`; a member of an indexed tar is TAR/MEMBER"),
    Column(PATH_BYTES, pa.binary(), _NO_UTF8),
)
_PART = "seconds in the source file where {} begins, null for a whole file"
MANIFEST = (
    Column("key", pa.string(), "the WebDataset sample key: unique, without dots"),
    Column("source", pa.string(), "name of the source in the build"),
    Column("split", pa.string(), "train, val or test"),
    Column("label", pa.string(), 'class name, null without one; of several a JSON list: ["clap", "wave"]'),
    Column("shard", pa.string(), "path of the tar relative to the dataset, or a URL"),
    Column("offset", pa.int64(), "of the encoded clip's first byte in the shard"),
    Column("size", pa.int64(), "bytes of the encoded clip"),
    Column("num_frames", pa.int32(), "counted by decoding the whole clip"),
    Column("fps", pa.float64(), "frames per second; the mean rate where frames are not equally spaced"),
    Column("width", pa.int32(), "pixels as displayed, that is after `rotation`"),
    Column("height", pa.int32(), "likewise"),
    Column("codec", pa.string(), "FFmpeg's name: h264, vp9, mjpeg ..."),
    Column("duration", pa.float64(), "seconds"),
    Column("rotation", pa.int16(), "degrees counter-clockwise to turn a decoded frame by; 360 more: mirrored before that"),
    Column("matrix", pa.string(), "YCbCr matrix: bt601, bt709, bt2020"),
    Column("range", pa.string(), "of pixel values: limited or full"),
    Column("sampling", pa.string(), "distance of a view's frames: stride:4 (frames) or seconds:0.133333"),
    Column("keyframes", pa.list_(pa.int32()), "presentation indices of the frames that a decoder can start at"),
    Column("pts_start", pa.int64(), "time stamp of frame 0, in the stream's time base"),
    Column("pts_step", pa.int64(), "time stamps from a frame to the next; 0 where that is not constant"),
    *_FILE,
    Column("source_id", pa.string(), "YouTube id and the like, null without one"),
    Column("start", pa.float64(), _PART.format("the clip")),
    Column("end", pa.float64(), "likewise, where it ends"),
    Column("content_hash", pa.string(), "XXH3-128 of the encoded clip, hexadecimal"),
    Column("extra", pa.string(), "a JSON object of what the annotations say besides, such as a caption; null without"),
)
REJECTS = (
    *_FILE,
    Column("source", pa.string(), "name of the source in the build"),
    Column("split", pa.string(), "train, val or test"),
    Column("source_id", pa.string(), "YouTube id and the like, null without one"),
    Column("start", pa.float64(), _PART.format("what was rejected")),
    Column("end", pa.float64(), "likewise, where it ends"),
    Column("reason", pa.string(), "one word: docs/columns.md lists them"),
    Column("detail", pa.string(), "what was found"),
)
DROPPED = (
    Column("source", pa.string(), "name of the source in the build"),
    *(column._replace(about=f"{column.about}; null where there is no file") for column in _FILE[:2]),
    _FILE[2],
    Column("split", pa.string(), "train, val or test"),
    Column("source_id", pa.string(), "YouTube id and the like, null without one"),
    Column("reason", pa.string(), "one word: docs/columns.md lists them"),
    Column("detail", pa.string(), "why, with the line of the list where there is one"),
)


def as_extra(values: Mapping[str, Any]) -> str | None:
    """What is known of a clip besides, values of JSON by name -> `extra`: without those that are empty, or over 1 KiB,
    captions 64. Numbers that are none become null, and half of a surrogate pair, as a caption that was cut off may have, a
    replacement character."""
    known = {name: value for name, value in values.items() if value not in (None, "", [], {})}
    plain = json.loads(json.dumps(known), parse_constant=lambda _: None)
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in plain.items()}
    most = {name: MAX_CAPTIONS if name == CAPTIONS else MAX_EXTRA for name in texts}
    fit = {name: plain[name] for name, text in texts.items() if len(text.encode("utf-8", "replace")) <= most[name]}
    text = json.dumps(fit, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if fit else None


def in_memory(columns: Sequence[Column]) -> pa.Schema:
    """The schema of rows that were not written yet, or were read by `read_rows`: `path` is bytes."""
    return pa.schema([(name, pa.binary() if name == "path" else kind) for name, kind, _ in columns if name != PATH_BYTES])


def on_disk(columns: Sequence[Column]) -> pa.Schema:
    """The schema of a file; what a column means is its metadata, too."""
    return pa.schema([pa.field(name, kind, metadata={"about": about}) for name, kind, about in columns])


def to_disk(rows: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """Rows as in memory (of more columns, in any order; `extra` may be missing) -> as they are written."""
    schema = in_memory(columns)
    if "extra" in schema.names and "extra" not in rows.column_names:
        rows = rows.append_column("extra", pa.nulls(len(rows), pa.string()))
    rows = rows.select(schema.names).cast(schema)
    paths, bare = rows["path"].combine_chunks(), pa.nulls(len(rows), pa.binary())
    try:
        text = paths.cast(pa.string())
    except pa.ArrowInvalid:  # one of them is no UTF-8
        pairs = [(None, None) if path is None else _text_and_bytes(path) for path in paths.to_pylist()]
        text, bare = pa.array([pair[0] for pair in pairs], pa.string()), pa.array([pair[1] for pair in pairs], pa.binary())
    place = rows.column_names.index("path")
    return rows.set_column(place, "path", text).add_column(place + 1, PATH_BYTES, bare).cast(on_disk(columns))


def _text_and_bytes(path: bytes) -> tuple[str, bytes | None]:
    text = path.decode("utf-8", "backslashreplace")
    return text, None if text.encode() == path else path


def _to_memory(rows: pa.Table) -> pa.Table:
    if "path" not in rows.column_names:
        return rows
    paths = rows["path"].cast(pa.binary())
    if PATH_BYTES in rows.column_names:
        paths = pc.coalesce(rows[PATH_BYTES], paths)
        rows = rows.drop_columns([PATH_BYTES])
    return rows.set_column(rows.column_names.index("path"), "path", paths).replace_schema_metadata()


def read_rows(file: Path, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
    """A table of a dataset, of this format or one before, as in memory."""
    return _to_memory(pq.read_table(file, columns=_with_bytes(pq.read_schema(file), columns), filters=filters))


def iter_rows(file: Path, columns: Sequence[str] | None = None, rows: int = 1 << 16) -> Iterator[pa.Table]:
    """Likewise in pieces of so many rows."""
    opened = pq.ParquetFile(file)
    for batch in opened.iter_batches(rows, columns=_with_bytes(opened.schema_arrow, columns)):
        yield _to_memory(pa.Table.from_batches([batch]))


def _with_bytes(schema: pa.Schema, columns: Sequence[str] | None) -> list[str] | None:
    if columns is None:
        return None
    there = [name for name in columns if name != "extra" or name in schema.names]
    return [*there, PATH_BYTES] if "path" in there and PATH_BYTES in schema.names else there
