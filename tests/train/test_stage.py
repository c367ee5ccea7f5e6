"""A stage that is not ours, in a file of its own, has what every run has: see toy_stage.py."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.trainers import lines, losses, run, start
from train import parts
from train.compute.parallel import Ranks
from train.recipes import finetuning, pretraining, probing
from train.report import main as report
from train.stages.finetuning import Finetuning
from train.stages.pretraining import Pretraining
from train.stages.probing import Probing

FILE = Path(__file__).with_name("toy_stage.py")


@pytest.fixture(scope="module")
def encoder(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "run"
    run(labelled, out, "--steps", "2")
    return out


def test_it_is_short() -> None:
    assert sum(bool(line.strip()) for line in FILE.read_text().splitlines()) <= 60


@pytest.fixture(scope="module")
def options(encoder: Path) -> tuple[str, ...]:
    named = {"encoder": encoder, "optim.base-lr": 0.3, "save-every": 4, "evaluate-every": 8, "steps": 12}
    return tuple(word for name, value in named.items() for word in (f"--{name}", str(value)))


@pytest.fixture(scope="module")
def straight(labelled: Path, options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the stage, on one rank."""
    out = tmp_path_factory.mktemp("straight") / "one"
    run(labelled, out, *options, program=FILE)
    return out


@pytest.mark.slow
def test_another_stage_that_is_killed_goes_on_bit_for_bit(
    labelled: Path, straight: Path, options: tuple[str, ...], tmp_path: Path
) -> None:
    """Between two checkpoints."""
    trainer = start(labelled, tmp_path / "killed", *options, program=FILE).until(6).send(signal.SIGKILL)
    assert trainer.wait() == [-signal.SIGKILL]
    run(labelled, tmp_path / "killed", *options, program=FILE)
    assert losses(tmp_path / "killed") == losses(straight)
    weights, others = (load_file(out / "model.safetensors") for out in (straight, tmp_path / "killed"))
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_another_stage_has_all_that_a_run_has(
    labelled: Path, straight: Path, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(labelled, tmp_path / "two", *options, ranks=2, program=FILE)
    one, two = losses(straight), losses(tmp_path / "two")
    assert one == pytest.approx(two, rel=1e-3)  # bf16
    assert one[12] < one[1]
    assert 0 <= lines(straight / "metrics.jsonl")[-1]["top1"] <= 1
    assert set(load_file(straight / "model.safetensors")) == {"head.weight", "head.bias"}
    assert "| model | 264 parameters |" in (card := (tmp_path / "two" / "card.md").read_text()) and "load_encoder" not in card

    # it evaluates the seven clips that are held out
    evaluated = lines(tmp_path / "two" / "evaluations.jsonl")
    assert [(line["step"], line["clips"], line["of"]) for line in evaluated] == [(8, 7, 7), (12, 7, 7)]
    assert round(7 * evaluated[-1]["held_out_top1"], 4) in range(8)

    # it says what it would be, and what it was
    said = start(labelled, tmp_path / "dry", *options, "--dry-run", program=FILE).said(0)
    assert "parameters" in said and f"{32 * 8 + 8}" in said
    assert report([str(straight), "--out", str(tmp_path / "report.html")]) == 0
    assert "Held out" in (tmp_path / "report.html").read_text()

    # and its folder is no other stage's
    assert json.loads((straight / "config.json").read_text())["stage"] == "toy-probe"
    assert "holds a run of `toy-probe`, not of `pretrain`" in start(labelled, straight, "--steps", "3").said(2)
    capsys.readouterr()


def test_the_loader_is_told_what_a_stages_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In clips/s of an H100 at 45 %. The papers count 180 GMAC of a view in ViT-B: thrice where it is trained, once where it is
    frozen. The dataset is not read for it: the classes of a run that goes on may be others."""
    told: list[float | None] = []

    def opened(*_: Any, clips_per_second: float | None, **how: Any) -> None:
        told.append(clips_per_second)
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "ClipLoader", opened)
    pretrain, finetune = pretraining.RECIPES["vit-g-hybrid"](), finetuning.RECIPES["vit-b-own"]()
    probe = Probing(replace(probing.RECIPES["vit-b-ssv2"](), data="nowhere"))
    probe.config = replace(probe.config, init="nowhere")
    for peak in (989e12, None):
        monkeypatch.setattr(parts, "peak_flops", lambda device, precision, peak=peak: peak)
        for stage in (Pretraining(replace(pretrain, data="nowhere")), Finetuning(replace(finetune, data="nowhere")), probe):
            with pytest.raises(KeyboardInterrupt):
                stage.loader(Ranks(0, 8, 8, torch.device("cuda", 0)), None, 2, None)
    once = 0.45 * 989e12 / 2 / 180e9  # views/s
    expected = [once / 3 / finetune.views.views_per_clip, once / probe.config.views.views_per_clip]
    assert told[1:3] == pytest.approx(expected, rel=0.02)
    assert told[0] is not None and 70 < told[0] < 90 and told[3:] == [None] * 3
