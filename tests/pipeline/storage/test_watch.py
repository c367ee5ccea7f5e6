"""A storage in trouble under a working loader: waited for aloud, named, and never booked on clips.

It comes back     the same batches, no failure, an empty ledger
it stays away     an error that says what is wrong and what to do; the state before goes on with the same batches
one shard alone   its clips are given up: test_fault_matrix
"""

import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline.loader
from pipeline.console import complain
from pipeline.decoding.decode import decode_libav
from pipeline.loader import ClipLoader, LoaderError
from pipeline.storage import files
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import StorageError
from pipeline.storage.shards import ShardReader
from pipeline.storage.watch import VARIABLE, StorageTrouble, StorageWatch, Unreadable
from tests.pipeline.s3_server import BUCKET, S3Server
from tests.pipeline.test_loader import RECIPE, take

ALONE = {"prefetch": 1, "workers": 1, "clips_per_batch": 1}  # a clip at a time: what comes later is not read yet


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture(scope="module")
def expected(dataset: Path) -> list[dict[int, str]]:
    return take(dataset, 3)[0]


def vanish(dataset: Path) -> Callable[[], None]:
    """Take the shards away, as an unmounted disk does -> what brings them back."""
    (dataset / "shards").rename(dataset / "away")
    return lambda: os.rename(dataset / "away", dataset / "shards")


def forbid(dataset: Path) -> Callable[[], None]:
    """Files that cannot be opened, by root either: links that lead round in a circle."""
    (dataset / "shards").rename(dataset / "away")
    (dataset / "shards").symlink_to("shards")

    def allow() -> None:
        (dataset / "shards").unlink()
        (dataset / "away").rename(dataset / "shards")

    return allow


@pytest.mark.parametrize(
    ("harm", "words"), [(vanish, "No such file"), pytest.param(forbid, "symbolic links", marks=pytest.mark.slow)]
)
def test_a_disk_that_comes_back_costs_nothing(
    copy: Path,
    expected: list[dict[int, str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], Callable[[], None]],
    words: str,
) -> None:
    mend = harm(copy)

    def told(message: str, **how: bool) -> None:
        complain(message, **how)
        if "waiting for" in message:
            threading.Timer(0.5, mend).start()

    monkeypatch.setattr(pipeline.loader, "complain", told)
    taken, state, (loader,) = take(copy, 3)
    assert taken == expected
    assert not loader.failures and not state.ledger
    said = capsys.readouterr().err
    assert "waiting for the storage, up to 60 s" in said and words in said and "answers again" in said


