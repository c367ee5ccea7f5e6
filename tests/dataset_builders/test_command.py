"""Flags, TOML, plans, and the ways to run a build: in shares and on Ray."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_videos import make_video, tree

from dataset_builders import build_dataset, build_labeled_hybrid, build_unlabeled_hybrid
from pipeline.manifest import Manifest

SCRIPT = Path(build_unlabeled_hybrid.__file__)
IDS = [f"-id{number:08d}" for number in range(6)]


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k400 and k700 with lists; ids 0 to 3 have files, 4 has none, 5 is in a validation list, too."""
    home = tmp_path_factory.mktemp("kinetics")
    for version, ids in (("k400", IDS[:3]), ("k700", IDS[2:4])):
        (home / version / "train" / "air drumming").mkdir(parents=True)
        for number, youtube_id in enumerate(ids):
            name = f"{youtube_id}_000010_000020.mp4"
            make_video(home / version / "train" / "air drumming" / name, frames=20 + number)
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    rows = [f"air drumming,{youtube_id},10,20,train,0\n" for youtube_id in IDS]
    (home / "k400_train.csv").write_text(header + "".join(rows[:3]) + rows[5])
    (home / "k700_train.csv").write_text(header + "".join(rows[2:5]))
    (home / "k700_val.csv").write_text(header + f"air drumming,{IDS[5]},10,20,validate,0\n")
    return home


def toml(home: Path, out: Path, more: str = "") -> Path:
    file = home / f"{out.name}.toml"
    file.write_text(
        f"""
        out = "{out}"
        short_side = 128
        clips_per_shard = 2
        {more}
        [sources.k710]
        kind = "kinetics"
        400 = {{folder = "k400", lists = "k400_train.csv"}}
        700 = {{folder = "k700", lists = ["k700_train.csv", "k700_val.csv"]}}
        """
    )
    return file


