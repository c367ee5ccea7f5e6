"""Small pictures of random clips of a dataset, always the same ones: the middle frame of each, as JPEG."""

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.executors import Failure, map_ordered
from pipeline.keyed import sample_rows
from pipeline.storage.manifest import Clip
from pipeline.storage.shards import ShardReader

CLIPS = 24
LONG_SIDE = 240  # pixels of a picture; about 8 kB each
TIME_LIMIT, MEMORY_LIMIT = 60.0, 64 << 30  # of a clip: seconds, bytes of address space (importing torch maps over 4 GiB)


@dataclass(frozen=True, slots=True)
class Picture:
    """One clip of the sheet; `jpeg` is empty if it could not be had, and `trouble` says why."""

    row: dict[str, Any]
    jpeg: bytes
    trouble: str = ""


def photograph(dataset: str, row: dict[str, Any]) -> Iterator[bytes | str]:
    """Row -> JPEG, or what is wrong; for a worker process: a decoder may crash even on a clip that was decoded before."""
    from PIL import Image

    from pipeline.decoding.decode import DecodeError, decode_frames  # here: it brings torch, which takes over a second

    columns = {name: row[name] for name in Clip.__dataclass_fields__ if name != "row"}
    clip = Clip(row=0, **{**columns, "keyframes": tuple(row["keyframes"])})
    try:
        with closing(ShardReader(dataset)) as reader:  # as in training: wherever the shard lies, and checked
            data = reader.read(clip)
        frame = decode_frames(clip, data, np.array([clip.num_frames // 2]))[0]
    except (OSError, ValueError, EOFError, av.FFmpegError, DecodeError) as error:
        yield str(error) or type(error).__name__
        return
    picture = Image.fromarray(frame)
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    yield buffer.getvalue()


def take_pictures(dataset: Path, fingerprint: str) -> list[Picture]:
    """The middle frames of up to 24 clips that the fingerprint chooses, in the order of the manifest."""
    file = pq.ParquetFile(dataset / "manifest.parquet")
    chosen = sample_rows(file.metadata.num_rows, CLIPS, fingerprint)
    columns = [name for name in (*Clip.__dataclass_fields__, "source", "split", "label", "duration") if name != "row"]
    rows: list[dict[str, Any]] = []
    first = 0
    for batch in file.iter_batches(columns=columns):
        inside = chosen[(chosen >= first) & (chosen < first + len(batch))] - first
        rows += [row for row in batch.take(pa.array(inside)).to_pylist() if row["size"]]  # without removed ones
        first += len(batch)
    pictures: list[Picture] = []
    try:
        # one worker: importing torch takes it 2 s, all 24 pictures less than one
        for results in map_ordered(partial(photograph, str(dataset)), rows, 1, TIME_LIMIT, MEMORY_LIMIT):
            for result in results or ():
                row = rows[len(pictures)]
                if isinstance(result, bytes):
                    pictures.append(Picture(row, result))
                else:
                    trouble = f"{result.reason}: {result.detail}" if isinstance(result, Failure) else result
                    pictures.append(Picture(row, b"", trouble))
    except RuntimeError as error:  # workers cannot start: a report without pictures is better than none
        pictures += [Picture(row, b"", str(error)) for row in rows[len(pictures) :]]
    return pictures
