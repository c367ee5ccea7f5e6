"""Rows of made-up manifests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.manifest import content_hash
from pipeline.storage.manifest_writer import REJECT_SCHEMA, SCHEMA, write_manifest


def row(i: int, **changes: object) -> dict[str, object]:
    return {
        "key": f"clip-{i}",
        "source": "made-up",
        "split": "train",
        "label": None,
        "shard": "shards/made-up-000000.tar",
        "offset": 512 * i,
        "size": 400 + i,
        "num_frames": 50 + i,
        "fps": 30.0,
        "width": 320,
        "height": 256,
        "codec": "h264",
        "duration": 2.0,
        "rotation": 0,
        "matrix": "bt601",
        "range": "limited",
        "sampling": "stride:4" if i % 2 else "seconds:0.125",
        "keyframes": [0, 32],
        "pts_start": 0,
        "pts_step": 512,
        "root": "made-up",
        "path": b"not utf-8 \xff.mp4",
        "source_id": None,
        "start": None,
        "end": None,
        "content_hash": content_hash(str(i).encode()),
        **changes,
    }


def write_rows(folder: Path, rows: Sequence[Any], rejects: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """A manifest of dicts, in two parts."""
    parts = [list(rows)[:2], list(rows)[2:]]
    tables = [pa.Table.from_pylist(part, schema=SCHEMA) for part in parts]
    nothing = REJECT_SCHEMA.empty_table()
    return write_manifest(
        folder, [(tables[0], nothing), (tables[1], pa.Table.from_pylist(list(rejects), schema=REJECT_SCHEMA))]
    )


def with_columns(dataset: Path, folder: Path, **columns: Sequence[str | None]) -> Path:
    """A dataset with the same clips, and other texts in columns of its manifest -> the folder."""
    (folder / "shards").symlink_to(dataset / "shards")
    table = pq.read_table(dataset / "manifest.parquet")
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    write_manifest(folder, [(table, REJECT_SCHEMA.empty_table())])
    return folder
