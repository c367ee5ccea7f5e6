"""AVA's and AVA-Kinetics' annotations -> requests of windows, boxes, and what was wrong."""

from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.plan import REQUEST_SCHEMA
from dataset_builders.sources import key_frames
from dataset_builders.sources.ava_files import image_name, image_of, read_actions
from dataset_builders.sources.kinds import make_source
from pipeline.storage.key_frames import Action

ACTIONS = """label {
  name: "stand"
  label_id: 12
}
label { name: "talk \\"to\\"" label_id: 79 }
label { name: "run" label_id: 17 }
"""
TRAIN = """-5KQ66BBWC4,0902,0.031,0.162,0.670,0.995,12,0
-5KQ66BBWC4,0902,0.031,0.162,0.670,0.995,79,0
-5KQ66BBWC4,0902,0.500,0.100,0.600,0.200,12,1
-5KQ66BBWC4,0903,0.031,0.162,0.031,0.980,12,0
-5KQ66BBWC4,0904,1.100,0.162,1.300,0.980,12,0
-5KQ66BBWC4,0905,0.900,-0.010,1.020,0.980,12,7
-5KQ66BBWC4,0906,0.1,0.1,0.2,0.2,99,0
-5KQ66BBWC4,0899,0.1,0.1,0.2,0.2,12,0
-5KQ66BBWC4,0907,0.1,nan,0.2,0.2,12,0
nonsense
gone,0902,0.1,0.1,0.2,0.2,12,0
held,0902,0.1,0.1,0.2,0.2,12,0
out,0902,0.1,0.1,0.2,0.2,17,0
"""
VAL = "held,0903,0.1,0.1,0.2,0.2,17,0\nfolder,0902,0.1,0.1,0.2,0.2,12,0\ncut,0902,0.1,0.1,0.2,0.2,12,0\n"
COLUMNS = ("path", "kind", "split", "source_id", "start", "end", "at", "rate", "first_frame", "num_images")


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "ava_train_v2.2.csv").write_text(TRAIN)
    (folder / "ava_val_v2.2.csv").write_text(VAL)
    (folder / "ava_train_excluded_timestamps_v2.2.csv").write_text("out,0902\n")
    (folder / "ava_val_excluded_timestamps_v2.2.csv").write_text("")
    (folder / "ava_action_list_v2.2.pbtxt").write_text(ACTIONS)
    (folder / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text('item {\n name: "stand"\n id: 12\n}\n')
    return folder


def plan(kind: str, videos: Path, lists: Path, **settings: object) -> key_frames.SourcePlan:
    table = {"folder": str(videos), "lists": str(lists), **settings}
    return make_source("ava", kind, table, Path("/"), ("train", "val", "test"), "here").plan()


def test_a_window_for_each_annotated_second(lists: Path, tmp_path: Path) -> None:
    names = ("-5KQ66BBWC4.mkv", "sub/held.mp4", "out.mp4", "folder/image_000001.jpg", "other.mp4")
    videos = touch(tmp_path / "movies", *names, *(f"cut/{second}.mp4" for second in range(899, 905)))
    planned = plan("ava-boxes", videos, lists)
    assert planned.requests.schema == REQUEST_SCHEMA
    half = 32 / 30
    assert [tuple(row[name] for name in COLUMNS) for row in planned.requests.to_pylist()] == [
        (b"-5KQ66BBWC4.mkv", "video", "train", "-5KQ66BBWC4,0899", 899 - half, 899 + half, 899.0, 30.0, None, None),
        (b"-5KQ66BBWC4.mkv", "video", "train", "-5KQ66BBWC4,0902", 902 - half, 902 + half, 902.0, 30.0, None, None),
        (b"-5KQ66BBWC4.mkv", "video", "train", "-5KQ66BBWC4,0905", 905 - half, 905 + half, 905.0, 30.0, None, None),
        (b"sub/held.mp4", "video", "val", "held,0903", 903 - half, 903 + half, 903.0, 30.0, None, None),
        (b"folder", "frames", "val", "folder,0902", None, None, 2.0, 30.0, 28, 64),
        (b"cut", "pieces", "val", "cut,0902", 902 - 32 / 25, 902 + 32 / 25, 902.0, 25.0, None, None),
    ]
    dropped = [(row["reason"], row["source_id"] or row["path"]) for row in planned.dropped.to_pylist()]
    assert dropped == [
        ("empty_box", "-5KQ66BBWC4,0903"),
        ("outside", "-5KQ66BBWC4,0904"),
        ("malformed", "-5KQ66BBWC4,0906"),
        ("malformed", "-5KQ66BBWC4,0907"),
        ("malformed", None),
        ("excluded", "out,0902"),
        ("leak", "held,0902"),
        *(("not_chosen", f"-5KQ66BBWC4,090{second}") for second in (3, 4, 6, 7)),
        ("no_file", "gone,0902"),
        ("not_listed", b"other.mp4"),
        ("not_listed", b"out.mp4"),
    ]
    details = " ".join(planned.dropped["detail"].to_pylist())
    assert f"{lists}/ava_train_v2.2.csv:4: box (0.031, 0.162, 0.031, 0.98) is empty" in details
    assert "ava_train_v2.2.csv:5: box (1.1, 0.162, 1.3, 0.98) lies outside of the frame" in details
    assert "action 99 is not in the action list of 3" in details and "'nonsense' is no row" in details
    assert planned.counts["boxes cut at the frame's edge"] == 1 and planned.counts["of these found"] == 6

    assert planned.boxes is not None
    boxes = [{**row, "score": row["score"]} for row in planned.boxes.to_pylist() if row["movie"] == "-5KQ66BBWC4"]
    assert [(row["second"], row["actions"], row["person"], row["x1"], row["y1"], row["x2"]) for row in boxes] == [
        (899.0, [12], 0, 0.1, 0.1, 0.2),
        (902.0, [12, 79], 0, 0.031, 0.162, 0.670),
        (902.0, [12], 1, 0.5, 0.1, 0.6),
        (905.0, [12], 7, 0.9, 0.0, 1.0),
    ]
    assert planned.actions == (Action(12, "stand"), Action(17, "run", False), Action(79, 'talk "to"', False))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0.1,0.1,0.2,0.2,nan,0", "action nan is not in the action list of 3"),
        ("0.1,0.1,0.2,0.2,12.7,0", "action 12.7 is not in the action list of 3"),
        ("0.1,0.1,0.2,0.2,12,inf", "person inf is no number of one"),
        ("0.1,0.1,0.2,0.2,12,1e10", "person 1e10 is no number of one"),
    ],
)
def test_numbers_that_are_none_are_named(lists: Path, tmp_path: Path, row: str, said: str) -> None:
    (lists / "ava_train_v2.2.csv").write_text(f"-5KQ66BBWC4,0902,0.1,0.1,0.2,0.2,12,\n-5KQ66BBWC4,0903,{row}\n")
    planned = plan("ava-boxes", touch(tmp_path / "movies", "-5KQ66BBWC4.mkv"), lists)
    assert f"{lists}/ava_train_v2.2.csv:2: {said}" in planned.dropped["detail"].to_pylist()
    assert planned.boxes is not None and planned.boxes["person"].to_pylist() == [-1]


