"""The manifest: one row per clip of a dataset. The only file that knows the column names.

    DATASET/
      shards/NAME-000000.tar   plain WebDataset: KEY.mp4 + KEY.json per clip
      manifest.parquet         a row per clip, in the order in which versions appended them
      rejects.parquet          a row per input that was not taken: path, source, reason, detail
      dataset.json             how it was built, for people and for `resume`
      .cache/                  the columns the loader needs, as memory-mapped Arrow (made on first use)

Readers trust only `manifest.parquet`: it is written last, and its schema metadata lists the versions. Version v is the
first `rows` rows; extending a dataset appends rows and a version, so a running job stays on the rows that it started with.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipeline.storage import files, remote

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # unique, without dots: the WebDataset sample key
        ("source", pa.string()),
        ("split", pa.string()),  # "train", "val" or "test"
        ("label", pa.string()),  # class name, null without labels
        ("shard", pa.string()),  # path relative to the dataset, or a URL
        ("offset", pa.int64()),  # of the encoded clip's first byte in the shard
        ("size", pa.int64()),  # bytes
        ("num_frames", pa.int32()),  # counted by decoding the whole clip
        ("fps", pa.float64()),  # frames per second; the mean rate where frames are not equally spaced
        ("width", pa.int32()),  # pixels as displayed, that is after `rotation`
        ("height", pa.int32()),
        ("codec", pa.string()),  # FFmpeg's name: h264, vp9, mjpeg ...
        ("duration", pa.float64()),  # seconds
        ("rotation", pa.int16()),  # degrees counter-clockwise to turn a decoded frame by: 0, 90, 180, 270
        ("matrix", pa.string()),  # YCbCr matrix: bt601, bt709, bt2020
        ("range", pa.string()),  # "limited" or "full"
        ("sampling", pa.string()),  # "stride:4" or "seconds:0.133333", see `parse_sampling`
        ("keyframes", pa.list_(pa.int32())),  # presentation indices of the frames a decoder can start at
        ("pts_start", pa.int64()),  # time stamp of frame 0, in the stream's time base
        ("pts_step", pa.int64()),  # time stamp distance of consecutive frames; 0 where it is not constant
        ("root", pa.string()),  # name of the folder that the source file was found in, as dataset.json lists them
        ("path", pa.binary()),  # of the source file in it: bytes, because a Linux path need not be UTF-8
        ("source_id", pa.string()),  # YouTube id and the like, null without one
        ("start", pa.float64()),  # seconds in the source file where a cut clip begins and ends, null if it is whole
        ("end", pa.float64()),
        ("content_hash", pa.string()),  # XXH3-128 of the encoded clip, hexadecimal
    ]
)
REJECT_SCHEMA = pa.schema(
    [
        ("root", pa.string()),
        ("path", pa.binary()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("source_id", pa.string()),
        ("start", pa.float64()),  # seconds in the source file where a rejected piece begins and ends, null for a whole file
        ("end", pa.float64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
FORMAT = 2  # of the manifest; a reader refuses others
METADATA_KEY = b"tubecell"
ROW_GROUP = 1 << 16  # rows that are held in memory while a manifest is written
# what the loader reads by row or as whole columns; the rest stays in the parquet file, for people and tools
CACHED = [name for name in SCHEMA.names if name not in ("root", "path", "source_id", "start", "end", "sampling", "duration")]
NAMES = ("source", "split", "label", "shard", "codec", "matrix", "range")  # few different values: cached as dictionaries


def content_hash(data: bytes) -> str:
    """XXH3-128 of an encoded clip, hexadecimal: it shall find bit rot, at every read (300 kB: 0.03 ms; BLAKE2 takes 0.4)."""
    return xxhash.xxh3_128_hexdigest(data)


def parse_sampling(text: str) -> tuple[int, float]:
    """`"stride:4"` -> (4, 0.0) and `"seconds:0.133333"` -> (0, 0.133333).

    An exact stride is the papers' way (4 at about 30 fps, 2 for Something-Something at 12); an interval in seconds keeps
    the speed of motion equal in a folder of mixed frame rates. Raises ValueError for anything else.
    """
    kind, _, value = text.partition(":")
    try:
        if kind == "stride" and int(value) >= 1:
            return int(value), 0.0
        if kind == "seconds" and 0 < float(value) < 3600:
            return 0, float(value)
    except ValueError:
        pass
    raise ValueError(f"sampling {text!r} is not known; allowed are 'stride:N' with N >= 1 and 'seconds:S' with S > 0")


@dataclass(frozen=True, slots=True)
class Clip:
    """What is needed to fetch and decode one clip; the fields are columns of the manifest."""

    row: int
    key: str
    shard: str
    offset: int
    size: int
    num_frames: int
    width: int
    height: int
    codec: str
    rotation: int
    matrix: str
    range: str
    pts_start: int
    pts_step: int
    keyframes: tuple[int, ...]
    content_hash: str


class Manifest:
    """The clips of one version of a dataset, memory-mapped.

    Numeric columns are NumPy arrays of length `len(self)` that share the mapped memory: `num_frames`, `width`, `height`
    (int16 or int32, as large as needed; sizes as displayed), `fps` (float64), `stride` (int32, 0 where a clip is sampled by
    time), `interval` (float64, seconds, 0 where it is sampled by stride) and `source` (int16, place in the list `sources`).
    Strings and key frames are read by row with `clip`. 1.35 million clips: 180 MB, made in 2.3 s and then mapped in 3 ms.
    """

    def __init__(self, path: str | os.PathLike[str], version: int | None = None) -> None:
        """Open DATASET, at its latest version or an earlier one.

        `path` is a folder, or a URL whose manifest is then mirrored in the user's cache (`root` is the mirror). Raises
        ValueError if there is no dataset, its format is another one, or the version does not exist.
        """
        try:
            self.root = files.fetch_manifest(path) if remote.is_url(path) else Path(path)
        except remote.StorageError as error:
            raise ValueError(f"no dataset could be read at {remote.as_given(path)}: {error}") from error
        self.place = files.origin(self.root) or os.fspath(self.root)  # as a user knows it: the folder, or the URL
        manifest = self.root / "manifest.parquet"
        if not manifest.is_file():
            what = (
                "is not finished: its build was interrupted; run the build command again"
                if ((self.root / "shards").is_dir())
                else "is no dataset: it has no manifest.parquet; build one with dataset_builders/build_unlabeled_hybrid.py"
            )
            raise ValueError(f"{self.place} {what}")
        description = _describe(manifest)
        self.versions: list[dict[str, Any]] = description["versions"]
        self.version = len(self.versions) if version is None else version
        if not 1 <= self.version <= len(self.versions):
            raise ValueError(f"{self.place} has versions 1 to {len(self.versions)}; version {version} was asked for")
        entry = self.versions[self.version - 1]
        self.fingerprint: str = entry["fingerprint"]
        table = open_cache(self.root, description["digest"]).slice(0, entry["rows"])
        self._table = table
        self._clips = {name: table[name].chunk(0) for name in Clip.__dataclass_fields__ if name != "row" and entry["rows"]}
        self.num_frames = _numpy(table, "num_frames")
        self.fps = _numpy(table, "fps")
        self.width = _numpy(table, "width")
        self.height = _numpy(table, "height")
        self.stride = _numpy(table, "stride")
        self.interval = _numpy(table, "interval")
        self.sources: list[str] = table["source"].chunk(0).dictionary.to_pylist() if table["source"].num_chunks else []
        self.source = _codes(table, "source")

    def __len__(self) -> int:
        return len(self.num_frames)

    def clip(self, row: int) -> Clip:
        """Row -> what the loader needs of it."""
        values = {name: column[row].as_py() for name, column in self._clips.items()}
        values |= {"keyframes": tuple(values["keyframes"]), "content_hash": values["content_hash"].hex()}
        return Clip(row=int(row), **values)

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column as Arrow, for reports and label maps."""
        return self._table[name]


