"""What is found out while a run trains, and that the run does not notice."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.config import Implementation
from model.videomae import pixel_loss
from pipeline.loader import ClipLoader
from pipeline.sampling import EvaluationSampler
from tests.train.trainers import SMALL, lines, losses, run, start
from train.command_line import from_command_line
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import Pretraining


@pytest.mark.slow
@pytest.mark.parametrize(
    "reshard",
    [
        "--compute.reshard-after-forward",  # hangs if a rank makes fewer passes, which the default hides
        "--compute.no-reshard-after-forward",
    ],
)
def test_a_run_that_evaluates_is_the_same_run(labelled: Path, tmp_path: Path, reshard: str) -> None:
    """On three ranks with seven clips, of which one rank has a clip more than the others; with a running mean, too."""
    options = ("--views.views-per-step", "12", "--steps", "4", "--ema", "0.5", reshard)
    run(labelled, tmp_path / "plain", *options, ranks=3)
    said = run(labelled, tmp_path / "evaluated", *options, "--evaluate-every", "3", ranks=3)
    assert losses(tmp_path / "evaluated") == losses(tmp_path / "plain")
    for name in ("model", "model_ema"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("plain", "evaluated"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    found = lines(tmp_path / "evaluated" / "evaluations.jsonl")
    assert [line["step"] for line in found] == [3, 4]  # the last step always
    assert all((line["clips"], line["of"], line["missing"]) == (7, 7, []) for line in found)
    assert all(line["held_out_loss"] != line["ema_held_out_loss"] for line in found)
    assert "of 7 of 7 clips" in said


def test_the_held_out_loss_is_that_of_every_clip_once(labelled: Path, tmp_path: Path) -> None:
    """Of the last weights and of their running mean; on one rank as on two."""
    options = ("--steps", "3", "--ema", "0.5", "--evaluate-every", "3")
    figures = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}"
        run(labelled, out, *options, ranks=ranks)
        (line,) = lines(out / "evaluations.jsonl")
        figures.append([line["held_out_loss"], line["ema_held_out_loss"]])
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    config = from_command_line(RECIPES, [*SMALL, "--data", str(labelled), "--out", str(tmp_path / "1")])
    model = Pretraining(config).model(Implementation())
    loader = ClipLoader(labelled, replace(config.sampling, views_per_clip=1), sampler=EvaluationSampler(rows=range(12, 19)))
    for name, figure in zip(("model", "model_ema"), figures[0], strict=True):
        model.load_state_dict(load_file(tmp_path / "1" / f"{name}.safetensors"))
        total = 0.0
        for batch in loader:
            for place in (batch.weight > 0).nonzero():
                one = batch.of_clips(place)
                total += pixel_loss(model, one.views, one.visible, one.decoded, one.loss_weight).item() / 7
        assert total == pytest.approx(figure, rel=1e-5)
    loader.close()


@pytest.mark.slow
def test_a_running_mean_is_resumed_and_known_to_the_run(dataset: Path, tmp_path: Path) -> None:
    whole = ("--steps", "6", "--ema", "0.7", "--save-every", "3")
    run(dataset, tmp_path / "straight", *whole)
    start(dataset, tmp_path / "resumed", *whole).until(4).send(signal.SIGKILL).wait()
    run(dataset, tmp_path / "resumed", *whole)
    one, other = (load_file(tmp_path / name / "model_ema.safetensors") for name in ("straight", "resumed"))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert not torch.equal(one["mask_token"], load_file(tmp_path / "straight" / "model.safetensors")["mask_token"])
    trainer = start(dataset, tmp_path / "resumed", "--steps", "9", "--ema", "0.8")
    assert "--ema 0.7 -> 0.8" in trainer.said(2)


@pytest.mark.slow
def test_the_first_blocks_stay(dataset: Path, tmp_path: Path) -> None:
    weights = {}
    for steps in ("1", "4"):
        run(dataset, tmp_path / steps, "--steps", steps, "--freeze", "1")
        weights[steps] = load_file(tmp_path / steps / "model.safetensors")
    same = {name for name, tensor in weights["1"].items() if torch.equal(tensor, weights["4"][name])}
    first = {name for name in weights["1"] if name.startswith(("encoder.patch_embed.", "encoder.blocks.0."))}
    assert same == first and len(first) == 15
    assert "0 to 2" in start(dataset, tmp_path / "other", "--steps", "1", "--freeze", "3").said(2)


@pytest.mark.slow
def test_a_frozen_teacher(dataset: Path, tmp_path: Path) -> None:
    """Its features are what is predicted, on two ranks as on one; it is in no checkpoint, and another one is refused."""
    run(dataset, tmp_path / "teacher", "--steps", "2")
    run(dataset, tmp_path / "another", "--steps", "3")
    target = ("--target", "features", "--teacher", str(tmp_path / "teacher"))
    run(dataset, tmp_path / "two", *target, "--steps", "4", ranks=2)
    start(dataset, tmp_path / "one", *target, "--steps", "4", "--save-every", "1").until(2).send(signal.SIGKILL).wait()
    run(dataset, tmp_path / "one", *target, "--steps", "4")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one == pytest.approx(two, rel=1e-4)
    assert one[4] < one[1]
    weights = load_file(tmp_path / "one" / "model.safetensors")
    assert weights["decoder.head.weight"].shape[0] == 32 and not any("teacher" in name for name in weights)
    (tmp_path / "another").rename(tmp_path / "teacher" / "kept")
    for file in ("model.safetensors", "config.json"):
        (tmp_path / "teacher" / "kept" / file).replace(tmp_path / "teacher" / file)
    trainer = start(dataset, tmp_path / "one", *target, "--steps", "5")
    assert "the teacher has other weights" in trainer.said(2)
