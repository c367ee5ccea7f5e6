"""Storage against real files and a local S3 server whose faults are injected: every byte right, or an error that says why."""

import multiprocessing
import os
import pickle
import random
import resource
import socketserver
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.sampling.evaluation import EvaluationSampler
from pipeline.sampling.order import order_of
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.sampling.sampler import TrainingSampler
from pipeline.storage import files, remote
from pipeline.storage.clip_cache import ClipCache, parse_size
from pipeline.storage.manifest import Clip, Manifest, content_hash
from pipeline.storage.remote import StorageError
from pipeline.storage.shards import ShardReader
from pipeline.workers.read_plan import ReadPlan
from tests.manifest_rows import row, write_rows
from tests.pipeline.s3_server import BUCKET, Get, S3Server

SHARDS, CLIPS = 3, 40  # clips of 10 to 20 kB in a shard
TRANSIENT = ("500", "503", "reset", "reset-in-body", "truncate", "garbage", "slow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of random bytes: real tars with side files, a real manifest."""
    root = tmp_path_factory.mktemp("random") / "dataset"
    (root / "shards").mkdir(parents=True)
    generator = random.Random(0)
    rows = []
    for shard in range(SHARDS):
        name = f"shards/random-{shard:06d}.tar"
        with tarfile.open(root / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(CLIPS):
                data = generator.randbytes(generator.randint(10_000, 20_000))
                for extension, content in (("json", b"{}"), ("mp4", data)):
                    member = tarfile.TarInfo(f"clip-{shard}-{i}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
                changes = {"shard": name, "size": len(data), "content_hash": content_hash(data)}
                rows.append(row(len(rows), key=f"clip-{shard}-{i}", **changes))
        with tarfile.open(root / name) as tar:
            for member, entry in zip([m for m in tar if m.name.endswith("mp4")], rows[-CLIPS:], strict=True):
                entry["offset"] = member.offset_data
    write_rows(root, rows)
    (root / "dataset.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def clips(folder: Path) -> list[Clip]:
    manifest = Manifest(folder)
    return [manifest.clip(i) for i in range(len(manifest))]


@pytest.fixture(scope="module")
def url(folder: Path, s3_session: S3Server) -> str:
    """The same dataset in the bucket, uploaded by `files`."""
    place = f"s3://{BUCKET}/datasets/random"
    for file in sorted(folder.rglob("*")):
        if file.is_file() and ".cache" not in file.parts:
            files.upload(file, f"{place}/{file.relative_to(folder)}")
    return place


def local_bytes(folder: Path, clip: Clip) -> bytes:
    with (folder / clip.shard).open("rb") as file:
        file.seek(clip.offset)
        return file.read(clip.size)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def shard_gets(server: S3Server) -> list[Get]:
    return [get for get in server.gets if get.path.endswith(".tar")]


# local ---------------------------------------------------------------------------------------------------------------------


def test_local_shards_are_read_from_many_threads_and_closed(folder: Path, clips: list[Clip]) -> None:
    before = descriptors()
    with closing(ShardReader(folder)) as reader, ThreadPoolExecutor(8) as pool:
        reader.prefetch(clips)  # nothing to do
        assert list(pool.map(reader.read, clips)) == [local_bytes(folder, clip) for clip in clips]
        assert descriptors() == before + SHARDS
        assert reader.counts() == {}
    assert descriptors() == before


def test_local_shards_beyond_the_limit_of_open_files_are_read_all_the_same(folder: Path, clips: list[Clip]) -> None:
    with closing(ShardReader(folder)) as reader:
        reader._most_open = 1
        before = descriptors()
        assert [reader.read(clip) for clip in clips] == [local_bytes(folder, clip) for clip in clips]
        assert descriptors() == before + 1


@pytest.mark.parametrize("harm", ["missing", "cut", "damaged"])
def test_local_faults_are_named(folder: Path, clips: list[Clip], tmp_path: Path, harm: str) -> None:
    clip = clips[-1]
    shard = tmp_path / clip.shard
    shard.parent.mkdir()
    data = (folder / clip.shard).read_bytes()
    if harm == "cut":
        shard.write_bytes(data[: clip.offset + 100])
    elif harm == "damaged":
        shard.write_bytes(data[: clip.offset] + b"\0" + data[clip.offset + 1 :])
    with closing(ShardReader(tmp_path)) as reader, pytest.raises(StorageError) as caught:
        reader.read(clip)
    assert str(shard) in str(caught.value)
    assert {"missing": "No such file", "cut": "cut off", "damaged": "not those of clip"}[harm] in str(caught.value)
    assert not caught.value.transient


def test_a_shard_that_was_replaced_is_found_again(folder: Path, clips: list[Clip], tmp_path: Path) -> None:
    """The open descriptor shows an old file; the one of that name now is right."""
    shard = tmp_path / clips[0].shard
    shard.parent.mkdir()
    shard.write_bytes(bytes(1_000_000))
    with closing(ShardReader(tmp_path)) as reader:
        with pytest.raises(StorageError, match="not those"):
            reader.read(clips[0])
        replacement = shard.with_suffix(".new")
        replacement.write_bytes((folder / clips[0].shard).read_bytes())
        replacement.rename(shard)
        assert reader.read(clips[0]) == local_bytes(folder, clips[0])


# remote, one clip at a time ------------------------------------------------------------------------------------------------


def test_a_clip_is_one_request(s3: S3Server, url: str, folder: Path, clips: list[Clip]) -> None:
    with closing(ShardReader(Path(url))) as reader:  # a Path drops one of the slashes: they are put back
        assert reader.read(clips[5]) == local_bytes(folder, clips[5])
        assert [get.sent for get in s3.gets] == [clips[5].size]
        assert reader.counts() == {"gets": 1, "bytes": clips[5].size}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_passing_faults_are_overcome(s3: S3Server, url: str, folder: Path, clips: list[Clip], fault: str) -> None:
    s3.inject(fault, 2 if fault != "slow" else 1)
    with closing(ShardReader(url)) as reader:
        assert reader.read(clips[7]) == local_bytes(folder, clips[7])
    assert len(s3.gets) >= (1 if fault == "slow" else 2)


def test_a_connection_that_hangs_is_given_up(s3: S3Server, url: str, folder: Path, clips: list[Clip]) -> None:
    s3.inject("hang")
    with closing(ShardReader(url, patience=3.0)) as reader:
        assert reader.read(clips[7]) == local_bytes(folder, clips[7])


@pytest.mark.parametrize("fault", ["500", "truncate", "hang"])
def test_patience_is_bounded(s3: S3Server, url: str, clips: list[Clip], fault: str) -> None:
    s3.inject_always(lambda get: fault)
    began = time.monotonic()
    with closing(ShardReader(url, patience=1.0)) as reader, pytest.raises(StorageError, match="no proper answer") as caught:
        reader.read(clips[0])
    assert caught.value.transient
    assert f"{url}/{clips[0].shard}" in str(caught.value)
    assert time.monotonic() - began < 20  # for ever otherwise; generous, because the machine may be busy
    assert 1 <= len(s3.gets) < 12  # with growing delays


@pytest.mark.parametrize(("fault", "words"), [("404", "does not exist"), ("403", "access is denied")])
def test_lasting_faults_are_not_repeated(s3: S3Server, url: str, clips: list[Clip], fault: str, words: str) -> None:
    s3.inject_always(lambda get: fault)
    with closing(ShardReader(url)) as reader, pytest.raises(StorageError, match=words) as caught:
        reader.read(clips[0])
    assert f"{url}/{clips[0].shard}" in str(caught.value)
    assert not caught.value.transient
    assert len(s3.gets) == 1


def test_wrong_bytes_are_fetched_once_more(s3: S3Server, url: str, folder: Path, clips: list[Clip]) -> None:
    with closing(ShardReader(url)) as reader:
        s3.inject("wrong-bytes")
        assert reader.read(clips[0]) == local_bytes(folder, clips[0])
        assert reader.counts()["wrong"] == 1
        s3.inject_always(lambda get: "wrong-bytes")
        with pytest.raises(StorageError, match=f"not those of clip {clips[0].key}") as caught:
            reader.read(clips[0])
    assert not caught.value.transient
    assert len(s3.gets) == 4


def test_a_shard_that_ends_too_early(s3: S3Server, url: str, folder: Path, clips: list[Clip]) -> None:
    last = clips[CLIPS - 1]
    cut = f"s3://{BUCKET}/datasets/cut"
    for length, words in ((last.offset + 100, "cut off"), (last.offset - 1, "ends before")):
        files.write_durably(f"{cut}/{last.shard}", (folder / last.shard).read_bytes()[:length])
        with closing(ShardReader(cut)) as reader, pytest.raises(StorageError, match=words) as caught:
            reader.read(last)
        assert not caught.value.transient
    with closing(ShardReader(cut)) as reader:  # read ahead, what is there is still good
        reader.prefetch(clips[:CLIPS])
        assert reader.read(clips[0]) == local_bytes(folder, clips[0])


def test_many_threads_and_many_faults(s3: S3Server, url: str, folder: Path, clips: list[Clip]) -> None:
    generator = random.Random(1)
    faults = [fault for fault in TRANSIENT if fault != "slow"]
    s3.inject_always(lambda get: generator.choice(faults) if generator.random() < 0.15 else None)
    with closing(ShardReader(url)) as reader, ThreadPoolExecutor(16) as pool:
        reader.prefetch(clips[::3])
        assert list(pool.map(reader.read, clips)) == [local_bytes(folder, clip) for clip in clips]
    assert len(s3.gets) > len(clips) / 2


def test_descriptors_are_not_leaked(s3: S3Server, url: str, clips: list[Clip]) -> None:
    """Connections are kept, up to 64; none beyond, whatever went wrong on them. (Those of the server count here, too.)"""
    counts = []
    for _ in range(2):
        with closing(ShardReader(url, patience=2.0)) as reader, ThreadPoolExecutor(8) as pool:
            for fault in ("truncate", "reset-in-body", "reset", "hang"):
                s3.inject(fault, 1)
            reader.prefetch(clips[:40])
            list(pool.map(reader.read, clips[:60]))
        counts.append(descriptors())
    assert max(counts) < 200
    assert counts[1] <= counts[0] + 20


def _read_in_child(url: str, clips: list[Clip], results: Any) -> None:
    with closing(ShardReader(url)) as reader:
        results.put([content_hash(reader.read(clip)) for clip in clips])


def test_a_forked_process_reads_too(s3: S3Server, url: str, clips: list[Clip]) -> None:
    """fsspec's event loop does not survive a fork; ours are opened per process."""
    with closing(ShardReader(url)) as reader:
        reader.read(clips[0])
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(url, clips[:3], results))
    child.start()
    try:
        assert results.get(timeout=60) == [clip.content_hash for clip in clips[:3]]
    finally:
        child.kill()
        child.join()


# read-ahead ----------------------------------------------------------------------------------------------------------------


def batches(manifest: Manifest, recipe: SamplingRecipe, epochs: int, rank: int, world: int) -> Iterator[tuple[int, np.ndarray]]:
    order = order_of(manifest, recipe)
    for epoch in range(epochs):
        for step in range(order.steps_per_epoch):
            yield epoch, order.rank_positions(step, rank, world)


@pytest.mark.parametrize("world", [1, 2])
def test_lanes_read_each_shard_in_long_requests(s3: S3Server, url: str, folder: Path, world: int) -> None:
    """Through the real order: the requests that a server counts are those that the windows need, and no byte comes twice."""
    manifest = Manifest(folder)
    recipe = SamplingRecipe(views_per_step=32, views_per_clip=4, shuffle="window", lanes=4, window=10)
    order = order_of(manifest, recipe)
    get_bytes, needed, used = 100_000, 0, 0
    for rank in range(world):
        seen: set[int] = set()
        for epoch, positions in batches(manifest, recipe, 2, rank, world):
            for position in positions.tolist():
                window = order.window_positions(epoch, position)
                if (first := int(window[0]) + (epoch << 32)) not in seen:
                    seen.add(first)
                    members = sorted((manifest.clip(int(r)) for r in order.rows(epoch, window)), key=lambda c: c.row)
                    needed += requests_needed(members, get_bytes)
        with closing(ShardReader(url, get_bytes=get_bytes)) as reader:
            plan = ReadPlan(reader, TrainingSampler().of(manifest, recipe), clips_ahead=24)
            for epoch, positions in plan.ahead_of(batches(manifest, recipe, 2, rank, world)):
                for r in order.rows(epoch, positions):
                    clip = manifest.clip(int(r))
                    assert reader.read(clip) == local_bytes(folder, clip)
                    used += clip.size
            assert reader._ahead._bytes == 0
            assert reader.counts()["ahead"] == 2 * order.steps_per_epoch * 8 // world
    assert len(shard_gets(s3)) <= 1.1 * needed
    assert len(shard_gets(s3)) < 2 * order.steps_per_epoch * 8 / 3  # far below one per clip
    assert sum(get.sent for get in s3.gets) < 1.2 * used  # these small clips have 2 kB of tar headers between them


def requests_needed(members: list[Clip], get_bytes: int) -> int:
    """The fewest requests of at most `get_bytes` that bring clips, given in the order of their rows."""
    count, start, shard, last = 0, 0, "", -2
    for clip in members:
        if clip.shard != shard or clip.row != last + 1 or clip.offset + clip.size - start > get_bytes:
            count, start, shard = count + 1, clip.offset, clip.shard
        last = clip.row
    return count


def test_a_global_shuffle_is_one_request_a_clip_ahead_of_time(s3: S3Server, url: str, folder: Path) -> None:
    manifest = Manifest(folder)
    recipe = SamplingRecipe(views_per_step=16, views_per_clip=4)
    order = order_of(manifest, recipe)
    with closing(ShardReader(url)) as reader:
        plan = ReadPlan(reader, TrainingSampler().of(manifest, recipe), clips_ahead=16)
        for epoch, positions in plan.ahead_of(batches(manifest, recipe, 1, 0, 1)):
            for r in order.rows(epoch, positions):
                assert content_hash(reader.read(manifest.clip(int(r)))) == manifest.clip(int(r)).content_hash
        counts = reader.counts()
    assert counts["ahead"] == SHARDS * CLIPS
    assert 0.9 * SHARDS * CLIPS <= len(s3.gets) <= SHARDS * CLIPS  # neighbours that meet by chance share one


def test_read_ahead_keeps_within_its_memory(s3: S3Server, url: str, folder: Path, clips: list[Clip]) -> None:
    with closing(ShardReader(url, read_ahead_bytes=200_000, get_bytes=80_000, connections=4)) as reader:
        reader.prefetch(clips)
        for i in np.random.default_rng(0).permutation(len(clips)):
            assert reader.read(clips[i]) == local_bytes(folder, clips[i])
            assert reader._ahead._bytes <= 200_000
        assert reader._ahead._bytes == 0


def test_what_is_announced_and_never_read_leaves(s3: S3Server, url: str, clips: list[Clip]) -> None:
    with closing(ShardReader(url, read_ahead_bytes=200_000, get_bytes=200_000)) as reader:
        reader.prefetch(clips[:10])
        while reader._ahead._bytes == 0 or reader._ahead._loading:
            time.sleep(0.01)
        stale = reader._ahead._bytes
        reader._ahead._reads += 2000  # as if so many clips had been read since
        reader.prefetch(clips[CLIPS : CLIPS + 10])
        for clip in clips[CLIPS : CLIPS + 10]:
            reader.read(clip)
        assert stale > 0
        assert reader._ahead._bytes == 0
        assert reader.counts()["ahead"] == 10


def test_a_request_ahead_that_fails_costs_its_clips_nothing(s3: S3Server, url: str, folder: Path, clips: list[Clip]) -> None:
    long = f"bytes={clips[0].offset}-{clips[9].offset + clips[9].size - 1}"
    s3.inject_always(lambda get: "404" if get.range == long else None)
    with closing(ShardReader(url)) as reader:
        reader.prefetch(clips[:10])
        assert [reader.read(clip) for clip in clips[:10]] == [local_bytes(folder, clip) for clip in clips[:10]]
        assert reader.counts()["gets"] == 10
    assert len(s3.gets) == 11


# the cache -----------------------------------------------------------------------------------------------------------------


def test_cached_clips_cost_no_request(s3: S3Server, url: str, folder: Path, clips: list[Clip], tmp_path: Path) -> None:
    cache = ClipCache(tmp_path / "cache", 1 << 30)
    expected = [local_bytes(folder, clip) for clip in clips]
    with closing(ShardReader(url, cache=cache)) as reader:
        reader.prefetch(clips[:20])
        assert [reader.read(clip) for clip in clips] == expected
        assert reader._ahead._bytes == 0  # on the disk instead
    first = len(s3.gets)
    assert first < 1 + 2 + len(clips) - 20
    with closing(ShardReader(url, cache=ClipCache(tmp_path / "cache", 1 << 30))) as reader:
        reader.prefetch(clips)
        assert [reader.read(clip) for clip in clips] == expected
        assert reader.counts() == {"cached": len(clips)}
    assert len(s3.gets) == first


def test_damaged_cache_entries_are_fetched_again(
    s3: S3Server, url: str, folder: Path, clips: list[Clip], tmp_path: Path
) -> None:
    cache = ClipCache(tmp_path / "cache", 1 << 30)
    with closing(ShardReader(url, cache=cache)) as reader:
        for harm in (lambda data: b"x" + data[1:], lambda data: data[:100], lambda data: b""):
            reader.read(clips[0])
            entry = cache._file(clips[0].content_hash)
            entry.write_bytes(harm(entry.read_bytes()))
            assert reader.read(clips[0]) == local_bytes(folder, clips[0])
            assert entry.read_bytes() == local_bytes(folder, clips[0])
    assert len(s3.gets) == 4


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = ClipCache(tmp_path, 40 * 4096)
    names = [content_hash(bytes([i])) for i in range(60)]
    for i, name in enumerate(names):
        assert cache.put(name, bytes([i]) * 4000)
        assert cache.get(names[0]) == bytes(4000)  # in use all the time
        assert occupied(tmp_path) <= 40 * 4096
        time.sleep(0.001)
    assert cache.holds(names[0])
    assert not cache.holds(names[1])
    assert all(cache.holds(name) for name in names[-30:])
    assert not cache.put(content_hash(b"large"), bytes(50 * 4096))
    assert int((tmp_path / "bytes").read_text()) == occupied(tmp_path)


def occupied(folder: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.glob("??/*"))


def _fill(folder: str, seed: int) -> None:
    cache = ClipCache(folder, 100 * 4096)
    generator = random.Random(seed)
    for _ in range(300):
        i = generator.randrange(200)
        name, data = content_hash(bytes([i])), bytes([i]) * (100 + 50 * i)
        found = cache.get(name)
        assert found is None or found == data
        cache.put(name, data)


def test_processes_share_a_cache_within_its_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_fill, args=(str(tmp_path), seed)) for seed in range(2)]
    for child in children:
        child.start()
    with ThreadPoolExecutor(2) as pool:  # and threads of this one
        list(pool.map(partial(_fill, str(tmp_path)), (10, 11)))
    cache = ClipCache(tmp_path, 100 * 4096)
    while any(child.is_alive() for child in children):
        with cache._count() as total:  # nobody takes more room meanwhile
            assert occupied_now(tmp_path) <= total[0] <= 100 * 4096
        time.sleep(0.005)
    assert [child.exitcode for child in children] == [0, 0]
    assert 0 < int((tmp_path / "bytes").read_text()) <= 100 * 4096
    assert occupied(tmp_path) <= 100 * 4096
    assert not list(tmp_path.glob("??/*.tmp"))


def occupied_now(folder: Path) -> int:
    """While others write and remove."""
    total = 0
    for file in folder.glob("??/*"):
        try:
            total += -(-file.stat().st_size // 4096) * 4096
        except FileNotFoundError:
            continue
    return total


def test_a_full_disk_stops_the_cache_and_not_the_run(
    s3: S3Server, url: str, folder: Path, clips: list[Clip], tmp_path: Path
) -> None:
    """A file-size limit refuses the write half-way, as a full disk does."""
    cache = ClipCache(tmp_path / "cache", 1 << 30)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(ShardReader(url, cache=cache)) as reader:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.warns(UserWarning, match="cannot be written"):
                assert reader.read(clips[0]) == local_bytes(folder, clips[0])
            assert reader.read(clips[1]) == local_bytes(folder, clips[1])  # and it does not try each time
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "cache").glob("??/*"))
    assert (tmp_path / "cache" / "bytes").read_text() == "0"


