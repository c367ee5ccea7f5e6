"""The manifest: one row per clip of a dataset. What the columns mean stands in `columns`.

    DATASET/
      shards/NAME-000000.tar   plain WebDataset: KEY.mp4 + KEY.json per clip
      manifest.parquet         a row per clip, in the order in which versions appended them
      rejects.parquet          a row per input that was not taken: path, source, reason, detail
      dataset.json             how it was built, for people and for `resume`
      .cache/                  the columns the loader needs, as memory-mapped Arrow (made on first use)

Readers trust only `manifest.parquet`: it is written last, and its schema metadata lists the versions. Version v is the
first `rows` rows; extending a dataset appends rows and a version, so a running job stays on the rows that it started with.

A manifest is opened with pyarrow, once. Processes that decode are sent it, and map its columns without: pyarrow's allocators
start threads, and a process that has some is not forked.
"""

import json
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from pipeline.storage import files, remote
from pipeline.storage.manifest_cache import write_cache

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 3  # of the manifest; a reader refuses newer ones: a clip's `rotation` may be 360, which format 2 did not know
OLDEST_FORMAT = 2  # that is read: see `columns`
METADATA_KEY = b"tubecell"
# what the loader reads by row or as whole columns; the rest stays in the parquet file, for people and tools
CACHED = [
    *("key", "source", "split", "label", "shard", "offset", "size", "num_frames", "fps", "width", "height", "codec"),
    *("rotation", "matrix", "range", "keyframes", "pts_start", "pts_step", "content_hash"),
]
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
    `split` is a clip's place in the list `splits`, -1 without one; `shards` is a list of names, too. Strings and key frames
    are read by row with `clip`. 1.35 million clips: 180 MB, made in 2.3 s and then mapped in 3 ms.
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
                else "is no dataset: it has no manifest.parquet; build one with `tubecell build-unlabeled-hybrid`"
            )
            raise ValueError(f"{self.place} {what}")
        description = _describe(manifest)
        self.versions: list[dict[str, Any]] = description["versions"]
        self.version = len(self.versions) if version is None else version
        if not 1 <= self.version <= len(self.versions):
            raise ValueError(f"{self.place} has versions 1 to {len(self.versions)}; version {version} was asked for")
        entry = self.versions[self.version - 1]
        self.fingerprint: str = entry["fingerprint"]
        self._digest: str = description["digest"]
        self._map(*open_cache(self.root, self._digest))

    def _map(self, file: Path, places: "dict[str, _Place]") -> None:
        self._file, rows = file, self.versions[self.version - 1]["rows"]
        with file.open("rb") as opened:
            memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        columns = {name: _Column(memory, *place) for name, place in places.items()}
        whole = ("num_frames", "fps", "width", "height", "stride", "interval", "source")
        numbers = [columns[name].values[:rows] for name in whole]
        self.num_frames, self.fps, self.width, self.height, self.stride, self.interval, self.source = numbers
        self.sources, self.shards = columns["source"].names, columns["shard"].names
        self.split, self.splits = columns["split"].codes()[:rows], columns["split"].names
        self._clips = {name: columns[name] for name in Clip.__dataclass_fields__ if name != "row"}

    def __getstate__(self) -> dict[str, Any]:
        """For another process: where the columns lie in the file, which is made again if it is gone."""
        names = ("root", "place", "versions", "version", "fingerprint", "_digest")
        return {name: getattr(self, name) for name in names} | {"mapped": open_cache(self.root, self._digest)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        mapped = state.pop("mapped")
        self.__dict__.update(state)
        self._map(*mapped)

    def __len__(self) -> int:
        return len(self.num_frames)

    def clip(self, row: int) -> Clip:
        """Row -> what the loader needs of it."""
        return Clip(row=int(row), **{name: column[row] for name, column in self._clips.items()})

    def cached(self, name: str, write: Callable[[Path], None]) -> Path:
        """A file made of all rows of this manifest's file by `write` on first use: see `cached_file`."""
        stem, suffix = os.path.splitext(name)
        return cached_file(self.root, f"{stem}-{self._digest}{suffix}", write)

    def column(self, name: str, *, whole: bool = False) -> "pa.ChunkedArray":
        """A column as Arrow, for reports and label maps; `whole`: of later versions' rows, too."""
        import pyarrow as pa

        column = pa.ipc.open_file(pa.memory_map(str(self._file))).read_all()[name]
        return column if whole else column.slice(0, len(self))


_Place = tuple[list[tuple[str, int, int]], list[str]]
"""(NumPy type, first byte, items) of a column's arrays in a file: its values, and before them, if a row has several, where each
row's begin (or which rows have a value, a bit each, where some have none); then what the values stand for, if they are places
in a list."""


class _Column:
    """A mapped column, as an array of `values` and row by row."""

    def __init__(self, memory: mmap.mmap, arrays: list[tuple[str, int, int]], names: list[str]) -> None:
        *begins, self.values = (np.ndarray(items, kind, memory, begin) for kind, begin, items in arrays)
        self._begins, self.names = begins[0] if begins else None, names  # of names: which rows have one, a bit each

    def codes(self) -> np.ndarray:
        """Places in `names`; -1 for a row that has none."""
        if self._begins is None:
            return self.values
        there = np.unpackbits(self._begins, count=len(self.values), bitorder="little").view(np.bool_)
        return np.where(there, self.values, np.array(-1, self.values.dtype))

    def __getitem__(self, row: int) -> Any:
        if self._begins is not None:
            values = self.values[self._begins[row] : self._begins[row + 1]]
            return values.tobytes().decode() if values.dtype == np.uint8 else tuple(values.tolist())
        if self.names:
            return self.names[self.values[row]]
        return self.values[row].tobytes().hex() if self.values.dtype.kind == "V" else self.values[row].item()


def read_versions(manifest: Path) -> list[dict[str, Any]]:
    """The versions of a manifest file, oldest first: [{"rows": 87, "fingerprint": "..."}]."""
    return _describe(manifest)["versions"]


def _describe(manifest: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    metadata = (pq.read_metadata(manifest).metadata or {}).get(METADATA_KEY)
    description = json.loads(metadata) if metadata else {}
    if not isinstance(found := description.get("format"), int) or not OLDEST_FORMAT <= found <= FORMAT:
        old = isinstance(found, int) and found < OLDEST_FORMAT
        hint = "build the dataset again in another folder" if old else "update tubecell"
        raise ValueError(f"{manifest} has manifest format {found}; this tubecell reads {OLDEST_FORMAT} to {FORMAT}: {hint}")
    return description


def open_cache(root: Path, name: str) -> tuple[Path, dict[str, _Place]]:
    """The file with the loader's columns, Arrow that all processes of a node map, and where each lies in it."""
    file = cached_file(
        root, f"{name}.arrow", lambda file: write_cache(root / "manifest.parquet", file, CACHED, NAMES, parse_sampling)
    )
    try:
        return file, _find_columns(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error}); remove it, and it is made again") from None


def cached_file(root: Path, name: str, write: Callable[[Path], None]) -> Path:
    """A file beside a dataset that `write` makes on first use, whole or not at all: in DATASET/.cache, or in the user's cache
    folder where the dataset is read-only. Raises ValueError where neither can be used."""
    wrong = []
    for place in (lambda: root / ".cache", files.cache_folder):
        try:
            folder = place()
            file = folder / name
            if not file.exists():
                folder.mkdir(parents=True, exist_ok=True)
                write(file)
            return file.resolve()
        except OSError as error:
            wrong.append(str(error))
    told = "; ".join(dict.fromkeys(wrong))
    raise ValueError(
        f"neither {root / '.cache'} nor this user's cache folder can be used ({told}); set XDG_CACHE_HOME to one that can be "
        "written, and see that the dataset can be read"
    )


def _find_columns(file: Path) -> dict[str, _Place]:
    import pyarrow as pa

    whole = pa.memory_map(str(file)).read_buffer()
    table = pa.ipc.open_file(whole).read_all()

    def array(kind: str, buffer: "pa.Buffer | None", items: int) -> tuple[str, int, int]:
        return (kind, buffer.address - whole.address, items) if buffer and len(table) else (kind, 0, 0)

    def find(column: "pa.Array") -> _Place:
        kind, rows, (valid, first, *rest) = column.type, len(column), column.buffers()
        if pa.types.is_dictionary(kind):
            there = [array("u1", valid, -(-rows // 8))] if column.null_count else []
            return [*there, array(np.dtype(kind.index_type.to_pandas_dtype()).str, first, rows)], column.dictionary.to_pylist()
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            offsets = "i4" if pa.types.is_string(kind) else "i8"
            return [array(offsets, first, rows + 1), array("u1", rest[0], rest[0].size if rest[0] else 0)], []
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return [array("i4" if pa.types.is_list(kind) else "i8", first, rows + 1), *find(column.values)[0]], []
        binary = pa.types.is_fixed_size_binary(kind)
        return [array(f"V{kind.byte_width}" if binary else np.dtype(kind.to_pandas_dtype()).str, first, rows)], []

    # one chunk: the cache is written that way; none without rows
    chunks = {name: table[name].chunk(0) if len(table) else pa.array([], table[name].type) for name in table.column_names}
    del chunks["label"]  # the trainer's alone; they may be a million captions
    assert not any(chunk.null_count for name, chunk in chunks.items() if name != "split"), f"{file}: null values"
    return {name: find(chunk) for name, chunk in chunks.items()}