def test_a_plan_touches_nothing(kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--k400", str(kinetics / "k400"), str(kinetics / "k400_train.csv")]
    arguments += ["--folder", f"own={kinetics}", "--out", str(tmp_path / "dataset"), "--plan"]
    assert build_unlabeled_hybrid.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "not asked for: no_file" in printed
    assert "658,340" in printed and "1,348,403" in printed  # the paper's
    assert "would write about 2 shards of up to 500" in printed
    assert not (tmp_path / "dataset").exists()


def test_kinetics_from_a_file(kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = tmp_path / "dataset"
    assert build_labeled_hybrid.main(["--config", str(toml(kinetics, dataset))]) == 0
    rows = pq.read_table(dataset / "manifest.parquet").to_pylist()
    assert [(row["source_id"], row["label"], row["split"]) for row in rows] == [
        (youtube_id, "air drumming", "train") for youtube_id in IDS[:4]
    ]
    assert {row["root"] for row in rows} == {"k400", "k700"}
    dropped = {(row["source_id"], row["reason"]) for row in pq.read_table(dataset / "dropped.parquet").to_pylist()}
    assert {(IDS[4], "no_file"), (IDS[5], "leak"), (IDS[2], "duplicate")} <= dropped
    assert json.loads((dataset / "label_map_k710.json").read_bytes()) == ["air drumming"]
    described = json.loads((dataset / "dataset.json").read_bytes())["sources"]["k710"]
    assert described["leaks"] == "from-train" if "leaks" in described else described["kind"] == "kinetics"
    assert described["folders"] == {"k400": str(kinetics / "k400"), "k700": str(kinetics / "k700")}
    assert len(list((dataset / "shards").glob("*.tar"))) == 2
    capsys.readouterr()
    changed = toml(kinetics, dataset)
    changed.write_text(changed.read_text().replace('kind = "kinetics"', 'kind = "kinetics"\nleaks = "from-val"'))
    assert build_labeled_hybrid.main(["--config", str(changed)]) == 2
    assert "leaks of source k710 was None and is now from-val" in capsys.readouterr().err


def test_errors_name_what_is_wrong(kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dataset"

    def error_of(entry: object, *arguments: str) -> str:
        assert entry.main(list(arguments)) == 2  # type: ignore[attr-defined]
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    config = toml(kinetics, out, "shortside = 3")
    assert "shortside is not known; allowed are out, work, preset" in error_of(build_unlabeled_hybrid, "--config", str(config))
    config.write_text("[sources.x]\nkind = 'flickr'\n")
    assert "kind 'flickr' is not known; allowed are ava, folder" in error_of(build_unlabeled_hybrid, "--config", str(config))
    config.write_text("[sources.x]\nkind = 'folder'\nfolders = 'a'\n")
    assert "folders is not known to kind 'folder'; allowed are folder" in error_of(
        build_unlabeled_hybrid, "--config", str(config)
    )
    config.write_text("[sources.x]\nkind = 'folder'\n")
    assert "kind 'folder' needs folder" in error_of(build_unlabeled_hybrid, "--config", str(config))
    config.write_text("sources = 3")
    assert "sources must be tables" in error_of(build_unlabeled_hybrid, "--config", str(config))
    config.write_text("[sources")
    assert "is no TOML" in error_of(build_unlabeled_hybrid, "--config", str(config))
    folder = ["--folder", f"own={kinetics}"]
    assert "--out DATASET is missing" in error_of(build_unlabeled_hybrid, *folder)
    assert "there is no source" in error_of(build_unlabeled_hybrid, "--out", str(out))
    both = [*folder, "--instagram", f"i={kinetics}", "--out", str(out)]
    assert "one source is wanted, 2 were given" in error_of(build_dataset, *both)
    for share in ("0/3", "4/3", "2", "a/b"):
        assert f"--job {share!r}" in error_of(build_unlabeled_hybrid, *folder, "--out", str(out), "--job", share)
    assert "no dataset that was begun" in error_of(build_unlabeled_hybrid, *folder, "--out", str(out), "--finish")
    missing = ["--ssv2", str(kinetics), str(kinetics / "k400"), "--out", str(out)]
    assert "holds none of the lists of something" in error_of(build_dataset, *missing)
    assert not out.exists()


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shares_make_the_same_bytes(undisturbed: Path, videos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    common = ["--folder", f"v={videos}", "--out", str(dataset), "--clips-per-shard", "4"]
    run(*common, "--job", "2/3")
    done = subprocess.run([sys.executable, str(SCRIPT), *common, "--finish"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "3 of 4 shards are not finished: v-000000, v-000002, v-000003" in done.stderr
    assert not (dataset / "manifest.parquet").exists()
    shares = [subprocess.Popen([sys.executable, str(SCRIPT), *common, "--job", f"{i}/3"]) for i in (1, 3)]
    assert [share.wait() for share in shares] == [0, 0]
    run(*common, "--finish")
    assert tree(dataset) == tree(undisturbed)


@pytest.mark.slow
def test_ray_makes_the_same_bytes(undisturbed: Path, videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    dataset = tmp_path / "dataset"
    run("--folder", f"v={videos}", "--out", str(dataset), "--clips-per-shard", "4", "--ray", "local")
    assert tree(dataset) == tree(undisturbed)


def test_tars_are_indexed_in_place(undisturbed: Path, tmp_path: Path) -> None:
    dataset, tars = tmp_path / "dataset", tmp_path / "tars"
    shutil.copytree(undisturbed / "shards", tars)
    pattern = os.fspath(tars / "v-{000000..000002}.tar")
    assert build_dataset.main(["--index", f"old={pattern}", "--out", str(dataset)]) == 0
    before = pq.read_table(undisturbed / "manifest.parquet")
    after = pq.read_table(dataset / "manifest.parquet")
    for column in ("content_hash", "offset", "size", "num_frames", "keyframes"):
        assert after[column].to_pylist() == before[column].to_pylist()
    assert not list((dataset / "shards").iterdir())
    assert len(Manifest(dataset)) == len(before)


def test_a_video_is_cut_into_equal_clips(tmp_path: Path) -> None:
    folder, dataset = tmp_path / "folder", tmp_path / "dataset"
    folder.mkdir()
    make_video(folder / "long.mp4", frames=200)  # 6.7 s
    make_video(folder / "short.mp4", frames=60)
    assert build_unlabeled_hybrid.main(["--folder", f"v={folder}", "--out", str(dataset), "--max-seconds", "2"]) == 0
    rows = pq.read_table(dataset / "manifest.parquet").to_pylist()
    assert [row["num_frames"] for row in rows] == [50, 50, 50, 50, 60]
    assert [row["key"].split("-")[0] for row in rows] == ["long"] * 4 + ["short"]
    assert [row["start"] for row in rows] == [pytest.approx(i * 50 / 30, abs=0.02) for i in range(4)] + [None]
    assert len({row["key"] for row in rows}) == 5
