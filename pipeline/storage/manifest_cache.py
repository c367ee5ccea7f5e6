"""Writes the columns that a loader maps: the manifest's, in one batch of Arrow, without holding them.

Two passes over the parquet file, a few thousand rows at a time: the first finds what values there are, so that the second can
write every column to its place in a file without a name, from which Arrow writes the batch. What is held grows with the number
of different names, not with that of clips; while the cache is made, its disk has it twice.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1 << 16  # read at once
ALIGNMENT = 64  # of arrays
MOST_ITEMS = (1 << 31) - 1  # that offsets of 32 bits reach; they have 64 where there are more
SMALL = 1 << 15  # whole numbers from -SMALL to below it take 2 bytes
SAMPLING = "sampling"  # the column that becomes "stride" and "interval"


def write_cache(
    manifest: Path, file: Path, columns: Sequence[str], names: Sequence[str], parse: Callable[[str], tuple[int, float]]
) -> None:
    """`columns` of a manifest, and the "stride" and the "interval" that `parse` makes of its sampling; `names` have few
    different values, and become dictionaries. Raises OSError, and ValueError as `parse` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(manifest)
    parts = {name: _Names() if name in names else _part(name, schema.field(name).type) for name in columns}
    rates, rows = _Rates(parse), 0
    read = [*columns, SAMPLING], [*names, SAMPLING]
    for batch in _batches(manifest, *read):
        rows += len(batch)
        rates.look(batch.column(SAMPLING))
        for name, part in parts.items():
            part.look(batch.column(name))
    end = 0
    for part in (*parts.values(), rates):
        end = part.place(rows, end)
    with tempfile.TemporaryFile(dir=file.parent) as kept:
        os.truncate(kept.fileno(), max(end, 1))
        for batch in _batches(manifest, *read):
            rates.write(batch.column(SAMPLING), kept.fileno())
            for name, part in parts.items():
                part.write(batch.column(name), kept.fileno())
        with pa.memory_map(f"/proc/self/fd/{kept.fileno()}") as memory:
            whole = memory.read_buffer()
            arrays = {name: part.array(whole, rows) for name, part in parts.items()} | rates.arrays(whole, rows)
            write_arrow(pa.table(arrays).combine_chunks(), file)
            del arrays, whole


def write_arrow(table: "pa.Table", file: Path) -> None:
    """Arrow that others map, in as many batches as the table has chunks. Raises OSError."""
    write_batches(table.schema, table.to_batches(), file)


