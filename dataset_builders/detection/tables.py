"""The tables of key frames and boxes, written when the manifest is there: from what the jobs know of its clips, the people that
the plan has from the annotations, and the detections of the files that are given.

They are made anew by every run of the command that finds the dataset finished, so other detections need no clip to be encoded
again. Sources that a command does not name keep what they have; detections are kept where none are given.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.building.build import open_store
from dataset_builders.building.jobs import KEY_FRAME_COLUMNS, BuildState, write_table
from dataset_builders.building.request import Build
from dataset_builders.detection.proposals import Detection
from dataset_builders.plan import Plan, dropped_table
from dataset_builders.sources.annotations import DroppedEntry
from dataset_builders.sources.ava_files import Image, image_of
from pipeline.storage.columns import DROPPED, read_rows, to_disk
from pipeline.storage.key_frames import ACTIONS, BOXES, NONE, Action
from pipeline.storage.key_frames_writer import BOX_SCHEMA, KEY_FRAME_SCHEMA, write_key_frames

SOURCE_OF_DETECTIONS = "detections"  # in dropped.parquet


@dataclass(slots=True)
class Written:
    """What is in the tables, for a user."""

    clips: int = 0
    truth: int = 0
    detections: int = 0
    without_detection: int = 0  # clips of validation and test without any
    without_clip: int = 0  # people annotated in seconds of which there is no clip
    elsewhere: int = 0  # detections of seconds that are no clip
    dropped: Counter[str] = field(default_factory=Counter)  # detections that were not taken, by reason

    def lines(self) -> list[str]:
        told = [f"boxes     {self.truth:>8} people annotated, {self.detections} detected, in {self.clips} key frames"]
        if self.without_clip:
            told.append(f"          {self.without_clip:>8} people annotated in seconds that are no clip (rejects.parquet)")
        if self.detections:
            told.append(f"          {self.elsewhere:>8} detections of seconds that are no clip of this dataset")
            told.append(f"          {self.without_detection:>8} key frames of validation and test have no detection")
        if self.dropped:
            why = ", ".join(f"{number} {reason}" for reason, number in self.dropped.items())
            told.append(f"          {self.dropped.total():>8} detections were not taken (dropped.parquet): {why}")
        return told


def write_tables(
    build: Build, plan: Plan, detections: Iterable[Detection] | None, dropped: Sequence[DroppedEntry] | None = None
) -> Written | None:
    """Beside a finished manifest; None where there is none yet. `dropped` is what was wrong with detections, complete once all
    of these have been taken. Raises ValueError, and OSError."""
    with BuildState(build.out) as state, open_store(build, state) as store:
        if not state.finished():
            return None
        clips = key_frames(state, plan)
        boxes, written = boxes_of(clips, plan, state.dataset, detections)
        actions = _actions(plan, state.dataset)
        write_key_frames(state.dataset, clips, boxes, actions)
        if detections is not None:
            written.dropped = _tell(state.dataset, dropped or ())
        if store:
            store.publish()
        return written


def key_frames(state: BuildState, plan: Plan) -> pa.Table:
    """KEY_FRAME_SCHEMA of all clips of the manifest that are about a frame, and their split, source and source_id."""
    manifest = pq.read_table(state.dataset / "manifest.parquet", columns=["key", "source", "split", "source_id"])
    tables = []
    for rows, _ in state.parts(state.jobs):
        if "key_frame" in rows.schema.names:
            tables.append(rows.select(["key", *KEY_FRAME_COLUMNS.names]).filter(rows["key_frame"].is_valid()))
    schema = pa.schema([("key", pa.string()), *KEY_FRAME_COLUMNS])
    known = pa.concat_tables([table.cast(schema) for table in tables]) if tables else schema.empty_table()
    at = pc.index_in(manifest["key"], value_set=known["key"].combine_chunks())
    manifest, known = manifest.filter(at.is_valid()), known.take(at.drop_null())
    images = [image_of(name) for name in manifest["source_id"].to_pylist()]
    sides = list(zip(*known["shown"].to_pylist(), strict=True)) or [()] * 4
    columns = {
        "key": manifest["key"],
        "movie": [movie for movie, _ in images],
        "second": [second for _, second in images],
        "frame": known["key_frame"],
        **dict(zip(("x1", "y1", "x2", "y2"), sides, strict=True)),
        "source": manifest["source"],
        "split": manifest["split"],
        "source_id": manifest["source_id"],
    }
    more = [(name, pa.string()) for name in ("source", "split", "source_id")]
    return pa.table(columns, schema=pa.schema([*KEY_FRAME_SCHEMA, *more]))


def boxes_of(clips: pa.Table, plan: Plan, dataset: Path, detections: Iterable[Detection] | None) -> tuple[pa.Table, Written]:
    """BOX_SCHEMA: the truth of the plan's sources, and what the dataset had of others; then detections."""
    written, tables = Written(clips=len(clips)), []
    named = pc.is_in(clips["source"], value_set=pa.array(plan.sources, pa.string()))
    own = clips.filter(named)
    names = zip(own["source"].to_pylist(), own["source_id"].to_pylist(), strict=True)
    key_of = dict(zip(names, own["key"].to_pylist(), strict=True))
    for source, part in plan.parts.items():
        if part.boxes is None:
            continue
        keys = pa.array([key_of.get((source, name)) for name in part.boxes["source_id"].to_pylist()], pa.string())
        written.without_clip += keys.null_count
        tables.append(part.boxes.append_column("key", keys).filter(keys.is_valid()).select(BOX_SCHEMA.names).cast(BOX_SCHEMA))
    before = pq.read_table(dataset / BOXES, schema=BOX_SCHEMA) if (dataset / BOXES).exists() else BOX_SCHEMA.empty_table()
    others = pc.is_in(before["key"], value_set=clips.filter(pc.invert(named))["key"].combine_chunks())
    is_truth = pc.equal(before["kind"], "truth")
    tables.append(before.filter(pc.and_(others, is_truth)))
    written.truth = sum(map(len, tables))
    if detections is None:
        there = pc.is_in(before["key"], value_set=clips["key"].combine_chunks())
        tables.append(before.filter(pc.and_(there, pc.invert(is_truth))))
    else:
        tables.append(_detected(clips, detections, written))
    found = tables[-1]
    written.detections = len(found)
    tested = clips.filter(pc.not_equal(clips["split"], "train"))["key"]
    written.without_detection = (
        len(tested) - pc.sum(pc.is_in(tested, value_set=found["key"].combine_chunks())).as_py() if len(tested) else 0
    )
    return pa.concat_tables(tables), written