def read_versions(manifest: Path) -> list[dict[str, Any]]:
    """The versions of a manifest file, oldest first: [{"rows": 87, "fingerprint": "..."}]."""
    return _describe(manifest)["versions"]


def _describe(manifest: Path) -> dict[str, Any]:
    metadata = (pq.read_metadata(manifest).metadata or {}).get(METADATA_KEY)
    description = json.loads(metadata) if metadata else {}
    if (found := description.get("format")) != FORMAT:
        hint = "build the dataset again in another folder" if isinstance(found, int) and found < FORMAT else "update tubecell"
        raise ValueError(f"{manifest} has manifest format {found}; this tubecell reads format {FORMAT}: {hint}")
    return description


def write_manifest(root: Path, parts: Iterable[tuple[pa.Table, pa.Table]]) -> list[dict[str, Any]]:
    """Write rejects.parquet and manifest.parquet, each under a temporary name that is renamed at the end.

    `parts` are (rows with SCHEMA, rejects with REJECT_SCHEMA), in their final order; they are streamed, so memory does not
    grow with their number. An existing manifest must be their beginning, and the rows after it become a new version (no new
    row, no new version). Returns the list of versions. Raises ValueError for rows that would change those of an existing
    version, for a duplicate key, or a key that holds a dot.
    """
    manifest = root / "manifest.parquet"
    versions = read_versions(manifest) if manifest.exists() else []
    digest, prefix = hashlib.blake2b(digest_size=16), _Prefix(root, versions)
    with _ParquetFile(manifest, SCHEMA) as rows, _ParquetFile(root / "rejects.parquet", REJECT_SCHEMA) as rejects:
        for table, rejected in parts:
            rows.write(table)
            rejects.write(rejected)
            prefix.update(table)
            for batch in table.combine_chunks().to_batches():
                digest.update(batch.serialize())
        versions = prefix.finish()
        rows.add_metadata({"format": FORMAT, "versions": versions, "digest": digest.hexdigest()})
        rows.close()
        _check_keys(rows.temporary, root)
        rejects.commit()
        rows.commit()
    return versions


