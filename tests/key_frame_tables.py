"""Tables of key frames and boxes of made-up datasets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.storage.key_frames import NONE, Action
from pipeline.storage.key_frames_writer import BOX_SCHEMA, KEY_FRAME_SCHEMA, write_key_frames

SIDES = ("x1", "y1", "x2", "y2")
Four = tuple[float, float, float, float]


def key_frame(key: str, movie: str = "m", second: float = 902.0, frame: int = 32, place: Four = (0, 0, 1, 1)) -> dict[str, Any]:
    return {"key": key, "movie": movie, "second": second, "frame": frame, **dict(zip(SIDES, place, strict=True))}


def box(key: str, kind: str, sides: Four, actions: Sequence[int] = (), **more: Any) -> dict[str, Any]:
    known = {"key": key, "movie": "m", "second": 902.0, "kind": kind, "actions": actions, "person": NONE, "score": 1.0}
    return {**known, **dict(zip(SIDES, sides, strict=True)), **more}


def write_tables(
    dataset: Path, clips: Sequence[dict[str, Any]], boxes: Sequence[dict[str, Any]], actions: Sequence[Action]
) -> None:
    tables = pa.Table.from_pylist(list(clips), KEY_FRAME_SCHEMA), pa.Table.from_pylist(list(boxes), BOX_SCHEMA)
    write_key_frames(dataset, *tables, actions)
