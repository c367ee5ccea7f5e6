import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import loader_profile
from benchmarks.parts import stages_alone
from benchmarks.parts.measurable import no_model
from benchmarks.parts.stages_alone import concurrencies, first_clips, measure_stages, prepare
from pipeline.sampling import SamplingRecipe
from pipeline.stage_meters import STAGES
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader

# a step of 4 clips takes tens of milliseconds
SMALL = [
    "tiny",
    *("--views.views-per-step", "8", "--loader.workers", "1", "--loader.prefetch", "2", "--compute.device", "cpu"),
    *("--model.input-size", "32", "--model.encoder-depth", "2", "--seconds", "0.2", "--rounds", "1"),
]


@pytest.fixture(scope="module")
def profile(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with everything in it."""
    folder, threads = tmp_path_factory.mktemp("profile"), torch.get_num_threads()
    torch.set_num_threads(1)
    arguments = ["--data", str(dataset), "--out", str(folder / "out"), "--json", str(folder / "a.json")]
    assert loader_profile.main([*SMALL, *arguments, "--target-views-per-s", "0.5"]) == 0
    torch.set_num_threads(threads)
    return folder


def test_everything_is_measured(profile: Path, dataset: Path) -> None:
    found = json.loads((profile / "a.json").read_text())
    assert found == json.loads((profile / "out" / "report.json").read_text())
    assert list(found["rates"]) == ["loader", "model", "cached", "together"]
    assert all(rate["median"] > 0 for rate in found["rates"].values())
    assert [stage["name"] for stage in found["figures"]["stages"]] == [
        "plan",
        *(stage for stage in STAGES if stage != "augment"),
    ]
    assert found["figures"]["clips"] >= 4 and found["run"]["clips"] >= 4
    assert found["figures"]["frames"]["kept"] <= 8 <= found["figures"]["frames"]["decoded"]
    alone = found["stages_alone"]
    assert set(alone["clips_per_s"]) == {"fetch, cold", "fetch", "demux", "decode", "colour", "resize", "all but fetch"}
    assert all(len(rates) == len(alone["workers"]) and min(rates) > 0 for rates in alone["clips_per_s"].values())
    assert found["target"]["met"] is True
    assert found["verdict"]["limit"] in (
        "model",
        "shared cores",
        "tail",
        "storage",
        "planning",
        "cores",
        "workers",
        "disturbed",
    )
    page = (profile / "out" / "report.html").read_text()
    assert all(clip["key"] in page for clip in found["figures"]["slowest"])
    assert str(dataset) in page


def test_every_command_of_the_report_works(profile: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = json.loads((profile / "a.json").read_text())["figures"]["slowest"][0]
    base = ["--data", str(dataset), "--replay", slow["key"], "--model.input-size", "32"]
    assert loader_profile.main([*base, "--frames", slow["frames"]]) == 0
    told = capsys.readouterr().out
    assert f"frames   {slow['frames']}: {slow['frames_decoded']} decoded" in told
    assert all(stage in told for stage in (*STAGES, "all"))
    assert loader_profile.main(base) == 0


def test_two_reports_side_by_side(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(profile / "a.json")
    assert loader_profile.main(["--compare", file, file]) == 0
    told = capsys.readouterr().out
    assert "loader alone, views/s" in told and "1.00" in told and "measured differently" not in told


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_missed_target_ends_with_1(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(dataset), "--out", str(tmp_path), "--no-model", "--target-views-per-s", "1e9"]
    assert loader_profile.main([*SMALL, *arguments]) == 1
    assert "MISSED" in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found["rates"]) == ["loader"] and found["run"] is None
    assert "The model was not run: --no-model" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny"], "--data DATASET is needed"),
        (["--replay", "nothing", "--data", "DATASET"], "has no clip of that key"),
        (["--replay", "KEY", "--frames", "5:5", "--data", "DATASET"], "first:end:step"),
        (["--replay", "KEY", "--frames", "3,100000", "--data", "DATASET"], "frame 100000 is asked for, and"),
        (["--compare", "nothing.json", "nothing.json"], "nothing.json"),
        (["--json", "nowhere/a.json", "--data", "DATASET"], "nowhere does not exist"),
        (["tiny", "--data", "DATASET", "--seconds", "0"], "--seconds 0"),
        (["tiny", "--data", "DATASET", "--views.views-per-step", "64"], "give --views.views-per-step 24 or less"),
        (["tiny", "--data", "nowhere"], "nowhere is no dataset"),
    ],
)
def test_what_cannot_be_is_said(dataset: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"DATASET": str(dataset), "KEY": Manifest(dataset).clip(0).key}
    assert loader_profile.main([known.get(argument, argument) for argument in arguments]) == 2
    assert words in capsys.readouterr().err


def test_no_argument_is_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert loader_profile.main([]) == 2
    assert "--target-views-per-s" in capsys.readouterr().out


def test_large_models_are_not_run_on_a_cpu(dataset: Path) -> None:
    arguments = ["--data", str(dataset), "--compute.device", "cpu"]
    assert "or with the recipe tiny" in (no_model(loader_profile.configuration(["vit-g-hybrid", *arguments])) or "")
    assert no_model(loader_profile.configuration(["tiny", *arguments])) is None


@pytest.mark.parametrize("views", [1, 3])
def test_stages_alone_do_what_the_decoder_does(dataset: Path, views: int) -> None:
    """Crops of whole frames are the decoder's very bytes; every other stage finds what it needs."""
    recipe = SamplingRecipe(views_per_step=views, views_per_clip=views, input_size=48, patch_size=8, num_frames=8)
    manifest = Manifest(dataset)
    clips = prepare(manifest, first_clips(manifest, recipe, 64), every_stage=True)
    assert len(clips) == 12
    assert len(first_clips(manifest, recipe, 5)) == 5
    with closing(ShardReader(dataset)) as reader:
        for clip in clips[:4]:
            expected, got = (np.zeros((views, 8, 48, 48, 3), np.uint8) for _ in range(2))
            for stage in stages_alone.STAGES:
                clip.do(stage, reader, expected)
            clip.resize(got)
            assert np.array_equal(got, expected)


def test_cores_are_tried_one_by_one() -> None:
    assert concurrencies(1) == [1, 2]
    assert concurrencies(2) == [1, 2, 3]
    assert concurrencies(6) == [1, 2, 4, 6, 7]
    assert concurrencies(16) == [1, 2, 4, 8, 16, 17]


def test_every_stage_has_a_rate_for_each_number_of_processes(dataset: Path) -> None:
    recipe = SamplingRecipe(views_per_step=1, views_per_clip=1, input_size=32, patch_size=8, num_frames=8)
    rates = measure_stages(Manifest(dataset), recipe, 1, 0.1)
    assert tuple(rates) == stages_alone.STAGES
    assert set(map(len, rates.values())) == {2}
    assert rates["fetch"][0] > rates["decode"][0]
