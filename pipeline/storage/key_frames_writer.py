"""Writes the tables of key frames and boxes; what the columns mean. `key_frames` reads them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.files import write_durably, write_whole
from pipeline.storage.key_frames import ACTIONS, BOXES, KEY_FRAMES, Action

KEY_FRAME_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the clip, in the manifest
        ("movie", pa.string()),  # the official id
        ("second", pa.float64()),  # of the movie, as in the annotations
        ("frame", pa.int32()),  # index in the clip of the frame shown then
        # what the clip shows of the movie's frame, as fractions of that
        ("x1", pa.float64()),
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
    ]
)
BOX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the clip
        ("movie", pa.string()),
        ("second", pa.float64()),
        ("kind", pa.string()),  # "truth" or "detection"
        ("x1", pa.float64()),  # fractions of the movie's frame, in [0, 1], x1 < x2, y1 < y2
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
        ("actions", pa.list_(pa.int32())),  # official ids, ascending; of a detection none
        ("person", pa.int32()),  # number of the person in the movie; -1 without one
        ("score", pa.float32()),  # the detector's; 1 for truth
    ]
)


def write_key_frames(dataset: Path, clips: pa.Table, boxes: pa.Table, actions: Sequence[Action]) -> None:
    """key_frames.parquet, boxes.parquet and actions.json beside a manifest; each takes the place of the one before at once.
    Clips and boxes that the manifest lacks do no harm. Raises OSError."""
    listed = json.dumps([asdict(action) for action in sorted(actions, key=lambda action: action.id)], indent=1)
    write_durably(dataset / ACTIONS, f"{listed}\n".encode())
    for name, table, schema in ((KEY_FRAMES, clips, KEY_FRAME_SCHEMA), (BOXES, boxes, BOX_SCHEMA)):
        write = partial(pq.write_table, table.select(schema.names).cast(schema), compression="zstd")
        write_whole(dataset / name, write)
