"""Datasets that are built behind a URL: a local S3 server (real HTTP), killed builds, machines that share nothing else."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from small_videos import tree

from dataset_builders import build_unlabeled_hybrid
from dataset_builders.building.jobs import BuildState
from dataset_builders.building.store import Store
from dataset_builders.checking import recheck
from dataset_builders.checking.shard_checker import Checker, ClipTask
from dataset_builders.media.clip import ClipRequest
from dataset_builders.plan import assemble
from dataset_builders.sources import indexed_tars
from dataset_builders.sources.kinds import Source
from dataset_builders.tars.members import IndexedClip, MemberIndexer
from pipeline.loader import ClipLoader
from pipeline.sampling import SamplingRecipe
from pipeline.storage import files
from pipeline.storage.columns import read_rows
from tests.pipeline.s3_server import BUCKET, S3Server

SCRIPT = Path(build_unlabeled_hybrid.__file__)
RECIPE = SamplingRecipe(views_per_step=4, views_per_clip=2, input_size=32, num_frames=4)
OPTIONS = ["--clips-per-shard", "4", "--workers", "1"]


def build(videos: Path | str, out: object, *more: object) -> int:
    return build_unlabeled_hybrid.main(["--folder", f"v={videos}", "--out", str(out), *OPTIONS, *map(str, more)])


def remote_tree(url: str) -> dict[str, bytes]:
    """What `tree` says of a folder."""
    names = [name for name in files.listed(url) if not name.startswith(".build/") and name not in ("report.html", "card.md")]
    return {name: files.read(f"{url}/{name}") for name in names}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tubecell" / "builds"


@pytest.mark.slow
def test_killed_and_continued_on_another_machine_it_gives_the_same_bytes(
    undisturbed: Path, videos: Path, s3: S3Server, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://{BUCKET}/killed/dataset"
    s3.latency = 0.1
    command = [sys.executable, str(SCRIPT), "--folder", f"v={videos}", "--out", url, *OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    patience = time.monotonic() + 300
    try:
        while not any(name.endswith(".tar") for name in files.listed(url)):
            assert process.poll() is None and time.monotonic() < patience
    finally:
        process.kill()
        process.wait()
    s3.clear()
    before = {name: state for name, state in files.states(url).items() if name.startswith("shards/")}
    assert not files.exists(f"{url}/manifest.parquet")
    shutil.rmtree(home)  # the machine is gone

    s3.inject("500", 2, writing=True)
    s3.inject("reset", 2, writing=True)
    s3.inject("truncate", 1)
    assert build(videos, url) == 0
    assert remote_tree(url) == tree(undisturbed)
    assert f"dataset   {url} (version 1" in capsys.readouterr().out
    after = files.states(url)
    assert {name: after[name] for name in before} == before  # times, too: nothing came twice
    [work] = home.glob("*/dataset")
    assert not list((work / "shards").iterdir())

    s3.clear()
    assert build(videos, url, "--work", tmp_path / "third machine") == 0
    assert f"{url} is complete: 12 clips, 2 rejects" in capsys.readouterr().out
    assert s3.writes == 0

    batches = []
    for dataset in (undisturbed, url):
        with closing(ClipLoader(dataset, RECIPE, workers=1)) as loader:
            batches.append([next(loader).views.clone() for _ in range(4)])
            assert not loader.failures
    assert all(bool((a == b).all()) for a, b in zip(*batches, strict=True))

    [victim, *_] = read_rows(undisturbed / "manifest.parquet").to_pylist()
    rotten = bytearray(files.read(f"{url}/{victim['shard']}"))
    rotten[victim["offset"] + 50] ^= 1
    files.write_durably(f"{url}/{victim['shard']}", bytes(rotten))
    (tmp_path / "failures.jsonl").write_text(json.dumps({"key": victim["key"]}))
    assert recheck.main([url, "--failures", str(tmp_path / "failures.jsonl")]) == 1
    assert f"are not those of clip {victim['key']}" in capsys.readouterr().out
    assert build(videos, url, "--work", tmp_path / "third machine", "--repair", tmp_path / "failures.jsonl") == 0
    assert f"repaired  {victim['shard']}" in capsys.readouterr().out
    assert remote_tree(url) == tree(undisturbed)


def test_shares_on_machines_that_see_only_the_url(
    undisturbed: Path, videos: Path, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://{BUCKET}/shares"
    assert build(videos, url, "--work", tmp_path / "c", "--finish") == 2
    assert f"{url} is no dataset that was begun" in capsys.readouterr().err
    assert build(videos, url, "--work", tmp_path / "b", "--job", "2/2") == 0
    assert build(videos, url, "--work", tmp_path / "c", "--finish") == 2
    assert "shards are not finished: v-000000" in capsys.readouterr().err
    assert build(videos, url, "--work", tmp_path / "a", "--job", "1/2") == 0
    assert not files.exists(f"{url}/manifest.parquet")
    files.remove(f"{url}/shards/v-000001.tar")  # a lost one is made again by the share that has it
    assert build(videos, url, "--work", tmp_path / "c", "--finish") == 2
    assert "1 of 4 shards are not finished: v-000001;" in capsys.readouterr().err
    assert build(videos, url, "--work", tmp_path / "b", "--job", "2/2") == 0
    assert "2 shards, 1 of them now" in capsys.readouterr().out
    assert build(videos, url, "--work", tmp_path / "c", "--finish") == 0
    assert remote_tree(url) == tree(undisturbed)


def test_a_marker_of_another_plan_does_not_count(tmp_path: Path, videos: Path, s3: S3Server) -> None:
    """Two machines begin at once and see other files: of both plans and markers the last that came stays."""
    url = f"s3://{BUCKET}/race"
    with BuildState(tmp_path / "a") as a, BuildState(tmp_path / "b") as b, Store(url, a) as first, Store(url, b) as second:
        for state, store, folder in ((a, first, videos), (b, second, videos / "below")):
            plan = assemble({"v": Source(name="v", kind="folder", settings={"folder": str(folder)}).plan()}, 60)
            state.extend(plan, {"sources": {}}, 100)
            store.put_plans()
            state.commit(state.jobs[0], [], [], 0)
        for state, store in ((b, second), (a, first)):
            store.add(state.jobs[0])
            store.wait()
            with BuildState(tmp_path / "finish") as there, Store(url, there):
                assert there.jobs == b.jobs
                assert there.is_done(there.jobs[0]) == (state is b)


def test_tars_behind_a_url_are_indexed_there(undisturbed: Path, tmp_path: Path, s3: S3Server) -> None:
    url = f"s3://{BUCKET}/tars"
    for tar in (undisturbed / "shards").glob("*.tar"):
        files.upload(tar, f"{url}/old/{tar.name}")
    broken = tar.read_bytes()
    files.write_durably(f"{url}/old/v-000003.tar", broken[: len(broken) // 2])
    pattern = f"{url}/{{old,old}}/v-{{000000..000003}}.tar"
    paths = indexed_tars.plan("own", pattern=pattern).requests["path"].to_pylist()
    s3.clear()
    assert indexed_tars.plan("own", pattern=pattern).requests["path"].to_pylist() == paths
    assert len(s3.gets) == 4  # the first bytes of each; the headers were kept
    indexer, taken = MemberIndexer(str(tmp_path)), []
    for path in paths:
        [result] = indexer(ClipRequest(indexed_tars.root(pattern), path, "own", "key"))
        taken.append(result)
    good = [result.row for result in taken if isinstance(result, IndexedClip)]
    before = read_rows(undisturbed / "manifest.parquet").to_pylist()
    for name in ("content_hash", "offset", "size", "num_frames", "keyframes", "label", "split"):
        assert [row[name] for row in good[:12]] == [row[name] for row in before]
    assert {row["shard"] for row in good[:12]} == {f"{url}/old/v-00000{number}.tar" for number in range(3)}
    assert taken[-1].reason == "truncated"
    checker = Checker(str(tmp_path), decode=True)
    assert not [finding for row in good for finding in checker(ClipTask({**row, "root": "own"}))]
    with pytest.raises(ValueError, match=r"1 of 2 files do not exist; the first is 's3://.*/1\.tar'"):
        files.write_durably(f"{url}/0.tar", broken)
        indexed_tars.find_tars(f"{url}/{{0..1}}.tar")


def test_a_copy_is_told_from_other_bytes(tmp_path: Path, s3: S3Server) -> None:
    file, url = tmp_path / "shard.tar", f"s3://{BUCKET}/copies/shard.tar"
    file.write_bytes(b"some bytes")
    assert not files.is_copy(url, file)
    files.upload(file, url)
    encrypted = {"size": 10, "ETag": f'"{"0" * 32}"'}  # of other bytes, as far as anyone can tell: they are read back
    s3.clear()
    assert files.is_copy(url, file) and not s3.gets
    assert files.is_copy(url, file, encrypted) and len(s3.gets) == 1
    file.write_bytes(b"same bytes")
    assert not files.is_copy(url, file)


def test_folders_are_not_confused(videos: Path, tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "s3://no-such-bucket/dataset"
    assert build(videos, "https://example.invalid/a") == 2
    assert "only read from" in capsys.readouterr().err
    assert build("s3://bucket/videos", tmp_path / "dataset") == 2
    assert "'s3://bucket/videos' is a URL, and only tars are read from one" in capsys.readouterr().err
    assert build(videos, tmp_path / "dataset", "--work", tmp_path) == 2
    assert "is for --out URL" in capsys.readouterr().err
    assert build(videos, url, "--work", undisturbed) == 2
    assert "is a dataset of its own" in capsys.readouterr().err
    assert build(videos, url, "--ray", "auto") == 2
    assert "needs --work" in capsys.readouterr().err
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / files.ORIGIN).write_text("s3://other/dataset")
    assert build(videos, url, "--work", tmp_path / "work") == 2
    assert "belongs to the build of s3://other/dataset" in capsys.readouterr().err
    assert build(videos, tmp_path / "work") == 2
    assert "is the work folder of s3://other/dataset" in capsys.readouterr().err
    assert os.listdir(tmp_path / "work") == [files.ORIGIN]