def _detected(clips: pa.Table, detections: Iterable[Detection], written: Written) -> pa.Table:
    """One that several files name, or one file twice, counts once. Held as columns: 60 bytes a box."""
    keys: dict[Image, list[str]] = {}
    for movie, second, key in zip(*(clips[name].to_pylist() for name in ("movie", "second", "key")), strict=True):
        keys.setdefault((movie, second), []).append(key)
    parts, seen = [BOX_SCHEMA.empty_table()], set[int]()
    columns: dict[str, list] = {name: [] for name in BOX_SCHEMA.names}
    for one in detections:
        for key in keys.get((one.movie, one.second), ()):
            if (mark := hash((key, one.box, one.score))) in seen:
                continue
            seen.add(mark)
            values: tuple = (key, one.movie, one.second, "detection", *one.box, [], NONE, one.score)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            if len(columns["key"]) == 1 << 16:
                parts.append(pa.table(columns, schema=BOX_SCHEMA))
                columns = {name: [] for name in BOX_SCHEMA.names}
        written.elsewhere += (one.movie, one.second) not in keys
    return pa.concat_tables([*parts, pa.table(columns, schema=BOX_SCHEMA)])


def _actions(plan: Plan, dataset: Path) -> list[Action]:
    """All that the sources know, and what was there. Raises ValueError where two lists give one number to two names."""
    before = (
        [Action(**action) for action in json.loads((dataset / ACTIONS).read_bytes())] if (dataset / ACTIONS).exists() else []
    )
    known: dict[int, Action] = {}
    for action in [*(action for part in plan.parts.values() for action in part.actions), *before]:
        other = known.setdefault(action.id, action)
        if other.name != action.name:
            raise ValueError(
                f"action {action.id} is {other.name!r} in one list and {action.name!r} in another; build them apart"
            )
    return list(known.values())


def _tell(dataset: Path, dropped: Sequence[DroppedEntry]) -> Counter[str]:
    """Put what was wrong with detections into dropped.parquet, as a source of its own -> reasons of all rows there."""
    columns = {
        "split": [entry.split for entry in dropped],
        "source_id": [entry.id for entry in dropped],
        "reason": [str(entry.reason) for entry in dropped],
        "detail": [entry.detail for entry in dropped],
    }
    table, file = dropped_table({"source": SOURCE_OF_DETECTIONS, **columns}, len(dropped)), dataset / "dropped.parquet"
    before = read_rows(file)
    before = before.filter(pc.not_equal(before["source"], SOURCE_OF_DETECTIONS))
    write_table(file, to_disk(pa.concat_tables([before, table]), DROPPED))
    return Counter(table["reason"].to_pylist())
