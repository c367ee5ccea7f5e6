"""The cache that is written in streams is the one that a table in memory would give."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.storage import manifest_cache
from pipeline.storage.manifest import CACHED, NAMES, Manifest, parse_sampling
from tests.manifest_rows import row, write_rows


def in_memory(file: Path) -> pa.Table:
    """What is cached of a manifest, made at once."""
    table = pq.read_table(file, columns=[*CACHED, "sampling"], read_dictionary=[*NAMES, "sampling"])
    table = table.unify_dictionaries().combine_chunks()
    sampling = table["sampling"].combine_chunks()
    steps = [parse_sampling(text) for text in sampling.dictionary.to_pylist()]
    codes = sampling.indices.to_numpy()
    hashes = pa.array([bytes.fromhex(text) for text in table["content_hash"].to_pylist()], pa.binary(16))
    table = table.drop_columns(["sampling"]).set_column(CACHED.index("content_hash"), "content_hash", hashes)
    table = table.append_column("stride", pa.array(np.array([s for s, _ in steps], np.int32)[codes]))
    table = table.append_column("interval", pa.array(np.array([s for _, s in steps], np.float64)[codes]))
    return pa.table({name: smaller(table[name].combine_chunks()) for name in table.column_names}).combine_chunks()


def smaller(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind) and len(column.dictionary) < 1 << 15:
        return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int16()), column.dictionary)
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(column.offsets, smaller(column.values))
    if pa.types.is_integer(kind) and len(column):
        extremes = pc.min_max(column)
        if extremes["min"].as_py() >= -(1 << 15) and extremes["max"].as_py() < 1 << 15:
            return column.cast(pa.int16())
    return column


def rows(number: int) -> list[dict[str, object]]:
    """With names that come late, rows without some, lists of every length, numbers that need 4 bytes and such as do not."""
    some = [None, "val", "train"]
    changes = [
        {
            "source": f"source-{i // 9}",
            "split": some[i % 3],
            "label": None if i % 4 else f"class {i % 8}",
            "key": f"k{'é' * (i % 5)}-{i}",
            "width": 320 + 100_000 * (i == 11),
            "keyframes": list(range(0, 40_000 * (i == 12) + i % 3, 1 + 39_999 * (i == 12))),
            "sampling": ["stride:4", "seconds:0.125", "stride:2"][i % 3],
        }
        for i in range(number)
    ]
    return [row(i, **each) for i, each in enumerate(changes)]


@pytest.mark.parametrize("number", [0, 1, 2, 30])
def test_streams_write_the_same_bytes(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_cache, "ROWS", 7)
    write_rows(tmp_path, rows(number))
    expected, streamed = tmp_path / "expected.arrow", tmp_path / "streamed.arrow"
    table = in_memory(tmp_path / "manifest.parquet")
    manifest_cache.write_arrow(table, expected)
    manifest_cache.write_cache(tmp_path / "manifest.parquet", streamed, CACHED, NAMES, parse_sampling)
    found = pa.ipc.open_file(pa.memory_map(str(streamed))).read_all()
    assert found.schema == table.schema and found.equals(table)
    assert streamed.read_bytes() == expected.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir() if "tmp" in each.name) == []


def test_more_text_than_short_offsets_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GB of keys, in small."""
    monkeypatch.setattr(manifest_cache, "ROWS", 7)
    write_rows(tmp_path, rows(30))
    short = [Manifest(tmp_path).clip(i) for i in range(30)]
    next((tmp_path / ".cache").iterdir()).unlink()
    monkeypatch.setattr(manifest_cache, "MOST_ITEMS", 20)
    long = Manifest(tmp_path)
    assert pa.types.is_large_string(long.column("key").type) and pa.types.is_large_list(long.column("keyframes").type)
    assert [long.clip(i) for i in range(30)] == short
