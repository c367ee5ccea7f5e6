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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
        ("path", pa.binary()),  # of the source file: bytes, because a Linux path need not be UTF-8
        ("source_id", pa.string()),  # YouTube id and the like, null without one
        ("start", pa.float64()),  # seconds in the source file where a cut clip begins and ends, null if it is whole
        ("end", pa.float64()),
        ("content_hash", pa.string()),  # blake2b-128 of the encoded clip, hexadecimal
    ]
)
REJECT_SCHEMA = pa.schema([("path", pa.binary()), ("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
FORMAT = 1  # of the manifest; a reader refuses others
METADATA_KEY = b"tubecell"
# what the loader reads by row or as whole columns; the rest stays in the parquet file, for people and tools
CACHED = [name for name in SCHEMA.names if name not in ("path", "source_id", "start", "end", "sampling")]


def content_hash(data: bytes) -> str:
    """blake2b-128 of an encoded clip, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


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

    Numeric columns are NumPy arrays of length `len(self)` that share the mapped memory: `num_frames` (int32), `fps`
    (float64), `width`, `height` (int32, as displayed), `stride` (int32, 0 where a clip is sampled by time) and `interval`
    (float64, seconds, 0 where it is sampled by stride). Strings and key frames are read by row with `clip`.
    """

    def __init__(self, path: str | os.PathLike[str], version: int | None = None) -> None:
        """Open DATASET, at its latest version or an earlier one.

        Raises ValueError if there is no dataset, its format is another one, or the version does not exist.
        """
        self.root = Path(path)
        manifest = self.root / "manifest.parquet"
        if not manifest.is_file():
            what = (
                "is not finished: its build was interrupted; run the build command again"
                if ((self.root / "shards").is_dir())
                else "is no dataset: it has no manifest.parquet; build one with dataset_builders/build_unlabeled_hybrid.py"
            )
            raise ValueError(f"{self.root} {what}")
        description = _describe(manifest)
        self.versions: list[dict[str, Any]] = description["versions"]
        self.version = len(self.versions) if version is None else version
        if not 1 <= self.version <= len(self.versions):
            raise ValueError(f"{self.root} has versions 1 to {len(self.versions)}; version {version} was asked for")
        entry = self.versions[self.version - 1]
        self.fingerprint: str = entry["fingerprint"]
        table = open_cache(self.root, description["digest"]).slice(0, entry["rows"])
        self._table = table
        self.num_frames = _numpy(table, "num_frames")
        self.fps = _numpy(table, "fps")
        self.width = _numpy(table, "width")
        self.height = _numpy(table, "height")
        self.stride = _numpy(table, "stride")
        self.interval = _numpy(table, "interval")

    def __len__(self) -> int:
        return len(self.num_frames)

    def clip(self, row: int) -> Clip:
        """Row -> what the loader needs of it."""
        columns = self._table
        values = {name: columns[name][row].as_py() for name in Clip.__dataclass_fields__ if name != "row"}
        return Clip(row=int(row), **{**values, "keyframes": tuple(values["keyframes"])})

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column as Arrow, for reports and label maps."""
        return self._table[name]


def read_versions(manifest: Path) -> list[dict[str, Any]]:
    """The versions of a manifest file, oldest first: [{"rows": 87, "fingerprint": "..."}]."""
    return _describe(manifest)["versions"]


def _describe(manifest: Path) -> dict[str, Any]:
    metadata = (pq.read_schema(manifest).metadata or {}).get(METADATA_KEY)
    description = json.loads(metadata) if metadata else {}
    if description.get("format") != FORMAT:
        raise ValueError(f"{manifest} has manifest format {description.get('format')}; this tubecell reads format {FORMAT}")
    return description


def write_manifest(root: Path, rows: Sequence[Mapping[str, Any]], rejects: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Write rejects.parquet, then manifest.parquet, each under a temporary name that is renamed at the end.

    `rows` are dicts with the names of SCHEMA, in their final order: an existing manifest must be their beginning, and the
    rows after it become a new version (no new row, no new version). Returns the list of versions. Raises ValueError for
    rows that would change those of an existing version, for a duplicate key, or a key that holds a dot.
    """
    keys = [row["key"] for row in rows]
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        duplicate = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{root}: two clips have the key {duplicate!r}")
    if dotted := next((key for key in keys if "." in key), None):
        raise ValueError(f"{root}: key {dotted!r} holds a dot, which WebDataset takes for the beginning of the extension")
    manifest = root / "manifest.parquet"
    versions = read_versions(manifest) if manifest.exists() else []
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    for number, entry in enumerate(versions, start=1):
        if fingerprint(table.slice(0, entry["rows"])) != entry["fingerprint"]:
            raise ValueError(f"{root}: the new manifest does not begin with the rows of version {number}")
    if not versions or len(table) > versions[-1]["rows"]:
        versions.append({"rows": len(table), "fingerprint": fingerprint(table)})
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, "versions": versions, "digest": _digest(table)})}
    _write_parquet(pa.Table.from_pylist([dict(row) for row in rejects], schema=REJECT_SCHEMA), root / "rejects.parquet")
    _write_parquet(table.replace_schema_metadata(metadata), manifest)
    return versions


def fingerprint(table: pa.Table) -> str:
    """Digest of everything that decides what a (seed, epoch, position) means: order, content, length, rate, size."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("key", "content_hash", "num_frames", "fps", "width", "height", "rotation", "sampling"):
        for value in table[name].to_pylist():
            digest.update(f"{value}\0".encode())
    return digest.hexdigest()


def _digest(table: pa.Table) -> str:
    """Of every column: names the cache, which must not outlive a rebuild that only moved clips inside shards."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return hashlib.blake2b(sink.getvalue(), digest_size=16).hexdigest()


def open_cache(root: Path, name: str) -> pa.Table:
    """The loader's columns as memory-mapped Arrow, shared by every process of a node; made on first use.

    It lies in DATASET/.cache, or in the user's cache folder where the dataset is read-only.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tubecell"
    for folder in (root / ".cache", home):
        file = folder / f"{name}.arrow"
        try:
            if not file.exists():
                folder.mkdir(parents=True, exist_ok=True)
                _write_cache(root, file)
            return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        except OSError:
            continue
    raise ValueError(f"neither {root / '.cache'} nor {home} can be written; set XDG_CACHE_HOME to a folder that can")


def _write_cache(root: Path, file: Path) -> None:
    table = pq.read_table(root / "manifest.parquet", columns=[*CACHED, "sampling"])
    sampling = table["sampling"].combine_chunks().dictionary_encode()
    steps = [parse_sampling(text) for text in sampling.dictionary.to_pylist()]
    codes = sampling.indices.to_numpy()
    table = table.drop_columns(["sampling"])
    table = table.append_column("stride", pa.array(np.array([s for s, _ in steps], np.int32)[codes]))
    table = table.append_column("interval", pa.array(np.array([s for _, s in steps], np.float64)[codes]))
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
        with pa.ipc.new_file(temporary, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        os.chmod(temporary.name, 0o644)  # others use the dataset, too
        os.replace(temporary.name, file)


def _write_parquet(table: pa.Table, file: Path) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, file)


def _numpy(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column without a copy (one chunk: the cache is written that way)."""
    column = table[name]
    if column.num_chunks == 0:
        return np.empty(0, dtype=column.type.to_pandas_dtype())
    return column.chunk(0).to_numpy(zero_copy_only=True)
