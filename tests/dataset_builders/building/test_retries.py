"""What failed for a reason of the machine is tried again, and nothing else of a dataset moves."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_videos import make_video, tree
from some_unreadable import NAMES, build

from dataset_builders import build_unlabeled_hybrid
from dataset_builders.building.jobs import BuildState
from dataset_builders.executors import Failure
from dataset_builders.media.rejects import MACHINE, Reason, retried
from dataset_builders.plan import SourcePlan, assemble, dropped_table, requests_table
from pipeline.storage import files
from pipeline.storage.columns import read_rows
from pipeline.storage.manifest import Manifest, content_hash
from pipeline.storage.manifest_writer import SCHEMA
from tests.pipeline.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.usefixtures("halfway")


def rows_of(dataset: Path) -> list[dict]:
    return read_rows(dataset / "manifest.parquet").to_pylist()


def rejects_of(dataset: Path) -> dict[str, str]:
    rejects = read_rows(dataset / "rejects.parquet").to_pylist()
    assert len({reject["path"] for reject in rejects}) == len(rejects)
    return {os.fsdecode(reject["path"]): reject["reason"] for reject in rejects}


def assert_sound(dataset: Path, number: int) -> None:
    rows = rows_of(dataset)
    assert len({row["key"] for row in rows}) == len(rows) == number
    for row in rows:
        data = (dataset / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert content_hash(data) == row["content_hash"]
    described = json.loads((dataset / "dataset.json").read_bytes())
    assert described["totals"]["clips"] == described["sources"]["v"]["taken"] == number
    assert described["totals"]["rejects"] == described["sources"]["v"]["rejected"] == len(rejects_of(dataset))


def forget_keys(dataset: Path) -> None:
    """Markers as older code wrote them: rejects do not say of which request they are; nor does finished.json count them."""
    for marker in (dataset / ".build" / "done").glob("*.json"):
        content = json.loads(marker.read_bytes())
        for reject in content["rejects"]:
            del reject["key"]
        marker.write_text(json.dumps(content))
    finished = dataset / ".build" / "finished.json"
    if finished.exists():
        content = json.loads(finished.read_bytes())
        del content["rejects"]
        finished.write_text(json.dumps(content))


@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
def test_links_dangle_and_are_mounted_later(older: bool, links: Path, mount, tmp_path: Path, capsys) -> None:
    dataset = tmp_path / "dataset"
    mount("00.mp4", "05.mp4", "09.mp4")
    (links / "notes.txt").write_text("no video")
    assert build(dataset, links) == 0
    assert "7 of these may lie with the machine: the same command tries them again" in capsys.readouterr().out
    first = tree(dataset)
    if older:
        forget_keys(dataset)

    mount("00.mp4", *NAMES[2:])
    assert build(dataset, links) == 0
    assert "7 earlier rejects tried again: 6 taken now, 1 still unreadable" in capsys.readouterr().out
    assert_sound(dataset, 9)
    rows = rows_of(dataset)
    assert [row["path"] for row in rows[3:]] == [f"0{i}.mp4".encode() for i in (2, 3, 4, 6, 7, 8)]
    assert {name: first[name] for name in first if name.startswith("shards/")}.items() <= tree(dataset).items()
    assert rejects_of(dataset) == {"01.mp4": "unreadable", "notes.txt": "not_video"}
    assert [version["rows"] for version in Manifest(dataset).versions] == [3, 9]
    assert Manifest(dataset, version=1).clip(2).key == rows[2]["key"]

    for _ in range(2):
        assert build(dataset, links) == 0
        assert "1 earlier reject tried again: 0 taken now, 1 still unreadable" in capsys.readouterr().out
    second, plans = tree(dataset), len(list((dataset / ".build").glob("plan-*")))
    assert build(dataset, links, "--retry", "none") == 0
    assert "is complete: 9 clips, 2 rejects; 1 of these may lie with the machine, and are" in capsys.readouterr().out
    assert tree(dataset) == second and len(list((dataset / ".build").glob("plan-*"))) == plans  # no plan for each attempt

    (links / "01.mp4").rename(tmp_path / "01.mp4")
    assert build(dataset, links) == 0
    assert "is complete: 9 clips, 2 rejects; nothing to do" in capsys.readouterr().out  # nobody asks for it now
    (tmp_path / "01.mp4").rename(links / "01.mp4")
    mount(*NAMES)
    assert build(dataset, links) == 0
    assert_sound(dataset, 10)
    assert rejects_of(dataset) == {"notes.txt": "not_video"}
    assert build(dataset, links) == 0
    assert "is complete: 10 clips, 1 rejects; nothing to do (--retry REASON tries others again" in capsys.readouterr().out


def test_what_no_manifest_covers_comes_out_as_if_nothing_had_happened(links: Path, mount, tmp_path: Path, capsys) -> None:
    mount(*NAMES)
    assert build(tmp_path / "undisturbed", links) == 0
    for older in (False, True):
        dataset = tmp_path / f"dataset-{older}"
        mount("00.mp4", "02.mp4", "09.mp4")
        assert build(dataset, links, "--job", "1/2") == 0
        if older:
            forget_keys(dataset)
        mount(*NAMES)
        shard = (dataset / "shards" / "v-000000.tar").read_bytes()
        assert build(dataset, links, "--job", "1/2", "--retry", "none") == 0
        assert (dataset / "shards" / "v-000000.tar").read_bytes() == shard
        capsys.readouterr()
        assert build(dataset, links, "--job", "1/2") == 0
        assert "3 earlier rejects tried again: 3 taken now" in capsys.readouterr().out
        assert build(dataset, links, "--job", "2/2") == 0
        assert build(dataset, links, "--finish") == 0
        assert tree(dataset) == tree(tmp_path / "undisturbed")


def test_shares_of_a_finished_dataset(links: Path, mount, tmp_path: Path, capsys) -> None:
    dataset = tmp_path / "dataset"
    mount(*NAMES[3:8])
    for share in ("1/2", "2/2"):
        assert build(dataset, links, "--job", share) == 0
    for _ in range(2):
        assert build(dataset, links, "--finish") == 0
        assert "5 of these may lie with the machine" in capsys.readouterr().out
    mount(*NAMES)
    for share in ("2/2", "1/2"):  # the first to come writes the plan, for all
        assert build(dataset, links, "--job", share) == 0
    assert build(dataset, links, "--finish") == 0
    assert_sound(dataset, 10)
    assert not rejects_of(dataset)
    assert [version["rows"] for version in Manifest(dataset).versions] == [5, 10]
    assert len(list((dataset / ".build").glob("plan-*"))) == 2


def test_a_folder_that_dangles_is_not_told_of_any_more(links: Path, mount, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    mount(*NAMES)
    (links / "below").symlink_to(tmp_path / "another mount")
    assert build(dataset, links) == 0
    assert rejects_of(dataset) == {"below": "unreadable"}
    shutil.copytree(tmp_path / "mount", tmp_path / "another mount")
    assert build(dataset, links) == 0
    assert not rejects_of(dataset)
    assert_sound(dataset, 20)


def test_other_reasons_are_tried_again_when_asked(links: Path, mount, tmp_path: Path, capsys) -> None:
    dataset = tmp_path / "dataset"
    mount(*NAMES)
    assert build(dataset, links, "--min-frames", "19") == 0
    assert set(rejects_of(dataset).values()) == {"too_short"}
    assert build(dataset, links, "--min-frames", "19") == 0
    assert "nothing to do" in capsys.readouterr().out
    (links / "00.mp4").unlink()
    make_video(links / "00.mp4", size="32x32", frames=30)  # the same name, another file
    assert build(dataset, links, "--min-frames", "19", "--retry", "damaged", "too_short") == 0
    assert "2 earlier rejects tried again: 1 taken now, 1 rejected as too_short" in capsys.readouterr().out
    assert_sound(dataset, 9)
    assert build(dataset, links, "--retry", "old_ffmpeg") == 2
    assert (
        "--retry 'old_ffmpeg' is no reason of rejects; allowed are all, none, unreadable, not_video" in capsys.readouterr().err
    )
    assert build(dataset, links, "--retry", "all", "--repair", tmp_path) == 2
    assert "--repair goes without" in capsys.readouterr().err
    assert retried(None) == retried(["timeout"]) == MACHINE and retried(["all"]) == {*Reason} and not retried(["none"])


def cut(out: Path, links: Path, *more: object) -> int:
    arguments = ["--folder", f"v={links}", "--out", str(out), "--preset", "mjpeg", "--max-seconds", "1", "--min-frames", "5"]
    return build_unlabeled_hybrid.main([*arguments, *map(str, more)])


def test_the_rest_of_a_file_that_failed_halfway(tmp_path: Path, halfway, capsys) -> None:
    """A limit is raised: what was taken of the file stays, the rest follows, and no clip comes twice."""
    (tmp_path / "folder").mkdir()
    for name, frames in (("b.mp4", 100), ("c.mp4", 20)):
        make_video(tmp_path / "folder" / name, size="32x32", frames=frames)
    assert cut(tmp_path / "undisturbed", tmp_path / "folder") == 0
    whole = rows_of(tmp_path / "undisturbed")
    assert len(whole) == 5

    halfway[b"b.mp4"] = 2, Failure(Reason.TIMEOUT, "took longer than 1 s")
    for name, first in (("published", ["--time-limit", "1"]), ("not yet", ["--time-limit", "1", "--job", "1/1"])):
        assert cut(tmp_path / name, tmp_path / "folder", *first) == 0
    halfway[b"b.mp4"] = 1, Failure(Reason.TIMEOUT, "took longer than 1 s")  # no better
    assert cut(tmp_path / "not yet", tmp_path / "folder", "--job", "1/1") == 0
    halfway.clear()
    capsys.readouterr()
    assert cut(tmp_path / "published", tmp_path / "folder", "--time-limit", "9", "--memory-limit", "8") == 0
    assert "1 earlier reject tried again: 1 taken now" in capsys.readouterr().out
    assert cut(tmp_path / "not yet", tmp_path / "folder") == 0
    assert tree(tmp_path / "not yet") == tree(tmp_path / "undisturbed")
    assert not rejects_of(tmp_path / "published")
    assert_sound(tmp_path / "published", 5)
    rows = rows_of(tmp_path / "published")
    order = [0, 1, 4, 2, 3]
    assert [(row["key"], row["content_hash"]) for row in rows] == [(whole[i]["key"], whole[i]["content_hash"]) for i in order]


def test_a_lost_shard_gets_the_clips_that_it_had(links: Path, mount, tmp_path: Path, capsys) -> None:
    """Not those that could not be read when it was made, and now can: they have shards of their own, or will have."""
    dataset = tmp_path / "dataset"
    mount("00.mp4", "01.mp4", "05.mp4", "06.mp4", "09.mp4")
    assert build(dataset, links) == 0
    mount(*NAMES[:7], "09.mp4")
    assert build(dataset, links) == 0  # 02, 03, 04 follow; 07 and 08 are missing
    before = tree(dataset)
    mount(*NAMES)
    for lost in (["shards/v-000000.tar"], ["shards/v-000001.tar", ".build/done/v-000001.json", ".build/done/v-000001.parquet"]):
        for name in lost:
            (dataset / name).unlink()
        assert build(dataset, links, "--retry", "none") == 0
        after = tree(dataset)
        assert {name: after[name] for name in before if name.startswith(("shards/", "manifest"))} == {
            name: before[name] for name in before if name.startswith(("shards/", "manifest"))
        }
        assert set(rejects_of(dataset)) == {"07.mp4", "08.mp4"}

    rows = rows_of(dataset)
    (tmp_path / "failures.jsonl").write_text(json.dumps({"key": rows[0]["key"]}) + "\n" + json.dumps({"key": rows[5]["key"]}))
    for row in (rows[0], rows[5]):
        (dataset / row["shard"]).unlink()
    assert build(dataset, links, "--repair", tmp_path / "failures.jsonl") == 0
    assert capsys.readouterr().out.count("repaired") == 2
    assert {name: tree(dataset)[name] for name in before if name.startswith("shards/")} == {
        name: before[name] for name in before if name.startswith("shards/")
    }
    assert build(dataset, links) == 0
    assert_sound(dataset, 10)

    (dataset / "shards" / "v-000000.tar").unlink()
    mount("00.mp4")
    assert build(dataset, links) == 2  # and nothing is noted: once it is mounted, it can be made
    assert "clip 01-" in (error := capsys.readouterr().err) and "is missing: unreadable, No such file" in error
    assert not (dataset / "shards" / "v-000000.tar").exists()
    mount(*NAMES)
    assert build(dataset, links) == 0
    assert_sound(dataset, 10)


def test_a_lost_shard_of_clips_tried_again_is_no_reject(links: Path, mount, tmp_path: Path, capsys) -> None:
    """Neither when a manifest names its clips, nor before: what they were is over."""
    dataset = tmp_path / "dataset"
    mount(*NAMES[:7])
    assert build(dataset, links) == 0
    mount(*NAMES)
    assert build(dataset, links, "--job", "1/1") == 0
    assert "3 earlier rejects tried again: 3 taken now" in capsys.readouterr().out
    shard = dataset / "shards" / "v-000003.tar"
    whole = shard.read_bytes()
    for more in (["--job", "1/1"], ["--finish"], []):
        if not more or more[0] == "--job":
            shard.unlink()
        assert build(dataset, links, *more) == 0
        assert "tried again" not in capsys.readouterr().out
        assert shard.read_bytes() == whole
    assert_sound(dataset, 10)


def test_behind_a_url(links: Path, mount, tmp_path: Path, s3: S3Server, capsys, monkeypatch) -> None:
    """The shard to be filled up was uploaded from a machine that is gone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    mount(*NAMES)
    assert build(tmp_path / "undisturbed", links) == 0
    url = f"s3://{BUCKET}/retries/dataset"
    mount("00.mp4", "02.mp4", "08.mp4")
    assert build(url, links, "--work", tmp_path / "a", "--job", "1/1") == 0
    mount(*NAMES[:9])
    assert build(url, links, "--work", tmp_path / "b") == 0
    names = [name for name in files.listed(url) if name.startswith(("shards/v-000000", "shards/v-000001"))]
    assert len(names) == 4
    for name in names:
        assert files.read(f"{url}/{name}") == (tmp_path / "undisturbed" / name).read_bytes()
    assert not list((tmp_path / "b" / "shards").iterdir())
    capsys.readouterr()
    mount(*NAMES)
    assert build(url, links, "--work", tmp_path / "c") == 0
    assert "1 earlier reject tried again: 1 taken now" in capsys.readouterr().out
    assert [version["rows"] for version in Manifest(url).versions] == [9, 10]
    assert {row["path"] for row in rows_of(files.fetch_manifest(url))} == {os.fsencode(name) for name in NAMES}


