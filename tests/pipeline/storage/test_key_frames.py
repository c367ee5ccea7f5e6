"""Tables of key frames and boxes: what is written is read, by row of the manifest."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.key_frames import NONE, Action, KeyFrames, stamp
from pipeline.storage.manifest import Manifest
from tests.key_frame_tables import box, key_frame, write_tables
from tests.manifest_rows import row, write_rows

ACTIONS = [Action(17, "carry/hold"), Action(12, "stand"), Action(80, "watch", evaluated=False)]


CLIPS = [
    key_frame("clip-2", "b", 903.0, 30),
    key_frame("clip-0", "a", 902.0, place=(0.02, 0.0, 0.98, 1.0)),
    key_frame("gone", "c", 1.0),
]
BOXES = [
    box("clip-2", "detection", (0.1, 0.2, 0.3, 0.4), score=0.5),
    box("clip-2", "detection", (0.2, 0.2, 0.3, 0.4), score=0.9),
    box("clip-0", "truth", (0.063, 0.049, 0.524, 0.996), (12, 80), person=4),
    box("gone", "truth", (0.0, 0.0, 1.0, 1.0), (12,)),
    box("clip-2", "truth", (0.4, 0.2, 0.6, 0.4), (17,)),
    box("clip-2", "detection", (0.3, 0.2, 0.4, 0.4), score=0.95),
    box("clip-0", "truth", (0.0, 0.0, 0.5, 0.5), (12,)),
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_rows(tmp_path, [row(i) for i in range(3)])
    write_tables(tmp_path, CLIPS, BOXES, ACTIONS)
    return tmp_path


def test_what_is_written_is_read_by_row(written: Path) -> None:
    frames = KeyFrames(Manifest(written))
    assert [frames.movies[movie] if movie >= 0 else None for movie in frames.movie] == ["a", None, "b"]
    assert frames.second.tolist() == [902.0, 0.0, 903.0] and frames.frame.tolist() == [32, NONE, 30]
    assert frames.place.tolist() == [[0.02, 0, 0.98, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert len(frames) == 6 and frames.row.tolist() == [0, 0, 2, 2, 2, 2]
    assert [frames.actions[c].id for c in range(3)] == [12, 17, 80] and frames.names == ["stand", "carry/hold", "watch"]
    assert [action.evaluated for action in frames.actions] == [True, True, False]
    assert frames.box[0].tolist() == [0.063, 0.049, 0.524, 0.996]  # digit for digit
    assert frames.person.tolist() == [4, -1, -1, -1, -1, -1]

    places, clips = frames.of_clips(np.array([2, 1, 0]), "truth")
    assert clips.tolist() == [0, 2, 2] and frames.box[places, 0].tolist() == [0.4, 0.063, 0.0]
    assert frames.labels(places).tolist() == [[False, True, False], [True, False, True], [True, False, False]]
    places, clips = frames.of_clips(np.array([0, 2]), "detection")
    assert clips.tolist() == [1, 1, 1] and np.allclose(frames.score[places], [0.95, 0.9, 0.5])  # the surest first
    assert not frames.labels(places).any()
    assert len(frames.of_clips(np.array([0, 2]), "detection", at_least=0.8)[0]) == 2
    places, clips = frames.of_clips(np.array([2, 0, 2]), "detection", most=1)
    assert clips.tolist() == [0, 2] and np.allclose(frames.score[places], 0.95)
    assert [len(found) for found in frames.of_clips(np.array([], np.int64), "truth")] == [0, 0]


def test_a_box_in_what_a_clip_shows(written: Path) -> None:
    frames = KeyFrames(Manifest(written))
    places, _ = frames.of_clips(np.array([0]), "truth")
    found = frames.in_clip(places)
    assert np.allclose(found[0], [(0.063 - 0.02) / 0.96, 0.049, (0.524 - 0.02) / 0.96, 0.996])
    assert found[1, 0] < 0, "it sticks out of what is left of the picture"


def test_columns_are_mapped_and_made_anew_when_boxes_change(written: Path) -> None:
    manifest = Manifest(written)
    first = KeyFrames(manifest)
    assert not first.box.flags.owndata and not first.box.flags.writeable
    assert KeyFrames(manifest).digest == first.digest and len(list((written / ".cache").glob("boxes-*.arrow"))) == 1
    write_tables(written, CLIPS, BOXES[2:3], ACTIONS)
    second = KeyFrames(manifest)
    assert second.digest != first.digest and len(second) == 1 and len(first) == 6
    assert json.loads((written / "actions.json").read_text())[0] == {"id": 12, "name": "stand", "evaluated": True}


def test_no_boxes_and_no_clips_at_all(written: Path) -> None:
    write_tables(written, [], [], ACTIONS)
    frames = KeyFrames(Manifest(written))
    assert len(frames) == 0 and frames.frame.tolist() == [NONE] * 3 and frames.movies == []
    assert [len(found) for found in frames.of_clips(np.arange(3), "truth")] == [0, 0]
    assert frames.labels(np.array([], np.int64)).shape == (0, 3) and frames.in_clip(np.array([], np.int64)).shape == (0, 4)


def test_a_dataset_without_key_frames_says_so(tmp_path: Path) -> None:
    write_rows(tmp_path, [row(0)])
    with pytest.raises(ValueError, match=r"has no key frames .*key_frames\.parquet.*tubecell build-detection"):
        KeyFrames(Manifest(tmp_path))


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("actions.json", b"[{", "Expecting property name"),
        ("actions.json", b'[{"number": 1}]', "unexpected keyword argument 'number'"),
        ("actions.json", b"3", "not iterable"),
        ("key_frames.parquet", b"PAR1 no more", "magic bytes"),
        ("key_frames.parquet", None, '"x1" does not exist'),
        ("boxes.parquet", b"", "0 bytes"),
        ("boxes.parquet", None, '"kind" does not exist'),
    ],
)
def test_a_damaged_file_is_named(written: Path, name: str, data: bytes | None, why: str) -> None:
    if data is None:  # a table of something else
        pq.write_table(pa.table({"key": ["clip-0"], "movie": ["a"], "second": [1.0]}), written / name)
    else:
        (written / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is damaged, or not of the same build .*{why}.*`tubecell build-detection`"):
        KeyFrames(Manifest(written))


def test_a_mixture_of_two_builds_is_named(written: Path) -> None:
    """What is there when a build is killed between two of the files."""
    boxes = (written / "boxes.parquet").read_bytes()
    write_tables(written, CLIPS, [], ACTIONS[:2])
    (written / "boxes.parquet").write_bytes(boxes)
    with pytest.raises(
        ValueError, match=r"boxes\.parquet is damaged, or not of the same build .*1 of its actions are not in act"
    ):
        KeyFrames(Manifest(written))


def test_stamps() -> None:
    assert [stamp(second) for second in (902.0, 1798.0, np.float64(902.0333))] == ["0902", "1798", "902.0333"]