def test_trimmed_movies_begin_with_second_900(lists: Path, tmp_path: Path) -> None:
    planned = plan("ava-boxes", touch(tmp_path / "movies", "-5KQ66BBWC4.mp4"), lists, trimmed=True, rate=25.0)
    rows = planned.requests.to_pylist()
    assert [(row["source_id"], row["start"], row["at"], row["rate"]) for row in rows] == [
        ("-5KQ66BBWC4,0902", 2 - 32 / 25, 2.0, 25.0),
        ("-5KQ66BBWC4,0905", 5 - 32 / 25, 5.0, 25.0),
    ]
    outside = [row["detail"] for row in planned.dropped.to_pylist() if row["source_id"] == "-5KQ66BBWC4,0899"]
    assert len(outside) == 1 and outside[0].endswith(":8 lists it; no file of the movie holds that second")


def test_clips_of_kinetics_by_the_seconds_in_their_names(lists: Path, tmp_path: Path) -> None:
    (lists / "kinetics_train_v1.0.csv").write_text(
        "-0Hl4K6wnr0,0015,0.1,0.1,0.2,0.2,12\n-0Hl4K6wnr0,0030,0.1,0.1,0.2,0.2,12\nabcdefghijk,5.0,0.1,0.1,0.2,0.2,12\n"
    )
    (lists / "kinetics_val_v1.0.csv").write_text("zbcdefghijk,0005,,,,,,\nybcdefghijk,0005\n")
    names = (
        "a/-0Hl4K6wnr0_000010_000020.mp4",
        "b/-0Hl4K6wnr0_000006_000016.mp4",
        "abcdefghijk.mp4",
        "other_id_000_000001_000011.mp4",
    )
    videos = touch(tmp_path / "clips", *names, "zbcdefghijk_000000_000010.mp4", "ybcdefghijk_000004_000014.mp4")
    planned = plan("ava-kinetics", videos, lists)
    rows = planned.requests.to_pylist()
    assert [(row["path"], row["split"], row["source_id"], row["at"], row["start"]) for row in rows] == [
        (b"a/-0Hl4K6wnr0_000010_000020.mp4", "train", "-0Hl4K6wnr0,0015", 5.0, 5 - 32 / 30),
        (b"zbcdefghijk_000000_000010.mp4", "val", "zbcdefghijk,0005", 5.0, 5 - 32 / 30),
        (b"ybcdefghijk_000004_000014.mp4", "val", "ybcdefghijk,0005", 1.0, 0.0),
    ]
    assert [(row["reason"], row["source_id"]) for row in planned.dropped.to_pylist()] == [
        ("outside", "-0Hl4K6wnr0,0030"),
        ("no_file", "abcdefghijk,0005"),
    ]
    assert planned.counts["files that no list names"] == 1 and planned.counts["files whose names say no seconds"] == 1
    assert "no reference numbers exist" in planned.notes[0]
    assert planned.boxes is not None and len(planned.boxes) == 1


