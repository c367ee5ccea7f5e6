"""What can go wrong with a clip, through the loader: named, counted, replaced as a function of the position.

                               reason           where it is tested
bytes changed on the disk      read             here; test_loader
shard cut off (a short read)   read             here; behind a URL test_storage
shard vanished                 read             here; behind a URL test_storage
stream damaged before the build  damaged        here; DALI: test_device_decoding
clip truncated before the build  missing_frames here
a clip that is not answered    read             here: read again later, and only then replaced
the storage, for all clips     none             test_storage_watch: waited for, then the run ends
clip that hangs, or crashes    timeout, crash   test_loader; a crash of DALI ends the run, which goes on from a checkpoint
sidecar killed from outside    none             test_loader, test_device_decoding
too many of all these          the run ends     test_loader
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataset_builders.checking.recheck import main as recheck
from pipeline.decoding.decode import Failure
from pipeline.storage.manifest import Manifest, content_hash
from pipeline.workers.delivery import FailedClip
from tests.manifest_rows import write_rows
from tests.pipeline import faulty_decoders
from tests.pipeline.test_loader import take

CHANGED, DAMAGED, TRUNCATED, CUT, VANISHED = 1, 3, 4, 9, (10, 11)


@pytest.fixture(scope="module")
def broken(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with every fault that a file can have; 12 clips in shards of 5, 5 and 2."""
    folder = tmp_path_factory.mktemp("faults") / "dataset"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns(".cache"))
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    for number, row in enumerate(rows):
        shard = folder / row["shard"]
        data = bytearray(shard.read_bytes())
        clip = slice(row["offset"], row["offset"] + row["size"])
        if number == CHANGED:
            data[clip.start + row["size"] // 2] ^= 1
        elif number == DAMAGED:  # the stream's packets are noise; container and hash are right
            payload = data.index(b"mdat", clip.start) + 4
            data[payload : clip.stop] = bytes(range(256)) * ((clip.stop - payload) // 256) + bytes((clip.stop - payload) % 256)
        elif number == TRUNCATED:
            row["size"] //= 4
            clip = slice(clip.start, clip.start + row["size"])
        if number in (DAMAGED, TRUNCATED):
            row["content_hash"] = content_hash(bytes(data[clip]))
        shard.write_bytes(data)
    (folder / "manifest.parquet").unlink()
    write_rows(folder, rows)
    cut, vanished = (folder / rows[number]["shard"] for number in (CUT, VANISHED[0]))
    cut.write_bytes(cut.read_bytes()[: rows[CUT]["offset"] + 100])
    vanished.unlink()
    return folder


@pytest.fixture(scope="module")
def through(broken: Path) -> tuple[list[dict[int, str]], list[FailedClip]]:
    """An epoch of it."""
    taken, _, (loader,) = take(broken, 3, max_failure_share=9)
    return taken, list(loader.failures)


def test_each_fault_is_named(broken: Path, through: tuple[list[dict[int, str]], list[FailedClip]]) -> None:
    manifest, (_, failures) = Manifest(broken), through
    found = {failure.row: (failure.reason, failure.detail) for failure in failures if failure.epoch == 0}
    expected = {
        CHANGED: (Failure.READ, "are not those of clip"),
        DAMAGED: (Failure.DAMAGED, ""),
        TRUNCATED: (Failure.MISSING_FRAMES, ""),
        CUT: (Failure.READ, "cut off"),
        VANISHED[0]: (Failure.READ, "No such file"),
        VANISHED[1]: (Failure.READ, "was the dataset moved"),
    }
    assert found.keys() == expected.keys()
    for row, (reason, words) in expected.items():
        assert found[row][0] in ((reason, Failure.MISSING_FRAMES) if row == DAMAGED else (reason, Failure.DAMAGED)), found[row]
        assert words in found[row][1]
    assert all(failure.key == manifest.clip(failure.row).key for failure in failures)


@pytest.mark.slow
def test_the_others_and_the_substitutes_do_not_depend_on_ranks(
    dataset: Path, broken: Path, through: tuple[list[dict[int, str]], list[FailedClip]]
) -> None:
    taken, failures = through
    again, _, loaders = take(broken, 3, world_size=2, max_failure_share=9, workers=1)
    assert again == taken
    assert {f.row for loader in loaders for f in loader.failures} == {f.row for f in failures}


def test_failures_are_given_back_to_the_verifier(
    broken: Path, through: tuple[list[dict[int, str]], list[FailedClip]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "failures.jsonl"
    log.write_text("".join(json.dumps(asdict(failure)) + "\n" for failure in through[1]))
    assert recheck([str(broken), "--failures", str(log), "--json"]) == 1
    said = capsys.readouterr().out
    manifest = Manifest(broken)
    for row in (CHANGED, DAMAGED, TRUNCATED, CUT):
        assert manifest.clip(row).key in said
    assert manifest.clip(VANISHED[0]).shard in said


@pytest.mark.slow
def test_storage_that_recovers_costs_nothing_and_one_that_does_not_is_named(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after a restart, when it answers again, the batches are the same: the ledger replays the substitutes."""
    monkeypatch.setenv("TUBECELL_TEST_MARKS", str(tmp_path))
    expected, _, _ = take(dataset, 3)
    options: Any = {"workers": 4, "decoder": faulty_decoders.storage_in_trouble}
    taken, state, (loader,) = take(dataset, 3, **options)
    assert (tmp_path / "3").exists()
    failures = [failure for failure in loader.failures if failure.epoch == 0]
    assert {(f.row, f.reason, f.detail) for f in failures} == {(7, "read", "no proper answer: made to fail")}
    failed = {failure.position for failure in failures}
    for before, after in zip(expected, taken, strict=True):
        assert {position for position in before if before[position] != after[position]} == failed & set(before)
    ledger = tuple((0, position, 1 + max(f.attempt for f in failures if f.position == position)) for position in sorted(failed))
    start = replace(state, epoch=0, step=0, ledger=ledger)
    again, _, (loader,) = take(dataset, 3, state=start)
    assert again == taken and not loader.failures
