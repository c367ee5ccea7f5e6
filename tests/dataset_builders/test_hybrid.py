"""UnlabeledHybrid of all five sources, from real clips in the layouts that people have."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from dataset_builders import build_unlabeled_hybrid
from dataset_builders.media.decode_check import verify
from pipeline.storage.columns import read_rows
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader


@pytest.fixture
def config(shared: Path, tmp_path: Path) -> Path:
    """A TOML file with the Kinetics, AVA and WebVid layouts of the reference material, and two that are laid out here."""
    derived, videos = shared / "clips" / "derived", shared / "clips" / "videos"
    (tmp_path / "ssv2").mkdir()
    for number, file in enumerate(sorted((videos / "ssv2_human2bot").glob("*.webm"))):
        shutil.copy(file, tmp_path / "ssv2" / f"{number}.webm")
    train = [{"id": str(number), "label": "x", "template": "Pushing [something]", "placeholders": ["x"]} for number in range(5)]
    (tmp_path / "something-something-v2-train.json").write_text(json.dumps(train))
    (tmp_path / "something-something-v2-labels.json").write_text('{"Pushing something": "0"}')
    profile = tmp_path / "instagram" / "someone"
    profile.mkdir(parents=True)
    for number, file in enumerate(sorted((videos / "surv_fight" / "fight").iterdir())[:3]):
        name = f"2020-01-0{number + 1}_12-00-00_UTC"
        shutil.copy(file, profile / f"{name}{file.suffix}")
        (profile / f"{name}.json").write_text(json.dumps({"node": {"shortcode": f"Babc{number}"}}))
    kinetics = derived / "kinetics_like"
    (tmp_path / "build.toml").write_text(
        f"""
        out = "dataset"
        [sources.kinetics]
        kind = "kinetics"
        splits = ["train", "val"]
        400 = {{folder = "{kinetics / "k400"}", lists = "{kinetics / "kinetics-400_val_trim.csv"}"}}
        600 = {{folder = "{videos / "torchvision"}", lists = "{kinetics / "kinetics-600_val_trim.csv"}"}}
        [sources.ssv2]
        kind = "something"
        folder = "ssv2"
        lists = "."
        [sources.ava]
        kind = "ava"
        folder = "{derived / "ava_like" / "videos"}"
        lists = "{derived / "ava_like"}"
        trimmed = true
        [sources.webvid]
        kind = "webvid"
        folder = "{derived / "webvid_like" / "videos"}"
        lists = "{derived / "webvid_like" / "results_2M_val_like.csv"}"
        [sources.instagram]
        kind = "instagram"
        folder = "instagram"
        """
    )
    return tmp_path / "build.toml"


@pytest.mark.slow
def test_five_sources(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = config.parent / "dataset"
    assert build_unlabeled_hybrid.main(["--config", str(config), "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "3 into 270 clips" in plan  # what AVA's lists promise of its three movies
    assert not dataset.exists()
    assert build_unlabeled_hybrid.main(["--config", str(config)]) == 0
    rows = read_rows(dataset / "manifest.parquet").to_pylist()
    assert Counter(row["source"] for row in rows) == {"kinetics": 1, "ssv2": 3, "ava": 6, "webvid": 2, "instagram": 3}
    assert {row["num_frames"] for row in rows if row["source"] == "ava"} == {300}
    assert {row["fps"] for row in rows if row["source"] == "ava"} == {30.0}
    assert {row["label"] for row in rows if row["source"] == "ssv2"} == {"Pushing something"}
    assert [row["source_id"] for row in rows if row["source"] == "instagram"] == ["Babc0", "Babc1", "Babc2"]
    dropped = Counter(row["reason"] for row in read_rows(dataset / "dropped.parquet").to_pylist())
    assert dropped["no_file"] >= 18 and dropped["duplicate"] == 2
    manifest, reader = Manifest(dataset), ShardReader(dataset)
    assert manifest.sources == ["kinetics", "ssv2", "ava", "webvid", "instagram"]
    for number, row in enumerate(rows):
        assert verify(reader.read(manifest.clip(number))).num_frames == row["num_frames"]
    report = (dataset / "report.html").read_text()
    assert all(name in report for name in ("ssv2", "instagram", "168,913", "webvid"))
