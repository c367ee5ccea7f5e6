"""Writes a manifest: its fingerprint, and the versions of a dataset that grows. `manifest` reads it, `columns` explains it."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipeline.storage.columns import MANIFEST, REJECTS, Column, in_memory, on_disk, to_disk
from pipeline.storage.manifest import FORMAT, METADATA_KEY, read_versions

SCHEMA, REJECT_SCHEMA = in_memory(MANIFEST), in_memory(REJECTS)
ROW_GROUP = 1 << 16  # rows that are held in memory while a manifest is written


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
    with _ParquetFile(manifest, MANIFEST) as rows, _ParquetFile(root / "rejects.parquet", REJECTS) as rejects:
        for table, rejected in parts:
            prefix.update(table)
            rejects.write(rejected)
            for batch in rows.write(table).to_batches():
                digest.update(batch.serialize())
        versions = prefix.finish()
        rows.add_metadata({"format": FORMAT, "versions": versions, "digest": digest.hexdigest()})
        rows.close()
        _check_keys(rows.temporary, root)
        rejects.commit()
        rows.commit()
    return versions


def _check_keys(file: Path, root: Path) -> None:
    """On the finished file: of every key a number of 8 bytes is held, and the keys themselves only where two of those are
    equal."""
    with pq.ParquetFile(file) as written:

        def keys() -> Iterator[pa.Array]:
            for batch in written.iter_batches(ROW_GROUP, columns=["key"]):
                yield batch.column("key")

        numbers = np.empty(written.metadata.num_rows, np.uint64)
        done = 0
        for some in keys():
            dotted = some.filter(pc.match_substring(some, "."))
            if len(dotted):
                raise ValueError(
                    f"{root}: key {dotted[0].as_py()!r} holds a dot, which WebDataset takes for the beginning of the extension"
                )
            numbers[done : done + len(some)] = _numbers_of(some)
            done += len(some)
        numbers.sort()
        equal = numbers[1:][numbers[1:] == numbers[:-1]]
        if not len(equal):
            return
        found = Counter(key for some in keys() for key in some.filter(pa.array(np.isin(_numbers_of(some), equal))).to_pylist())
        duplicate = next((key for key, times in found.items() if times > 1), None)  # or two keys have the same number
        if duplicate is not None:
            raise ValueError(f"{root}: two clips have the key {duplicate!r}")


def _numbers_of(keys: pa.Array) -> np.ndarray:
    """A hash of each."""
    return np.array([xxhash.xxh3_64_intdigest(key) for key in keys.cast(pa.binary()).to_pylist()], np.uint64)


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
                self._digest.update(memoryview(chunk.buffers()[2])[: np.frombuffer(chunk.buffers()[1], np.int32)[len(chunk)]])

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


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

    def __init__(self, file: Path, columns: Sequence[Column]) -> None:
        self._file, self.temporary = file, file.with_name(f".{file.name}.{os.getpid()}.tmp")
        schema = on_disk(columns)
        self._writer = pq.ParquetWriter(self.temporary, schema, compression="zstd")
        self._columns, self._waiting, self._rows = columns, [schema.empty_table()], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self.temporary.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> pa.Table:
        """Rows as in memory -> as they are written."""
        written = to_disk(table.combine_chunks(), self._columns)
        self._waiting.append(written)
        self._rows += len(table)
        if self._rows >= ROW_GROUP:
            self._flush()
        return written

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