def write_batches(schema: "pa.Schema", batches: "Iterable[pa.RecordBatch]", file: Path) -> None:
    """Arrow that others map, whole or not at all. Raises OSError, and whatever the batches do."""
    import pyarrow as pa

    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
        try:
            with pa.ipc.new_file(temporary, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            temporary.flush()  # other ranks read it as soon as it has its name
            os.chmod(temporary.name, 0o644)  # others use the dataset, too
            os.replace(temporary.name, file)
        except BaseException:
            os.unlink(temporary.name)
            raise


def _batches(manifest: Path, columns: list[str], names: list[str]) -> "Iterator[pa.RecordBatch]":
    import pyarrow.parquet as pq

    with pq.ParquetFile(manifest, read_dictionary=names) as file:
        yield from file.iter_batches(ROWS, columns=columns)


@dataclass(slots=True)
class _Array:
    """Items of one type, to be written one after the other into a place of a file."""

    kind: np.dtype
    begin: int = 0
    written: int = 0

    def place(self, items: int, end: int) -> int:
        """After `end` bytes -> where it ends."""
        self.begin = -(-end // ALIGNMENT) * ALIGNMENT
        return self.begin + items * self.kind.itemsize

    def write(self, values: np.ndarray, descriptor: int) -> None:
        data = memoryview(np.ascontiguousarray(values, self.kind).view(np.uint8).data)
        while len(data):
            done = os.pwrite(descriptor, data, self.begin + self.written)
            self.written, data = self.written + done, data[done:]

    def buffer(self, whole: "pa.Buffer") -> "pa.Buffer":
        return whole.slice(self.begin, self.written)


class _Part:
    """A column: first it looks at all its values, then it gets a place, and writes them there."""

    def look(self, values: "pa.Array") -> None:
        raise NotImplementedError

    def place(self, rows: int, end: int) -> int:
        raise NotImplementedError

    def write(self, values: "pa.Array", descriptor: int) -> None:
        raise NotImplementedError

    def array(self, whole: "pa.Buffer", rows: int) -> "pa.Array":
        raise NotImplementedError


class _Numbers(_Part):
    """Whole numbers in as few bytes as they need, or others."""

    def __init__(self, kind: "pa.DataType") -> None:
        self._type = kind
        self._least, self._most, self.items = 0, 0, 0

    def look(self, values: "pa.Array") -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        assert not values.null_count, "null values"
        self.items += len(values)
        if pa.types.is_integer(self._type) and len(values):
            extremes = pc.min_max(values)
            self._least = min(self._least, extremes["min"].as_py())
            self._most = max(self._most, extremes["max"].as_py())

    def place(self, rows: int, end: int) -> int:
        import pyarrow as pa

        if self.items and pa.types.is_integer(self._type) and self._least >= -SMALL and self._most < SMALL:
            self._type = pa.int16()
        self._array = _Array(np.dtype(self._type.to_pandas_dtype()))
        return self._array.place(self.items, end)

    def write(self, values: "pa.Array", descriptor: int) -> None:
        self._array.write(values.to_numpy(zero_copy_only=False), descriptor)

    def array(self, whole: "pa.Buffer", rows: int) -> "pa.Array":
        import pyarrow as pa

        return pa.Array.from_buffers(self._type, self.items, [None, self._array.buffer(whole)])

    @property
    def written(self) -> int:
        """Items."""
        return self._array.written // self._array.kind.itemsize


class _Texts(_Part):
    """Strings, all different."""

    def __init__(self) -> None:
        self.items = self._size = 0

    def look(self, values: "pa.Array") -> None:
        assert not values.null_count, "null values"
        offsets, _ = _text(values)
        self.items, self._size = self.items + len(values), self._size + int(offsets[-1] - offsets[0])

    def place(self, rows: int, end: int) -> int:
        self._offsets = _Array(np.dtype(np.int32 if self._size <= MOST_ITEMS else np.int64))
        self._bytes = _Array(np.dtype(np.uint8))
        return self._bytes.place(self._size, self._offsets.place(self.items + 1, end))

    def write(self, values: "pa.Array", descriptor: int) -> None:
        offsets, data = _text(values)
        _write_offsets(self._offsets, offsets, self._bytes.written, descriptor)
        self._bytes.write(data[offsets[0] : offsets[-1]], descriptor)

    def array(self, whole: "pa.Buffer", rows: int) -> "pa.Array":
        import pyarrow as pa

        kind = pa.string() if self._offsets.kind.itemsize == 4 else pa.large_string()
        buffers = [None, self._offsets.buffer(whole), self._bytes.buffer(whole)]
        return pa.Array.from_buffers(kind, rows, buffers) if rows else pa.array([], kind)


class _Lists(_Part):
    """Whole numbers, a few a row."""

    def __init__(self, kind: "pa.DataType") -> None:
        self._values, self.items = _Numbers(kind), 0

    def look(self, values: "pa.Array") -> None:
        assert not values.null_count, "null values"
        self.items += len(values)
        self._values.look(values.flatten())

    def place(self, rows: int, end: int) -> int:
        self._offsets = _Array(np.dtype(np.int32 if self._values.items <= MOST_ITEMS else np.int64))
        return self._values.place(rows, self._offsets.place(self.items + 1, end))

    def write(self, values: "pa.Array", descriptor: int) -> None:
        offsets = values.offsets.to_numpy()
        _write_offsets(self._offsets, offsets, self._values.written, descriptor)
        self._values.write(values.flatten(), descriptor)

    def array(self, whole: "pa.Buffer", rows: int) -> "pa.Array":
        import pyarrow as pa

        narrow, values = self._offsets.kind.itemsize == 4, self._values.array(whole, rows)
        if not rows:
            return pa.array([], pa.list_(values.type))
        offsets = pa.Array.from_buffers(pa.int32() if narrow else pa.int64(), rows + 1, [None, self._offsets.buffer(whole)])
        return (pa.ListArray if narrow else pa.LargeListArray).from_arrays(offsets, values)


class _Digests(_Part):
    """Hexadecimal text, as 16 bytes."""

    def __init__(self) -> None:
        self._array = _Array(np.dtype("V16"))

    def look(self, values: "pa.Array") -> None:
        assert not values.null_count, "null values"

    def place(self, rows: int, end: int) -> int:
        return self._array.place(rows, end)

    def write(self, values: "pa.Array", descriptor: int) -> None:
        digests = b"".join(bytes.fromhex(text) for text in values.to_pylist())
        assert len(digests) == 16 * len(values), "a content hash is 32 digits"
        self._array.write(np.frombuffer(digests, "V16"), descriptor)

    def array(self, whole: "pa.Buffer", rows: int) -> "pa.Array":
        import pyarrow as pa

        return pa.Array.from_buffers(pa.binary(16), rows, [None, self._array.buffer(whole)])


class _Names(_Part):
    """Places in a list of different texts, in the order in which they come; some rows may have none."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.nulls = 0

    def look(self, values: "pa.Array") -> None:
        self.nulls += values.null_count
        for name in values.dictionary.to_pylist():
            self.places.setdefault(name, len(self.places))

    def place(self, rows: int, end: int) -> int:
        self._codes = _Array(np.dtype(np.int16 if len(self.places) < SMALL else np.int32))
        self._there: list[np.ndarray] = []  # a bit a row, where some have none
        return self._codes.place(rows, end)

    def codes(self, values: "pa.Array") -> np.ndarray:
        """Of rows, 0 where there is no name."""
        own = np.array([self.places[name] for name in values.dictionary.to_pylist()] or [0], self._codes.kind)
        return own[values.indices.fill_null(0).to_numpy()]

    def write(self, values: "pa.Array", descriptor: int) -> None:
        self._codes.write(self.codes(values), descriptor)
        if self.nulls:
            self._there.append(values.is_valid().to_numpy(zero_copy_only=False))

    def array(self, whole: "pa.Buffer", rows: int) -> "pa.Array":
        import pyarrow as pa

        there = None
        if self.nulls:
            there = pa.py_buffer(np.packbits(np.concatenate(self._there), bitorder="little"))
        kind = pa.int16() if self._codes.kind.itemsize == 2 else pa.int32()
        codes = pa.Array.from_buffers(kind, rows, [there, self._codes.buffer(whole)])
        return pa.DictionaryArray.from_arrays(codes, pa.array(list(self.places), pa.string()))


class _Rates(_Names):
    """How clips are sampled, as numbers."""

    def __init__(self, parse: Callable[[str], tuple[int, float]]) -> None:
        super().__init__()
        self._parse = parse

    def place(self, rows: int, end: int) -> int:
        self._codes = _Array(np.dtype(np.int32))
        rates = [self._parse(name) for name in self.places]
        strides, intervals = ([rate[place] for rate in rates] for place in (0, 1))
        self._rates: list[np.ndarray] = [np.array(strides, np.int32), np.array(intervals, np.float64)]
        small = rows and self._rates[0].max() < SMALL
        self._arrays = _Array(np.dtype(np.int16 if small else np.int32)), _Array(np.dtype(np.float64))
        for array in self._arrays:
            end = array.place(rows, end)
        return end

    def write(self, values: "pa.Array", descriptor: int) -> None:
        assert not values.null_count, "null values"
        codes = self.codes(values)
        for array, rates in zip(self._arrays, self._rates, strict=True):
            array.write(rates[codes], descriptor)

    def arrays(self, whole: "pa.Buffer", rows: int) -> "dict[str, pa.Array]":
        import pyarrow as pa

        kinds = [pa.from_numpy_dtype(array.kind) for array in self._arrays]
        buffers = [array.buffer(whole) for array in self._arrays]
        made = [pa.Array.from_buffers(kind, rows, [None, each]) for kind, each in zip(kinds, buffers, strict=True)]
        return dict(zip(("stride", "interval"), made, strict=True))


def _part(name: str, kind: "pa.DataType") -> _Part:
    import pyarrow as pa

    if name == "content_hash":
        return _Digests()
    if pa.types.is_list(kind):
        return _Lists(kind.value_type)
    return _Texts() if pa.types.is_string(kind) else _Numbers(kind)


def _text(values: "pa.Array") -> tuple[np.ndarray, np.ndarray]:
    """Offsets (n + 1,) of n texts in their bytes."""
    _, offsets, data = values.buffers()
    first = np.frombuffer(offsets, np.int32, len(values) + 1, 4 * values.offset) if offsets else np.zeros(1, np.int32)
    return first, np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)


def _write_offsets(array: _Array, offsets: np.ndarray, before: int, descriptor: int) -> None:
    """Those of more rows, which begin where `before` items are written; the very first is 0."""
    moved = offsets.astype(np.int64) - offsets[0] + before
    array.write(moved if not array.written else moved[1:], descriptor)