def _check_keys(file: Path, root: Path) -> None:
    """On the finished file, because only the keys of one column are needed at once: about 45 bytes a clip."""
    keys = pq.read_table(file, columns=["key"])["key"]
    if pc.any(pc.match_substring(keys, ".")).as_py():
        dotted = keys.filter(pc.match_substring(keys, "."))[0].as_py()
        raise ValueError(f"{root}: key {dotted!r} holds a dot, which WebDataset takes for the beginning of the extension")
    if pc.count_distinct(keys).as_py() < len(keys):
        counts = pc.value_counts(keys.combine_chunks())
        duplicate = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise ValueError(f"{root}: two clips have the key {duplicate!r}")


class Fingerprint:
    """Digest of everything that decides what a (seed, epoch, position) means: order, content, length, rate, size.

    Fed with tables of consecutive rows; how they are divided does not matter.
    """

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def update(self, table: pa.Table) -> None:
        """Rows with (at least) the columns of SCHEMA that count."""
        columns = []
        for name in ("key", "content_hash", "num_frames", "fps", "width", "height", "rotation", "source", "sampling"):
            column = table[name].combine_chunks()
            if pa.types.is_floating(column.type):  # by its bits: how a number is printed may change
                column = column.cast(pa.float64()).view(pa.int64())
            columns.append(column.cast(pa.string()))
        lines = pc.binary_join_element_wise(*columns, pa.scalar("\n"), "\0")
        for chunk in lines.chunks if isinstance(lines, pa.ChunkedArray) else [lines]:
            if len(chunk):
                assert not chunk.null_count and chunk.offset == 0
                self._digest.update(memoryview(chunk.buffers()[2])[: _text_size(chunk)])

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _text_size(strings: pa.StringArray) -> int:
    return int(np.frombuffer(strings.buffers()[1], np.int32)[len(strings)])


class _Prefix:
    """Checks, while rows stream by, that they begin with those of the versions so far, and makes the next version."""

    def __init__(self, root: Path, versions: list[dict[str, Any]]) -> None:
        self._root, self._versions = root, versions
        self._pending = list(enumerate(versions, start=1))
        self._fingerprint, self._rows = Fingerprint(), 0

    def update(self, table: pa.Table) -> None:
        while self._pending and self._rows + len(table) >= self._pending[0][1]["rows"]:
            number, entry = self._pending.pop(0)
            inside = entry["rows"] - self._rows
            self._take(table.slice(0, inside))
            table = table.slice(inside)
            if self._fingerprint.hexdigest() != entry["fingerprint"]:
                raise ValueError(f"{self._root}: the new manifest does not begin with the rows of version {number}")
        self._take(table)

    def _take(self, table: pa.Table) -> None:
        self._fingerprint.update(table)
        self._rows += len(table)

    def finish(self) -> list[dict[str, Any]]:
        if self._pending:
            raise ValueError(f"{self._root}: the new manifest does not begin with the rows of version {self._pending[0][0]}")
        if not self._versions or self._rows > self._versions[-1]["rows"]:
            return [*self._versions, {"rows": self._rows, "fingerprint": self._fingerprint.hexdigest()}]
        return self._versions


