"""A dataset behind a URL, in what a run says and writes: both slashes stay."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from pipeline.storage import files
from tests.pipeline.s3_server import BUCKET, S3Server
from tests.train.trainers import SMALL, run, start
from train.command_line import from_command_line
from train.pages.run_record import RunRecord
from train.recipes.pretraining import RECIPES
from train.report import main as report
from train.stages.pretraining import PretrainConfig


def test_urls_in_configurations_keep_both_slashes() -> None:
    assert from_command_line(RECIPES, [*SMALL, "--data", "s3://bucket/x"]).data == "s3://bucket/x"
    assert PretrainConfig(data=Path("s3://bucket/x")).data == "s3://bucket/x"  # type: ignore[arg-type]
    assert PretrainConfig(data="/data/x").data == "/data/x"
    with pytest.raises(ValueError, match="--out s3://bucket/run must be a folder"):
        PretrainConfig(out=Path("s3://bucket/run"))


def test_commands_that_need_a_folder_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report(["s3://bucket/run"])
    assert "s3://bucket/run is a URL; a path on a disk is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_names_its_url_and_goes_on_where_a_slash_was_lost(s3: S3Server, dataset: Path, tmp_path: Path) -> None:
    place = f"s3://{BUCKET}/named"
    for file in [dataset / "manifest.parquet", *dataset.glob("shards/*.tar")]:
        files.upload(file, f"{place}/{file.relative_to(dataset)}")
    names = [name for name in os.environ if name.startswith("AWS_")]
    here = partial(settings, {**{name: os.environ[name] for name in names}, "XDG_CACHE_HOME": str(tmp_path / "home")})
    out = tmp_path / "run"
    run(Path("unused"), out, "--data", place, "--steps", "2", fault=here)
    config = json.loads((out / "config.json").read_text())
    assert config["data"] == place
    (out / "config.json").write_text(json.dumps({**config, "data": place.replace("//", "/")}))  # as it used to be written
    assert RunRecord.read(out).config["data"] == place
    cache = ("--loader.cache", str(tmp_path / "cache"), "--loader.cache-size", "1G")
    said = run(Path("unused"), out, "--data", place, "--steps", "4", *cache, fault=here)
    assert len(list((tmp_path / "cache").glob("??/*"))) >= 8  # two steps of four clips, and what was read ahead
    assert "going on from step 2" in said and "--steps 2 -> 4" in said and "--data" not in said
    s3.inject_everywhere("expired")
    trainer = start(Path("unused"), tmp_path / "other", "--data", place, "--steps", "2", fault=here)
    assert trainer.wait() == [2]
    assert f"{place}/manifest.parquet: the credentials have expired" in trainer.text()
    assert "Traceback" not in trainer.text() and "s3:/b" not in trainer.text()


def settings(values: dict[str, str], rank: int) -> None:
    os.environ.update(values)
