import json
import re
import shutil
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from small_videos import make_video

from dataset_builders import build_unlabeled_hybrid, remove_clips, subset, verify
from pipeline.loader import ClipLoader
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.storage.columns import read_rows
from pipeline.storage.key_frames import Action, KeyFrames
from pipeline.storage.manifest import Manifest
from tests.key_frame_tables import box, key_frame, write_tables


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of three clips, a shard each."""
    home = tmp_path_factory.mktemp("built")
    for name in ("a", "b"):
        (home / name).mkdir()
        for number in range(3):
            make_video(home / name / f"{number}.mp4", frames=20 + number)
    assert build(home, home / "dataset") == 0
    return home


def build(home: Path, out: Path, *more: str) -> int:
    return build_unlabeled_hybrid.main(
        ["--folder", f"a={home / 'a'}", "--folder", f"b={home / 'b'}", "--out", str(out), "--preset", "copy", *more]
    )


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "home"))


def removed(dataset: Path) -> int:
    return read_rows(dataset / "manifest.parquet")["size"].to_pylist().count(0)


def test_bytes_are_gone_and_all_else_goes_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, shard = home / "dataset", home / "dataset" / "shards" / "a-000000.tar"
    before, fingerprint, length = shard.read_bytes(), Manifest(dataset).fingerprint, shard.stat().st_size
    (victim,) = [
        row for row in read_rows(dataset / "manifest.parquet").to_pylist() if row["path"] == b"1.mp4" and row["root"] == "a"
    ]
    bits = before[victim["offset"] : victim["offset"] + victim["size"]]
    wanted = [str(dataset), "--where", "source = 'a' AND path LIKE '%1.mp4' -- consent"]
    assert remove_clips.main(wanted) == 0
    assert "1 of 6 clips\nnothing is removed yet; --yes removes them" in capsys.readouterr().out
    assert shard.read_bytes() == before
    assert remove_clips.main([*wanted, "--yes"]) == 0
    assert "the bytes of 1 clips are overwritten" in capsys.readouterr().out
    after = shard.read_bytes()
    assert len(after) == length and bits[:64] not in after and victim["key"].encode() not in after
    with tarfile.open(shard) as tar:
        names = tar.getnames()
    assert sum(name.startswith("__removed__/") for name in names) == 2 and len(names) == 6
    assert Manifest(dataset).fingerprint == fingerprint
    assert removed(dataset) == 1
    assert verify.main([str(dataset)]) == 0

    recipe = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=32, patch_size=8, num_frames=8)
    with closing(ClipLoader(dataset, recipe, workers=1, max_failure_share=0.0)) as loader:
        rows = [row for _ in range(9) for row in next(loader).rows.tolist()]
        assert {failed.reason for failed in loader.failures} == {"removed"} and loader.num_failures >= 6
        assert {failed.key for failed in loader.failures} == {victim["key"]}
    assert victim["key"] not in {Manifest(dataset).clip(row).key for row in rows}

    capsys.readouterr()
    assert build(home, dataset) == 0
    assert "nothing to do" in capsys.readouterr().out
    make_video(home / "b" / "9.mp4", frames=30)
    assert build(home, dataset) == 0
    assert [version["rows"] for version in Manifest(dataset).versions] == [6, 7]
    assert removed(dataset) == 1
    assert verify.main([str(dataset)]) == 0
    assert subset.main([str(dataset), "--out", str(home / "without")]) == 0
    assert len(Manifest(home / "without")) == 6


def test_what_was_stopped_halfway_is_found_and_finished(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = home / "dataset"
    key = Manifest(dataset).clip(4).key
    with monkeypatch.context() as context:
        context.setattr(remove_clips, "erase", lambda dataset: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remove_clips.main([str(dataset), "--keys", key, "--yes"])
    assert verify.main([str(dataset)]) == 1
    told = capsys.readouterr().out
    assert "expected no bytes: the clip was removed, found they are there still" in told
    assert f"tubecell remove-clips {dataset} --yes" in told
    assert remove_clips.main([str(dataset), "--keys", key, "--yes"]) == 0
    assert verify.main([str(dataset)]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "say which clips: --keys or --where"),
        (("--keys", "nowhere.txt"), "there is no such file"),
        (("--where", "end > 3"), '"end"'),
        (("--keys", "x-1"), "1 of the 1 keys are of no clip; the first is 'x-1'"),
        (("--where", "colour = 1"), "colour.*It is SQL's WHERE over the columns key, source, split"),
        (("--where", "true) OR (size"), "--where"),
        (("--where", "key IN (SELECT content FROM read_text('/etc/hostname'))"), "--where"),
    ],
)
def test_what_names_no_clip_is_refused(built: Path, arguments: tuple, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert remove_clips.main([str(built / "dataset"), *arguments, "--yes"]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert not removed(built / "dataset")


def test_subsets_and_merges(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, out = home / "dataset", home / "subset"
    command = [str(dataset), "--where", "num_frames > 20", "--out", str(out)]
    assert subset.main(command) == 0
    assert "4 of 6 clips" in capsys.readouterr().out
    assert Manifest(out).fingerprint != Manifest(dataset).fingerprint
    assert not (out / "shards").exists() and (out / "report.html").exists()
    assert verify.main([str(out)]) == 0
    recipe = SamplingRecipe(views_per_step=4, views_per_clip=1, input_size=32, patch_size=8, num_frames=8)
    with closing(ClipLoader(out, recipe, workers=1)) as loader:
        assert sorted(next(loader).rows.tolist()) == [0, 1, 2, 3]
    make_video(home / "b" / "9.mp4", frames=30)
    assert build(home, dataset) == 0
    assert subset.main(command) == 0
    assert [version["rows"] for version in Manifest(out).versions] == [4, 5]

    assert subset.main([str(dataset), str(out), "--out", str(home / "all")]) == 0
    assert "5 clips are in several of them, with the same bytes" in capsys.readouterr().out
    assert len(Manifest(home / "all")) == 7
    described = json.loads((home / "all" / "dataset.json").read_bytes())
    assert [one["clips"] for one in described["subset"]] == [7, 5]
    assert verify.main([str(home / "all"), "--no-decode"]) == 0
    for given, told in (
        ([str(dataset), "--where", "false", "--out", str(home / "none")], "no clip is chosen"),
        ([str(out), "--out", str(dataset)], "it is a dataset that was built"),
        ([str(out), "--out", str(home / "a")], "there is something else in it"),
        ([str(home / "a"), "--out", str(home / "none")], "is no dataset"),
    ):
        assert subset.main(given) == 2
        assert told in capsys.readouterr().err
    assert not (home / "none").exists()


def test_a_lost_shard_is_made_again_without_what_was_removed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the others lay, whether the removed video is still there or not; also by --repair."""
    dataset = home / "dataset"
    shard = dataset / "shards" / "a-000000.tar"
    assert remove_clips.main([str(dataset), "--where", "source = 'a' AND path <> '2.mp4'", "--yes"]) == 0
    before = read_rows(dataset / "manifest.parquet")
    for name in ("0.mp4", "1.mp4"):
        for again in (f"rm {name}", "repair"):
            shard.unlink()
            if again == "repair":
                (home / "failures.jsonl").write_text(json.dumps({"key": before["key"][2].as_py()}) + "\n")
                assert build(home, dataset, "--repair", str(home / "failures.jsonl")) == 0
            else:
                (home / "a" / name).unlink()
                assert build(home, dataset) == 0
            assert read_rows(dataset / "manifest.parquet").equals(before)
            assert verify.main([str(dataset)]) == 0, capsys.readouterr().out
            with tarfile.open(shard) as tar:
                assert [name.startswith("__removed__/") for name in tar.getnames()] == [True, False, False]