def test_the_cache_is_asked_for_by_flags_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUBECELL_CACHE", raising=False)
    monkeypatch.delenv("TUBECELL_CACHE_SIZE", raising=False)
    assert ClipCache.asked_for() is None
    with pytest.raises(ValueError, match=r"--loader\.cache-size is ''; say how many bytes"):
        ClipCache.asked_for(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"--loader\.cache-size 5G is for --loader\.cache FOLDER"):
        ClipCache.asked_for(size="5G")
    asked = ClipCache.asked_for(tmp_path / "cache", "5G")
    assert asked is not None
    elsewhere = pickle.loads(pickle.dumps(asked))  # the sidecar's
    assert (elsewhere.folder, elsewhere.limit) == (tmp_path / "cache", 5_000_000_000)
    monkeypatch.setenv("TUBECELL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="TUBECELL_CACHE_SIZE"):
        ClipCache.asked_for()
    monkeypatch.setenv("TUBECELL_CACHE_SIZE", "1.5 GB")
    cache = ClipCache.asked_for()
    assert cache is not None
    assert cache.limit == 1_500_000_000 == parse_size("1.5g", "it")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        ClipCache(tmp_path / "file", 10)


# whole files and datasets --------------------------------------------------------------------------------------------------


def test_whole_files_are_written_read_and_removed(s3: S3Server, tmp_path: Path) -> None:
    for target in (str(tmp_path / "a.json"), f"s3://{BUCKET}/files/a.json"):
        assert not files.exists(target)
        for data in (b"first", b"", b"second"):
            files.write_durably(target, data)
            assert files.read(target) == data
            assert files.size(target) == len(data)
        files.remove(target)
        assert files.size(target) is None
        files.remove(target)
        with pytest.raises(OSError, match=r"a\.json"):
            files.read(target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["500", "503", "reset"])
def test_writing_overcomes_faults(s3: S3Server, tmp_path: Path, fault: str) -> None:
    data = random.Random(2).randbytes(200_000)
    (tmp_path / "shard.tar").write_bytes(data)
    target = f"s3://{BUCKET}/files/shard.tar"
    s3.inject(fault, 2, writing=True)
    files.upload(tmp_path / "shard.tar", target)
    assert files.read(target) == data
    s3.inject(fault, 2, writing=True)
    files.write_durably(target, data[::-1])
    assert files.read(target) == data[::-1]
    assert s3.writes >= 4


def test_writing_says_what_is_wrong(s3: S3Server) -> None:
    with pytest.raises(StorageError, match="only read from"):
        files.write_durably("https://example.invalid/a", b"")
    with pytest.raises(StorageError, match="does not exist") as caught:
        files.write_durably("s3://no-such-bucket/a", b"")
    assert not caught.value.transient
    with pytest.raises(StorageError, match="not known"):
        files.read("nosuch://a/b")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_remote_manifest_is_mirrored_once(s3: S3Server, url: str, folder: Path, clips: list[Clip], home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:  # the ranks of a node
        mirrors = set(pool.map(files.fetch_manifest, [url, url + "/", str(Path(url)), Path(url)]))  # type: ignore[list-item]
    mirror = mirrors.pop()
    assert not mirrors
    assert mirror.is_relative_to(home)
    assert sorted(path.name for path in mirror.parent.iterdir()) == [mirror.name]
    assert Manifest(mirror).fingerprint == Manifest(folder).fingerprint
    gets = len(s3.gets)
    assert files.fetch_manifest(url) == mirror
    assert len(s3.gets) == gets
    with closing(ShardReader(mirror)) as reader:  # it follows origin.url
        assert reader.read(clips[0]) == local_bytes(folder, clips[0])


def test_a_new_version_is_a_new_mirror(s3: S3Server, folder: Path, home: Path, tmp_path: Path) -> None:
    place = f"s3://{BUCKET}/datasets/grows"
    seen = []
    for count in (5, 6):
        (tmp_path / str(count)).mkdir()
        write_rows(tmp_path / str(count), [row(i) for i in range(count)])
        files.upload(tmp_path / str(count) / "manifest.parquet", f"{place}/manifest.parquet")
        seen.append(files.fetch_manifest(place))
    assert [len(Manifest(mirror)) for mirror in seen] == [5, 6]


def test_what_is_no_dataset_is_said(s3: S3Server, home: Path) -> None:
    with pytest.raises(ValueError, match="is no dataset"):
        files.fetch_manifest(f"s3://{BUCKET}/nothing")


class _NoRanges(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_a_web_server_serves_a_dataset_if_it_knows_ranges(s3: S3Server, folder: Path, clips: list[Clip], home: Path) -> None:
    for name in (clips[0].shard, "manifest.parquet"):
        remote.filesystem("s3://").put_file(str(folder / name), f"s3://{BUCKET}/public/{name}", ACL="public-read")
    web = f"{s3.url}/{BUCKET}/public"
    s3.inject("500")
    with closing(ShardReader(web)) as reader:
        assert reader.read(clips[1]) == local_bytes(folder, clips[1])
    assert len(Manifest(files.fetch_manifest(web))) == len(clips)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), partial(_NoRanges, directory=str(folder))) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        plain = f"http://127.0.0.1:{server.server_address[1]}"
        with closing(ShardReader(plain)) as reader, pytest.raises(StorageError, match="does not serve byte ranges"):
            reader.read(clips[1])
        server.shutdown()


def test_the_loader_reads_a_remote_dataset(s3: S3Server, dataset: Path, home: Path) -> None:
    """The same bytes as from the local disk, through the real sidecar, with faults on the way."""
    from pipeline.loader import ClipLoader

    place = f"s3://{BUCKET}/datasets/clips"
    for file in [dataset / "manifest.parquet", *dataset.glob("shards/*.tar")]:
        files.upload(file, f"{place}/{file.relative_to(dataset)}")
    recipe = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=32, num_frames=4)
    seen = []
    for root in (dataset, files.fetch_manifest(place)):
        s3.inject("500", 2)
        s3.inject("truncate", 1)
        with closing(ClipLoader(root, recipe, workers=2)) as loader:
            seen.append([next(loader).views.clone() for _ in range(3)])
            assert not loader.failures
        options = {"sampler": EvaluationSampler(), "clips_per_batch": 5, "workers": 2}
        with closing(ClipLoader(root, replace(recipe, masks=None), **options)) as loader:  # type: ignore[arg-type]
            seen[-1] += [batch.views.clone() for batch in loader]
            assert len(seen[-1]) == 6 and not loader.missing
    assert all(bool((a == b).all()) for a, b in zip(*seen, strict=True))
    assert len(shard_gets(s3)) >= 12


def test_a_long_wait_is_mentioned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "QUIET", 0.0)
    troubles = [ConnectionRefusedError("nobody there"), ConnectionRefusedError("nobody there"), None]

    def attempt(limit: float) -> str:
        if trouble := troubles.pop(0):
            raise trouble
        return "answer"

    assert remote.patiently(attempt, "s3://b/a", time.monotonic() + 600) == "answer"
    assert capsys.readouterr().err.count("s3://b/a: no proper answer yet (ConnectionRefusedError: nobody there)") == 1


def test_urls_are_told_from_paths() -> None:
    assert remote.as_given(Path("s3://bucket/a")) == remote.as_given("s3://bucket/a/") == "s3://bucket/a"
    assert remote.as_given(Path("/data/a")) == "/data/a"
    assert remote.is_url("s3://bucket/a")
    assert remote.is_url(Path("s3://bucket/a"))
    assert not remote.is_url("/data/a")
    assert not remote.is_url("data:/a/../b") or remote.as_url("gs:/b/c/") == "gs://b/c"
    check: Callable[[str], bool] = remote.is_url
    assert not any(map(check, ["data", "./s3", "C:/x", "a/b:/c"]))
