"""A dataset of made-up rows, as many as one likes, without clips: what a manifest of that size costs.

    synthetic_manifest.py FOLDER 1348000      # writes it, opens it once, which makes its cache, and prints JSON

The sources are the paper's in proportion (Table 8), the clips' sizes and lengths are drawn around those of 10 s at 30 fps; a
row is arithmetic of its number, so any part can be made alone.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from pipeline.console import prepare

    prepare()

import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset_builders.paper import TABLE_8
from pipeline import keyed
from pipeline.storage.manifest import Manifest
from pipeline.storage.manifest_writer import REJECT_SCHEMA, ROW_GROUP, SCHEMA, write_manifest

SHARD_CLIPS = 1 << 11  # of a shard: 700 MB
SEED = 24
SIZES = 150_000, 550_000  # bytes of a clip, evenly between
HEADERS = 3 * 512  # in a tar, of a clip and its JSON, and the JSON
FRAMES = 240, 360  # the same
KEY_FRAMES = np.arange(0, 256, 32, dtype=np.int32)
HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint8).reshape(256, 2)


def write_synthetic(folder: Path, clips: int) -> None:
    """The manifest of so many clips, in streams."""
    folder.mkdir(parents=True, exist_ok=True)
    nothing = REJECT_SCHEMA.empty_table()
    write_manifest(folder, ((table, nothing) for table in tables(clips)))


def tables(clips: int) -> Iterator[pa.Table]:
    """The rows, source by source, a group at a time."""
    whole = sum(TABLE_8.values())
    ends = [clips * part // whole for part in np.cumsum([0, *TABLE_8.values()]).tolist()]
    for source, (begin, end) in zip(TABLE_8, pairwise(ends), strict=True):
        for first in range(begin, end, ROW_GROUP):
            yield table(source, np.arange(first, min(end, first + ROW_GROUP)), begin)


def table(source: str, numbers: np.ndarray, begin: int) -> pa.Table:
    """The rows of these numbers (n,), of a source whose first is `begin`."""
    n = len(numbers)
    draw = keyed.mix(SEED, numbers)
    size = SIZES[0] + (draw % np.uint64(SIZES[1] - SIZES[0])).astype(np.int64)
    frames = FRAMES[0] + (draw >> np.uint64(32)).astype(np.int64) % (FRAMES[1] - FRAMES[0])
    assert (numbers[0] - begin) % SHARD_CLIPS == 0
    shard = (numbers - begin) // SHARD_CLIPS
    starts = np.flatnonzero(np.r_[True, np.diff(shard) > 0])  # a group begins with a shard
    taken = HEADERS + -(-size // 512) * 512
    offset = taken.cumsum() - taken
    offset -= np.repeat(offset[starts], np.diff(np.r_[starts, n]))
    names = [f"shards/{source}-{each:06d}.tar" for each in range(int(shard[0]), int(shard[-1]) + 1)]
    of_shard = pa.DictionaryArray.from_arrays(pa.array((shard - shard[0]).astype(np.int32)), pa.array(names))

    def same(value: object, kind: pa.DataType) -> pa.Array:
        return pa.nulls(n, kind) if value is None else pa.repeat(pa.scalar(value, kind), n)

    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0")
    hashes = np.stack([keyed.mix(SEED, 1, numbers), keyed.mix(SEED, 2, numbers)], axis=1).view(np.uint8)
    offsets = pa.py_buffer(np.arange(0, 32 * n + 1, 32, dtype=np.int32))
    key_frame_offsets = np.arange(n + 1, dtype=np.int32) * len(KEY_FRAMES)
    columns = {
        "key": pc.binary_join_element_wise(source, digits, "-"),
        "source": same(source, pa.string()),
        "split": same("train", pa.string()),
        "shard": of_shard.cast(pa.string()),
        "offset": pa.array(offset + 512),
        "size": pa.array(size),
        "num_frames": pa.array(frames.astype(np.int32)),
        "fps": same(12.0 if source == "something" else 30.0, pa.float64()),
        "width": same(336, pa.int32()),
        "height": same(256, pa.int32()),
        "codec": same("h264", pa.string()),
        "duration": pa.array(frames / 30.0),
        "rotation": same(0, pa.int16()),
        "matrix": same("bt601", pa.string()),
        "range": same("limited", pa.string()),
        "sampling": same("stride:2" if source == "something" else "stride:4", pa.string()),
        "keyframes": pa.ListArray.from_arrays(key_frame_offsets, np.tile(KEY_FRAMES, n)),
        "pts_start": same(0, pa.int64()),
        "pts_step": same(512, pa.int64()),
        "root": same("synthetic", pa.string()),
        "path": pc.binary_join_element_wise(digits, "mp4", ".").cast(pa.binary()),
        "content_hash": pa.StringArray.from_buffers(n, offsets, pa.py_buffer(np.ascontiguousarray(HEX[hashes]))),
    }
    return pa.table([columns.get(field.name, pa.nulls(n, field.type)) for field in SCHEMA], SCHEMA)


def _cost(work: Callable[[], object]) -> dict[str, float]:
    """Seconds, and the most memory that this process has had by then. (getrusage's has the parent's in it.)"""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    rows = Path("/proc/self/status").read_text().splitlines()
    return seconds | {"peak": next(1024 * int(row.split()[1]) for row in rows if row.startswith("VmHWM:"))}


def main(words: list[str]) -> int:
    folder, clips = Path(words[0]), int(words[1])
    found = {"written": _cost(lambda: write_synthetic(folder, clips)), "cache": _cost(lambda: Manifest(folder))}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
