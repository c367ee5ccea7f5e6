import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builders.building.build import make_plan
from dataset_builders.building.command import WITHOUT_BOXES, arguments, make_build
from dataset_builders.building.duplicates import equal_clips
from dataset_builders.plan import Plan


def plan(tmp_path: Path, *argv: str) -> Plan:
    args = arguments("", WITHOUT_BOXES).parse_args([*argv, "--out", str(tmp_path / "dataset")])
    return make_plan(make_build(args, ("train", "val", "test"), WITHOUT_BOXES))


def rows(planned: Plan) -> list[tuple[str, bytes, str]]:
    return [(row["root"], row["path"], row["split"]) for row in planned.requests.to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """x and y, and a link to them by another name; z has the bytes of x, and w its size."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, data in (
        ("a/x.mp4", b"1234"),
        ("a/y.mp4", b"56"),
        ("b/z.mp4", b"1234"),
        ("b/w.mp4", b"0000"),
        ("b/empty.mp4", b""),
    ):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    return tmp_path


def test_one_folder_under_two_names_is_told_of_and_left_out_on_demand(folder: Path) -> None:
    """Once, and from training if it is held out, too."""
    sources = ("--folder", f"one={folder}/a", "--folder", f"two:val={folder}/link")
    told = plan(folder, *sources)
    assert len(told.requests) == 4
    (note,) = told.parts["one"].notes
    assert "2 files are there under another name, too, such as" in note and "2 of them are for training here" in note
    assert "--drop-duplicates leaves them out" in note
    once = plan(folder, *sources, "--drop-duplicates")
    assert rows(once) == [("two:val", b"x.mp4", "val"), ("two:val", b"y.mp4", "val")]
    dropped = [(row["root"], row["path"], row["reason"]) for row in once.dropped.to_pylist()]
    assert dropped == [("one", b"x.mp4", "leak"), ("one", b"y.mp4", "leak")]
    assert not plan(folder, "--folder", f"one={folder}/a", "--folder", f"two={folder}/b").parts["two"].notes


def test_files_with_the_same_bytes_are_left_out_on_demand(folder: Path) -> None:
    sources = ("--folder", f"one={folder}/a", "--folder", f"two={folder}/b", "--drop-duplicates")
    once = plan(folder, *sources)
    assert [path for _, path, _ in rows(once)] == [b"x.mp4", b"y.mp4", b"empty.mp4", b"w.mp4"]
    (row,) = once.dropped.to_pylist()
    assert (row["path"], row["reason"], row["detail"]) == (b"z.mp4", "duplicate", f"is the same as '{folder}/a/x.mp4' of one")


def test_clips_that_came_out_equal_are_counted(tmp_path: Path) -> None:
    table = pa.table(
        {"content_hash": ["a", "b", "a", "a", "b", "c"], "split": ["train", "train", "val", "train", "train", "test"]}
    )
    pq.write_table(table, os.path.join(tmp_path, "manifest.parquet"))
    assert equal_clips(tmp_path) == (3, 1)
