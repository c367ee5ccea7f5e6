import os
import re
from pathlib import Path

import pytest

from dataset_builders.building.jobs import BuildState
from dataset_builders.plan import DROPPED_SCHEMA, Plan, SourcePlan, assemble, clip_key, requests_table
from tests.dataset_builders.sources.test_folder import NAMES


def source_plan(name: str, paths: list[bytes], **columns: object) -> SourcePlan:
    common = {"source": name, "root": name, "kind": "video", "split": "train", "sampling": "stride:4"}
    return SourcePlan(requests=requests_table({**common, "path": paths, **columns}), dropped=DROPPED_SCHEMA.empty_table())


def files(number: int) -> list[bytes]:
    return [f"{i:04d}.mp4".encode() for i in range(number)]


def test_keys_are_safe_readable_and_distinct() -> None:
    paths = [*NAMES, b"a/plain.mp4", b"dots..in...name.mp4", b"a" * 240 + b".mp4", "прыжок_人物.mp4".encode(), b"-id_-x.mp4"]
    keys = [clip_key("source", "root", path) for path in paths]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{12,73}", key) for key in keys)
    assert not any(key.startswith("-") for key in keys)
    assert len(set(keys)) == len(keys)
    assert keys[0].startswith("plain-")
    assert len({clip_key(*what) for what in (("o", "r", b"x"), ("s", "r", b"x"), ("s", "q", b"x"), ("s", "r", b"x", 0.5))}) == 4
    # part of what a dataset is: the same on every machine and in every version
    assert clip_key("videos", "videos", b"folder/clip 1.mp4") == "clip-1-8512be3e6793"


def test_what_is_asked_for_twice_is_dropped_once() -> None:
    plan = assemble({"a": source_plan("a", [b"x", b"y", b"x"]), "b": source_plan("b", [b"x"])}, 60)
    assert [(row["source"], row["path"]) for row in plan.requests.to_pylist()] == [("a", b"x"), ("a", b"y"), ("b", b"x")]
    assert [(row["source"], row["path"], row["reason"]) for row in plan.dropped.to_pylist()] == [("a", b"x", "duplicate")]
    windows = source_plan("a", [b"x", b"x"], start=[0.0, 10.0], end=[10.0, 20.0])
    assert len(assemble({"a": windows}, 60).requests) == 2  # two parts of one file


def test_expected_clips() -> None:
    columns = {
        "seconds": [None, 10.0, 61.0, 600.0, None],
        "start": [None, None, None, None, 900.0],
        "end": [None, None, None, None, 1800.0],
        "rate": [None, None, None, None, 30.0],
        "clip_frames": [None, None, None, None, 300],
    }
    plan = assemble({"a": source_plan("a", files(5), **columns)}, 60)
    assert plan.requests["clips"].to_pylist() == [1, 1, 2, 10, 90]


def extend(dataset: Path, plan: Plan, clips_per_shard: int = 10) -> list[tuple[str, int]]:
    with BuildState(dataset) as state:
        state.extend(plan, {"sources": {}}, clips_per_shard)
        for job in state.jobs:
            assert len(state.requests(job)) == job.requests
        return [(job.name, job.requests) for job in state.jobs]


def test_jobs_are_runs_of_a_source_of_about_so_many_clips(tmp_path: Path) -> None:
    movies = source_plan("movies", files(3), seconds=[1000.0, 10.0, 400.0])  # 17, 1 and 7 clips
    plan = assemble({"a": source_plan("a", files(25)), "movies": movies}, 60)
    expected = [("a-000000", 10), ("a-000001", 10), ("a-000002", 5), ("movies-000000", 1), ("movies-000001", 2)]
    assert extend(tmp_path, plan) == expected
    assert extend(tmp_path, plan) == expected
    grown = assemble({"a": source_plan("a", [b"0000-new.mp4", *files(25)])}, 60)
    assert extend(tmp_path, grown) == [*expected, ("a-000003", 1)]
    with BuildState(tmp_path) as state:
        assert state.requests(state.jobs[-1])["path"].to_pylist() == [b"0000-new.mp4"]
        less = assemble({"a": source_plan("a", files(20))}, 60)
        assert state.extend(less, {"sources": {}}, 10) == {"a": (6, "0020.mp4")}


def test_a_plan_without_requests(tmp_path: Path) -> None:
    assert extend(tmp_path, assemble({"a": source_plan("a", [])}, 60)) == []


def test_other_options_of_a_source_are_an_error_that_names_them(tmp_path: Path) -> None:
    plan = assemble({"a": source_plan("a", files(2))}, 60)
    with BuildState(tmp_path) as state:
        state.extend(plan, {"gop": 32, "sources": {"a": {"kind": "folder", "split": "train"}}}, 10)
        state.extend(plan, {"gop": 32, "sources": {"b": {"kind": "folder"}}}, 10)  # another source may join
        with pytest.raises(ValueError, match=r"split of source a was train and is now val"):
            state.extend(plan, {"gop": 32, "sources": {"a": {"kind": "folder", "split": "val"}}}, 10)
        with pytest.raises(ValueError, match=r"--gop was 32 and is now 16"):
            state.extend(plan, {"gop": 16, "sources": {}}, 10)


def test_paths_survive_the_plan(tmp_path: Path) -> None:
    names = [name for name in NAMES if b"/" not in name]
    extend(tmp_path, assemble({"a": source_plan("a", names)}, 60), 1000)
    with BuildState(tmp_path) as state:
        assert state.requests(state.jobs[0])["path"].to_pylist() == names
    assert any(
        os.fsdecode(name).encode("utf-8", "surrogateescape") != os.fsdecode(name).encode("utf-8", "replace") for name in names
    )