def test_lists_without_an_annotation_and_lists_that_are_none(lists: Path, tmp_path: Path) -> None:
    videos = touch(tmp_path / "movies", "a.mp4")
    (lists / "ava_train_v2.2.csv").write_text("")
    (lists / "ava_val_v2.2.csv").write_text("x\n")
    with pytest.raises(ValueError, match="source ava: no annotated second in its lists"):
        plan("ava-boxes", videos, lists)
    (lists / "ava_action_list_v2.2.pbtxt").write_text("no list")
    with pytest.raises(ValueError, match="is no action list"):
        plan("ava-boxes", videos, lists)
    (lists / "ava_action_list_v2.2.pbtxt").unlink()
    (lists / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").unlink()
    with pytest.raises(ValueError, match="kind 'ava-boxes' needs actions"):
        plan("ava-boxes", videos, lists)


def test_action_lists(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("id,name\n2,walk, slowly\n1,stand\n")
    assert read_actions(file) == (Action(1, "stand"), Action(2, "walk, slowly"))
    file.write_text("1,stand\n1,walk\n")
    with pytest.raises(ValueError, match="names 1 twice"):
        read_actions(file)


def test_names_of_images() -> None:
    for image, name in ((("-5KQ,6", 902.0), "-5KQ,6,0902"), (("a", 902.0333), "a,902.0333")):
        assert image_name(image) == name and image_of(name) == image


def test_real_annotations(shared: Path) -> None:
    like, files = shared / "clips" / "derived" / "ava_like", shared / "annotations" / "ava"
    planned = plan("ava-boxes", like / "videos", like, trimmed=True)
    assert len(planned.requests) == 47 and planned.boxes is not None and len(planned.boxes) == 94
    assert len(planned.actions) == 80 and planned.actions[63].name == "fight/hit (a person)"
    assert planned.counts["excluded"] == 1
    val = files / "ava_val_v2.2_sample.csv"
    lists = {
        "actions": files / "ava_action_list_v2.2.pbtxt",
        "evaluated": files / "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    }
    planned = key_frames.plan_ava("ava", folder=like / "videos", val=val, **lists)
    assert len(planned.requests) == 0 and sum(action.evaluated for action in planned.actions) == 60
    assert {row["source_id"].partition(",")[0] for row in planned.dropped.to_pylist() if row["source_id"]} == {"1j20qq1JyX4"}
