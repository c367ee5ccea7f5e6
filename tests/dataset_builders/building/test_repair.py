"""Clips that a training run could not decode are given back to the builder."""

import json
import shutil
from pathlib import Path

import pytest
from small_videos import make_video, tree

from dataset_builders import build_unlabeled_hybrid
from dataset_builders.building.repair import difference
from pipeline.storage.columns import read_rows


def repair(dataset: Path, videos: Path, failures: Path, *more: str) -> int:
    arguments = ["--folder", f"v={videos}", "--out", str(dataset), "--clips-per-shard", "4", "--repair", str(failures)]
    return build_unlabeled_hybrid.main([*arguments, *more])


@pytest.fixture
def rotten(undisturbed: Path, tmp_path: Path) -> Path:
    """A clip of the first shard has changed, the second shard is lost; a run complains of them and of a clip of the third."""
    dataset = shutil.copytree(undisturbed, tmp_path / "dataset")
    rows = read_rows(dataset / "manifest.parquet").to_pylist()
    shard = bytearray((dataset / rows[1]["shard"]).read_bytes())
    shard[rows[1]["offset"] + 50] ^= 1
    (dataset / rows[1]["shard"]).write_bytes(shard)
    (dataset / rows[5]["shard"]).unlink()
    lines = [{"epoch": 0, "position": i, "key": rows[i]["key"], "reason": "damaged"} for i in (1, 5, 9, 9)]
    (tmp_path / "failures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return dataset


def test_damaged_shards_are_made_anew(
    rotten: Path, undisturbed: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = tmp_path / "failures.jsonl"
    changed = shutil.copytree(videos, tmp_path / "changed")
    sources = [row["path"].decode() for row in read_rows(undisturbed / "manifest.parquet").to_pylist()]
    make_video(changed / sources[0], frames=30)
    (changed / sources[4]).unlink()
    before = tree(rotten)
    assert repair(rotten, changed, failures) == 1  # not what the manifest says: a rotten shard is better than another one
    printed = capsys.readouterr().out
    assert "left      shards/v-000000.tar as it is: made anew, clip " in printed
    assert f"({sources[0]!r}) has other bytes" in printed
    assert f"({sources[4]!r}) is missing: unreadable" in printed
    assert tree(rotten) == before

    assert repair(rotten, videos, failures) == 0
    printed = capsys.readouterr().out
    assert "repaired  shards/v-000000.tar: made anew, with the same 4 clips" in printed
    assert "repaired  shards/v-000001.tar" in printed and "v-000002" not in printed
    assert tree(rotten) == tree(undisturbed)
    assert not list((rotten / ".build").glob(".repair*"))

    assert repair(rotten, videos, failures) == 0
    assert "the 3 clips are as they were built, and decode: nothing to repair" in capsys.readouterr().out


def test_errors_say_what_is_wrong(undisturbed: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failures = tmp_path / "failures.jsonl"
    assert repair(undisturbed, videos, failures) == 2
    assert "there is no such file" in capsys.readouterr().err
    failures.write_text('{"key": "nobody"}')
    assert repair(tmp_path / "nowhere", videos, failures) == 2
    assert "is no finished dataset" in capsys.readouterr().err
    assert repair(undisturbed, videos, failures, "--gop", "7") == 2
    assert "--gop was 32 and is now 7" in capsys.readouterr().err
    assert repair(undisturbed, videos, failures, "--job", "1/2") == 2
    assert "--repair goes without" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_one_clip_more_is_a_difference() -> None:
    row = {"key": "a", "offset": 1, "size": 2, "content_hash": "x", "path": b"a.mp4"}
    assert difference([row], [row], []) == ""
    assert difference([row], [row, {**row, "key": "b"}], []) == "it holds 2 clips, and the manifest 1"
    assert "has other bytes" in difference([row], [{**row, "offset": 3}], [])