def test_members_of_tars_are_tried_again_where_they_lie(links: Path, mount, tmp_path: Path, capsys) -> None:
    mount(*NAMES)
    assert build(tmp_path / "clips", links) == 0
    tars = [tmp_path / f"v-00000{number}.tar" for number in range(3)]
    for tar in tars:
        shutil.copyfile(tmp_path / "clips" / "shards" / tar.name, tar)
    whole = tars[0].read_bytes()
    row = rows_of(tmp_path / "clips")[1]
    tars[0].write_bytes(whole[: row["offset"]] + bytes(row["size"]) + whole[row["offset"] + row["size"] :])
    dataset = tmp_path / "dataset"
    arguments = ["--index", f"own={tmp_path}/v-00000{{0..2}}.tar", "--out", str(dataset)]
    assert build_unlabeled_hybrid.main(arguments) == 0
    assert len(rows_of(dataset)) == 9
    tars[0].write_bytes(whole)
    assert build_unlabeled_hybrid.main([*arguments, "--retry", "all"]) == 0
    assert "1 earlier reject tried again: 1 taken now" in capsys.readouterr().out
    rows = rows_of(dataset)
    assert (rows[9]["shard"], rows[9]["offset"], rows[9]["content_hash"]) == (str(tars[0]), row["offset"], row["content_hash"])
    for job in ("own-000000", "own-000001"):
        (dataset / ".build" / "done" / f"{job}.json").unlink()
        (dataset / ".build" / "finished.json").unlink(missing_ok=True)
        assert build_unlabeled_hybrid.main(arguments) == 0
        assert rows_of(dataset) == rows and not pq.read_table(dataset / "rejects.parquet").num_rows