@pytest.mark.slow
def test_a_disk_that_stays_away_ends_the_run_and_blames_nobody(
    copy: Path, expected: list[dict[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    state = take(copy, 1)[1]
    mend = vanish(copy)
    with closing(ClipLoader(copy, RECIPE, state=state)) as loader:
        with pytest.raises(LoaderError, match=r"No such file.*no clip is blamed"):
            next(loader)
        assert not loader.failures and not loader.state()["ledger"]
        mend()
        assert sorted(expected[1]) == sorted(next(loader).positions.tolist()), "and goes on, if it is asked once more"
    assert take(copy, 2, state=state)[0] == expected[1:]


@pytest.mark.slow
def test_a_read_that_hangs_is_not_its_clips_fault(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server that is mounted "hard" and is gone; here the shards are pipes into which nobody writes."""
    monkeypatch.setenv(VARIABLE, "1")
    for shard in (copy / "shards").glob("*.tar"):
        shard.unlink()
        os.mkfifo(shard)
    with closing(ClipLoader(copy, RECIPE, clip_timeout=1.0, workers=1)) as loader:
        with pytest.raises(LoaderError, match="reading it hangs, for over 1 s"):
            next(loader)
        assert not loader.failures


@pytest.fixture
def url(s3: S3Server, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    place = f"s3://{BUCKET}/watched/clips"
    for file in [dataset / "manifest.parquet", *dataset.glob("shards/*.tar")]:
        files.upload(file, f"{place}/{file.relative_to(dataset)}")
    return place


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("expired", "credentials have expired"),
        pytest.param("403", "access is denied", marks=pytest.mark.slow),
        pytest.param("no-bucket", "bucket does not exist", marks=pytest.mark.slow),
    ],
)
def test_credentials_that_expire_are_waited_for_and_named(
    s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    with closing(ClipLoader(url, RECIPE, **ALONE)) as loader:  # type: ignore[arg-type]
        next(loader)
        s3.inject_everywhere(fault)
        with pytest.raises(LoaderError, match=words) as caught:
            while True:
                next(loader)
        assert f"{url}/shards/" in str(caught.value)
        assert not loader.failures and not loader._ledger
        s3.inject_everywhere(None)
        next(loader)


@pytest.mark.slow
def test_credentials_that_are_renewed_cost_nothing(
    s3: S3Server, url: str, expected: list[dict[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    s3.inject_always(lambda get: "expired" if get.path.endswith(".tar") else None)
    threading.Timer(4.0, s3.clear).start()
    taken, state, (loader,) = take(url, 3)  # type: ignore[arg-type]
    assert taken == expected
    assert not loader.failures and not state.ledger
    assert "credentials have expired" in capsys.readouterr().err


@pytest.mark.slow
def test_one_clip_with_wrong_bytes_is_to_blame_while_the_storage_is_in_trouble(s3: S3Server, url: str) -> None:
    bad = Manifest(url).clip(5)
    s3.inject_always(
        lambda get: "wrong-bytes" if get.range.startswith(f"bytes={bad.offset}-") and bad.shard in get.path else None
    )
    *_, (loader,) = take(url, 3)  # type: ignore[arg-type]
    assert {(failure.key, failure.reason) for failure in loader.failures} == {(bad.key, "read")}


def test_a_shard_alone_is_given_up_and_its_other_clips_at_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(copy)
    clip, beside = manifest.clip(10), manifest.clip(11)
    assert clip.shard == beside.shard != manifest.clip(0).shard
    (copy / clip.shard).unlink()
    said: list[StorageTrouble] = []
    monkeypatch.setattr("pipeline.storage.watch.ALONE", (0.01, 0.02))
    with closing(ShardReader(copy)) as reader:
        watch = StorageWatch(reader, manifest, said.append)
        trouble = Unreadable(clip.row, "made to fail", False)
        assert [watch.gives_up(clip, trouble, tries) for tries in (1, 2, 3)] == [False, False, True]
        assert watch.gives_up(beside, replace(trouble, row=beside.row), 1)
        assert not said
        (copy / "shards").rename(copy / "away")  # and now all of them
        time.sleep(0.6)
        assert not watch.gives_up(manifest.clip(0), replace(trouble, row=0), 1)
        assert [news.detail for news in said] == ["made to fail"]


def test_a_shard_without_neighbours_is_the_storage(copy: Path) -> None:
    manifest, said = Manifest(copy), []  # type: ignore[var-annotated]
    shards = {manifest.clip(row).shard for row in range(len(manifest))}
    with closing(ShardReader(copy)) as reader:
        watch = StorageWatch(reader, manifest, said.append)
        for shard in shards:
            (copy / shard).unlink()
        assert not watch.gives_up(manifest.clip(0), Unreadable(0, "made to fail", False), 1)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("expired", "credentials have expired; renew them"),
        ("invalid-token", "credentials are not valid"),
        ("skewed", "clock of this machine"),
        ("no-bucket", "bucket does not exist"),
        ("403", "access is denied"),
    ],
)
def test_a_start_without_access_names_the_cause(s3: S3Server, url: str, fault: str, words: str) -> None:
    """The answer to a HEAD has no body, and so no code: it is asked for."""
    s3.inject_everywhere(fault)
    with pytest.raises(ValueError, match=f"{url}.*{words}"):
        Manifest(Path(url))
    with pytest.raises(StorageError, match=words):
        files.write_durably(f"{url}/new", b"x")


def test_patience_is_a_number(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "soon")
    with pytest.raises(ValueError, match=f"{VARIABLE} is 'soon'"):
        ClipLoader(dataset, RECIPE, decoder=decode_libav)