class _ParquetFile:
    """A parquet file under a temporary name, written in large row groups; it disappears unless it is committed."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._file, self.temporary = file, file.with_name(f".{file.name}.{os.getpid()}.tmp")
        self._writer = pq.ParquetWriter(self.temporary, schema, compression="zstd")
        self._schema, self._waiting, self._rows = schema, [schema.empty_table()], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self.temporary.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table.select(self._schema.names).cast(self._schema))
        self._rows += len(table)
        if self._rows >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        # whole groups only: bytes must not depend on how rows arrive
        table = pa.concat_tables(self._waiting).combine_chunks()
        whole = len(table) // ROW_GROUP * ROW_GROUP
        if whole:
            self._writer.write_table(table.slice(0, whole), row_group_size=ROW_GROUP)
        self._waiting, self._rows = [table.slice(whole)], len(table) - whole

    def add_metadata(self, description: dict[str, Any]) -> None:
        self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(description).encode()})

    def close(self) -> None:
        if self._writer.is_open:
            self._flush()
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=ROW_GROUP)
            self._writer.close()

    def commit(self) -> None:
        self.close()
        with self.temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self._file)


def open_cache(root: Path, name: str) -> pa.Table:
    """The loader's columns as memory-mapped Arrow, shared by every process of a node; made on first use.

    It lies in DATASET/.cache, or in the user's cache folder where the dataset is read-only.
    """
    wrong = []
    for place in (lambda: root / ".cache", files.cache_folder):
        try:
            folder = place()
            file = folder / f"{name}.arrow"
            if not file.exists():
                folder.mkdir(parents=True, exist_ok=True)
                _write_cache(root, file)
            return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        except OSError as error:
            wrong.append(str(error))
    told = "; ".join(dict.fromkeys(wrong))
    raise ValueError(
        f"neither {root / '.cache'} nor this user's cache folder can be used ({told}); set XDG_CACHE_HOME to one that can be "
        "written, and see that the dataset can be read"
    )


def _write_cache(root: Path, file: Path) -> None:
    table = pq.read_table(root / "manifest.parquet", columns=[*CACHED, "sampling"], read_dictionary=[*NAMES, "sampling"])
    table = table.unify_dictionaries().combine_chunks()
    sampling = table["sampling"].combine_chunks()
    steps = [parse_sampling(text) for text in sampling.dictionary.to_pylist()]
    codes = sampling.indices.to_numpy()
    hashes = pa.array([bytes.fromhex(text) for text in table["content_hash"].to_pylist()], pa.binary(16))
    table = table.drop_columns(["sampling"]).set_column(CACHED.index("content_hash"), "content_hash", hashes)
    table = table.append_column("stride", pa.array(np.array([s for s, _ in steps], np.int32)[codes]))
    table = table.append_column("interval", pa.array(np.array([s for _, s in steps], np.float64)[codes]))
    table = pa.table({name: _smaller(table[name].combine_chunks()) for name in table.column_names})
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
        with pa.ipc.new_file(temporary, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        os.chmod(temporary.name, 0o644)  # others use the dataset, too
        os.replace(temporary.name, file)


def _smaller(column: pa.Array) -> pa.Array:
    """The same values in fewer bytes: 260 -> 190 MB for 1.35 million clips."""
    kind = column.type
    if pa.types.is_dictionary(kind) and len(column.dictionary) < 1 << 15:
        return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int16()), column.dictionary)
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(column.offsets, _smaller(column.values))
    if pa.types.is_integer(kind) and len(column):
        extremes = pc.min_max(column)
        if extremes["min"].as_py() >= -(1 << 15) and extremes["max"].as_py() < 1 << 15:
            return column.cast(pa.int16())
    return column


def _numpy(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column without a copy (one chunk: the cache is written that way)."""
    column = table[name]
    if column.num_chunks == 0:
        return np.empty(0, dtype=column.type.to_pandas_dtype())
    return column.chunk(0).to_numpy(zero_copy_only=True)


def _codes(table: pa.Table, name: str) -> np.ndarray:
    """The indices of a dictionary column without a copy."""
    column = table[name]
    return column.chunk(0).indices.to_numpy(zero_copy_only=True) if column.num_chunks else np.empty(0, np.int32)