@pytest.mark.slow
def test_a_broken_shard_does_not_keep_the_bytes_of_others(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = home / "dataset"
    (dataset / "shards" / "a-000000.tar").write_bytes(b"no tar" * 1000)
    assert remove_clips.main([str(dataset), "--where", "path = '1.mp4'", "--yes"]) == 1
    said = capsys.readouterr()
    assert "the bytes of 1 clips are overwritten" in said.out and "a-000000.tar" in said.err and removed(dataset) == 2
    (dataset / "shards" / "a-000000.tar").unlink()
    assert build(home, dataset) == 0
    assert remove_clips.main([str(dataset), "--yes"]) == 0
    assert verify.main([str(dataset)]) == 0


@pytest.mark.slow
def test_a_subset_learns_of_what_was_removed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, command = home / "dataset", [str(home / "dataset"), "--out", str(home / "subset")]
    (dataset / "label_map_a.json").write_text('["b", "a"]')
    assert subset.main(command) == 0
    fingerprint = Manifest(home / "subset").fingerprint
    assert (home / "subset" / "label_map_a.json").read_text() == '["b", "a"]'
    assert remove_clips.main([str(dataset), "--where", "path = '1.mp4'", "--yes"]) == 0
    assert verify.main([str(home / "subset")]) == 1
    assert "run the command of `tubecell subset` again" in capsys.readouterr().out
    make_video(home / "a" / "9.mp4", frames=30)
    assert build(home, dataset) == 0
    assert subset.main(command) == 0
    assert "5 clips: " in capsys.readouterr().out
    assert [version["rows"] for version in Manifest(home / "subset").versions] == [6, 7]
    assert Manifest(home / "subset", 1).fingerprint == fingerprint and removed(home / "subset") == 2
    assert verify.main([str(home / "subset")]) == 0


def test_boxes_are_those_of_the_clips_that_are_taken(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a clip in two datasets once; actions of one id and two names are refused."""
    dataset = home / "dataset"
    keys = [Manifest(dataset).clip(row).key for row in range(6)]
    boxes = [box(key, "truth", (0.1, 0.1, 0.5, 0.5), [1]) for key in keys]
    write_tables(dataset, [key_frame(key, frame=3) for key in keys], boxes, [Action(1, "run")])
    assert subset.main([str(dataset), "--keys", ",".join(keys[:2]), "--out", str(home / "two")]) == 0
    assert subset.main([str(home / "two"), str(dataset), "--out", str(home / "all")]) == 0
    for name, number in (("two", 2), ("all", 6)):
        frames = KeyFrames(Manifest(home / name))
        assert len(frames.of_clips(np.arange(number), "truth")[0]) == number
    write_tables(dataset, [key_frame(key, frame=3) for key in keys], boxes, [Action(1, "walk")])
    assert subset.main([str(home / "two"), str(dataset), "--out", str(home / "other")]) == 2
    assert "action 1 is 'run' in one dataset and 'walk' in" in capsys.readouterr().err
