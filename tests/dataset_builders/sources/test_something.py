import json
import re
from pathlib import Path

import numpy as np
import pytest
from empty_files import touch

from dataset_builders.plan import DROPPED_SCHEMA, REQUEST_SCHEMA, Drop
from dataset_builders.sources import something
from pipeline.sampling import start_range, window_frames
from pipeline.storage.manifest import parse_sampling

TRAIN = [
    {"id": "1", "label": "closing a box", "template": "Closing [something]", "placeholders": ["a box"]},
    {"id": "2", "label": "pushing it", "template": "Pushing [something] onto [something]", "placeholders": []},
    {"id": 3, "template": "Closing [something]"},
    {"id": "4", "template": "Closing [something]"},
    {"id": "4", "template": "Closing [something]"},
    {"id": "5", "template": "Juggling [something]"},
    {"template": "Closing [something]"},
    "6",
    {"id": "../7", "template": "Closing [something]"},
    {"id": "8", "template": "Closing [something]"},
]
LABELS = {"Pushing something onto something": "1", "Closing something": "0"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Videos 1, 2 (twice) and 8, folders of frames 1 and 3, and video 9 that no list has."""
    names = ("1.webm", "2.webm", "mp4/2.mp4", "8.webm", "9.webm", "1/img_00001.jpg", "3/img_00001.jpg", "3/img_00002.jpg")
    return touch(tmp_path / "videos", *names)


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_v2(folder: Path, tmp_path: Path) -> None:
    train, labels = write(tmp_path / "train.json", TRAIN), write(tmp_path / "labels.json", LABELS)
    test = write(tmp_path / "test.json", [{"id": "8"}])
    planned = something.plan("ssv2", folder=folder, train=train, test=test, labels=labels, splits=("train",))
    assert planned.requests.schema == REQUEST_SCHEMA
    assert planned.dropped.schema == DROPPED_SCHEMA
    columns = ("path", "kind", "split", "label", "source_id", "rate", "sampling")
    rows = [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()]
    assert rows == [
        (b"1.webm", "video", "train", "Closing something", "1", None, "seconds:0.166666"),
        (b"2.webm", "video", "train", "Pushing something onto something", "2", None, "seconds:0.166666"),
        (b"3", "frames", "train", "Closing something", "3", 12.0, "seconds:0.166666"),
    ]
    assert planned.requests["extra"].to_pylist() == [
        '{"label": "closing a box", "placeholders": ["a box"]}',
        '{"label": "pushing it"}',
        None,
    ]
    assert set(planned.requests["root"].to_pylist()) == {"ssv2"}
    dropped = {(row["reason"], row["source_id"] or row["path"]): row["detail"] for row in planned.dropped.to_pylist()}
    assert dropped.pop(("malformed", "5")) == f"{train}:6: 'Juggling something' is no class of {labels}"
    assert dropped.pop(("leak", "8")) == f"{train}:10 lists it for training, {test}:1 for test"
    assert set(dropped) == {
        ("malformed", None),  # three rows
        ("duplicate", "4"),
        ("no_file", "4"),
        ("duplicate", b"mp4/2.mp4"),
        ("duplicate", b"1"),
        ("not_listed", b"9.webm"),
    }
    assert planned.counts == {
        "listed": 10,
        "found": 3,
        "no_file": 1,
        "not_listed": 1,
        "duplicate": 3,
        "leak": 1,
        "malformed": 4,
        "of other splits": 1,
    }
    assert planned.files == {"label_map_ssv2.json": ["Closing something", "Pushing something onto something"]}


def test_v1(folder: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "1;Closing something\r\n3;Closing something\r\n;x\r\n\r\n4\r\n")
    labels = write(tmp_path / "labels.csv", "Closing something\nThrowing something\n")
    planned = something.plan("ssv1", folder=folder, train=train, labels=labels, rate=24, sampling="stride:4")
    assert planned.requests["path"].to_pylist() == [b"1.webm", b"3"]
    assert planned.requests["rate"].to_pylist() == [None, 24.0]
    assert planned.requests["sampling"].to_pylist() == ["stride:4"] * 2
    assert planned.files["label_map_ssv1.json"] == ["Closing something", "Throwing something"]
    assert planned.counts["malformed"] == 1


@pytest.mark.parametrize("fps", [12.0, 24.0, 30.0])
def test_the_sampling_is_stride_2_at_12_frames_per_second(fps: float) -> None:
    """For every length, the same starts and the same frames; and the same times at other rates."""
    _, interval = parse_sampling(something.SAMPLING)
    lengths = np.arange(1, 200)
    steps = [np.full(len(lengths), step) for step in (interval * fps, 2 * fps / 12)]
    starts = [start_range(lengths, 16, step) for step in steps]
    np.testing.assert_array_equal(*starts)
    np.testing.assert_array_equal(*(window_frames(starts[0], lengths, 16, step) for step in steps))


def test_errors(folder: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", TRAIN)
    with pytest.raises(ValueError, match="none of the annotation files"):
        something.plan("ssv2", folder=folder)
    with pytest.raises(ValueError, match="there is no folder"):
        something.plan("ssv2", folder=tmp_path / "nowhere", train=train)
    with pytest.raises(ValueError, match="rate 0"):
        something.plan("ssv2", folder=folder, train=train, rate=0)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/labels.json: is no list of videos")):
        something.plan("ssv2", folder=folder, train=write(tmp_path / "labels.json", LABELS))
    for wrong in (TRAIN, {"a": "1"}, {"a": None}):
        with pytest.raises(ValueError, match="is no file of labels"):
            something.plan("ssv2", folder=folder, train=train, labels=write(tmp_path / "labels.json", wrong))


def test_real_annotations(shared: Path, tmp_path: Path) -> None:
    folder = shared / "annotations" / "something_something_v2"
    val, labels = folder / "something-something-v2-validation.json", folder / "something-something-v2-labels.json"
    touch(tmp_path, "74225.webm", "208583.webm", "1420.webm", "7.webm")  # of val, test-answers, test, none
    planned = something.plan("ssv2", folder=tmp_path, val=val, test=folder / "test-answers.csv", labels=labels)
    assert len(planned.files["label_map_ssv2.json"]) == 174
    assert planned.counts == {"listed": 600, "found": 2, "no_file": 598, "not_listed": 2}  # every template is a label
    row = planned.requests.to_pylist()[0]
    assert (row["split"], row["label"]) == ("val", "Spinning something that quickly stops spinning")
    test = something.plan("ssv2", folder=tmp_path, test=folder / "something-something-v2-test.json")
    assert test.counts == {"listed": 200, "found": 1, "no_file": 199, "not_listed": 3}
    assert test.requests["label"].to_pylist() == [None]
    assert set(test.dropped["reason"].to_pylist()) == {Drop.NO_FILE, Drop.NOT_LISTED}


def test_ids_with_extensions_quotes_and_commas(folder: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", [{"id": "2.webm", "template": "Closing [something]"}])
    assert something.plan("v2", folder=folder, train=train).requests["source_id"].to_pylist() == ["2"]
    for text in ('"1";"Closing, or not; something"\n', '"1","Closing, or not; something"\n', "1;Closing, or not; something\n"):
        planned = something.plan("v1", folder=folder, train=write(tmp_path / "train.csv", text))
        assert planned.requests["label"].to_pylist() == ["Closing, or not; something"]
    (note,) = something.plan("v1", folder=folder, train=write(tmp_path / "train.csv", "77;Closing\n")).notes
    assert "begins with '77;Closing'" in note and "a file 77.* or a folder 77" in note and "'1.webm'" in note


def test_lists_without_templates_have_classes_and_what_has_none_is_told(folder: Path, tmp_path: Path) -> None:
    entries = [{"id": "1", "label": "Closing [something]"}, {"id": "2", "label": "Juggling something"}, {"id": "8"}]
    train, labels = write(tmp_path / "train.json", entries), write(tmp_path / "labels.json", LABELS)
    planned = something.plan("v2", folder=folder, train=train, labels=labels)
    assert planned.requests["label"].to_pylist() == ["Closing something", None]
    assert (planned.counts["malformed"], planned.counts["entries of train and val without a class"]) == (1, 1)
    assert f"1 entries of train and val have no class, such as {train}:3" in planned.notes[0]
    test = something.plan("v2", folder=folder, test=write(tmp_path / "test.json", [{"id": "8"}]))
    assert not test.notes and "entries of train and val without a class" not in test.counts