def test_what_older_markers_may_mean(tmp_path: Path) -> None:
    """Their rejects do not name the request: of several parts of a file all that could be meant are tried again."""
    columns = {"source": "v", "root": "v", "path": [b"film"] * 4 + [b"other"], "kind": "video", "split": "train"}
    columns |= {"sampling": "stride:4", "start": [0.0, 10.0, 20.0, 30.0, None], "end": [10.0, 20.0, 30.0, 40.0, None]}
    plan = assemble({"v": SourcePlan(requests=requests_table(columns), dropped=dropped_table({}, 0))}, 60)
    keys = plan.requests["key"].to_pylist()
    with BuildState(tmp_path) as state:
        state.extend(plan, {"sources": {}}, 100)
        [job] = state.jobs
        row = dict.fromkeys(SCHEMA.names) | {"key": keys[1], "size": 1, "duration": 1.0}
        common = {"root": "v", "source": "v", "split": "train", "source_id": None, "detail": ""}
        rejects = [
            {**common, "path": b"film", "start": 0.0, "end": 10.0, "reason": "damaged"},
            {**common, "path": b"film", "start": 33.0, "end": 34.0, "reason": "verify_failed"},
            {**common, "path": b"film", "reason": "timeout"},
            {**common, "path": b"other", "reason": "unreadable"},
        ]
        state.commit(job, [row], rejects, 1)
        found = state.rejected_requests(job, state.rejects(job))
        assert found == [{keys[0]}, {keys[3]}, {keys[0], keys[2], keys[3]}, {keys[4]}]


@pytest.mark.slow
def test_on_ray(links: Path, mount, tmp_path: Path, capsys) -> None:
    pytest.importorskip("ray")
    mount("00.mp4", "05.mp4", "09.mp4")
    assert build(tmp_path / "dataset", links, "--ray", "local") == 0
    mount(*NAMES)
    assert build(tmp_path / "dataset", links, "--ray", "local") == 0
    assert "7 earlier rejects tried again: 7 taken now" in capsys.readouterr().out
    assert_sound(tmp_path / "dataset", 10)
    mount()
    assert build(tmp_path / "away", links, "--ray", "local") == 2
    told = capsys.readouterr().err
    assert "all 10 files that were tried fail: unreadable" in told and told.count("\n") == 1
