"""A small dataset put together by the builder's own parts, without a build: for tests of what looks at finished datasets."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from small_videos import make_video

from dataset_builders.media.clip import EncodedClip
from dataset_builders.media.decode_check import verify
from dataset_builders.tars.writer import ShardWriter
from pipeline.storage.manifest import content_hash
from pipeline.storage.manifest_writer import REJECT_SCHEMA, SCHEMA, write_manifest

KEYS = [f"clip-{number}" for number in range(6)]


def make_videos(folder: Path) -> list[bytes]:
    """Six clips that differ."""
    return [make_video(folder / f"{i}.mp4", "-c:v", "libx264", "-g", "8", frames=17 + i).read_bytes() for i in range(len(KEYS))]


def made_row(key: str, data: bytes, **columns: object) -> dict[str, Any]:
    """A row of the manifest, without a place in a shard."""
    known = {"key": key, "source": "v", "root": "v", "split": "train", "sampling": "stride:4", "path": key.encode() + b".mp4"}
    return {**dict.fromkeys(SCHEMA.names), **known, **asdict(verify(data)), "content_hash": content_hash(data), **columns}


def make_dataset(dataset: Path, videos: Sequence[bytes], per_shard: int = 3, **columns: object) -> list[dict[str, Any]]:
    """Shards v-000000, v-000001 ... with their markers, manifest and dataset.json; returns the rows."""
    (dataset / "shards").mkdir(parents=True)
    (dataset / ".build" / "done").mkdir(parents=True)
    rows = []
    for number, first in enumerate(range(0, len(videos), per_shard)):
        writer = ShardWriter(dataset, f"v-{number:06d}")
        for place, data in enumerate(videos[first : first + per_shard], first):
            writer.add(EncodedClip(data, "mp4", made_row(KEYS[place], data, **columns)))
        rows += writer.finish()
        (dataset / ".build" / "done" / f"v-{number:06d}.json").write_text("{}")
    (dataset / ".build" / "finished.json").write_text("{}")
    finish(dataset, rows)
    return rows


def finish(dataset: Path, rows: Sequence[Mapping[str, Any]], rejects: Sequence[Mapping[str, Any]] = ()) -> None:
    """manifest.parquet, rejects.parquet and dataset.json."""
    tables = pa.Table.from_pylist(list(rows), schema=SCHEMA), pa.Table.from_pylist(list(rejects), schema=REJECT_SCHEMA)
    versions = write_manifest(dataset, [tables])
    sources = {name: {"taken": sum(row["source"] == name for row in rows)} for name in dict.fromkeys(r["source"] for r in rows)}
    (dataset / "dataset.json").write_text(json.dumps({"sources": sources, "versions": versions}))


def tar_bytes(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
