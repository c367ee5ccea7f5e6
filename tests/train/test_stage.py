"""A stage that is not ours, in a file of its own, has what every run has: see toy_stage.py."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.trainers import lines, losses, run, start
from train.report import main as report

FILE = Path(__file__).with_name("toy_stage.py")


@pytest.fixture(scope="module")
def encoder(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "run"
    run(labelled, out, "--steps", "2")
    return out


def test_it_is_short() -> None:
    assert sum(bool(line.strip()) for line in FILE.read_text().splitlines()) <= 60


def test_another_stage_has_all_that_a_run_has(
    labelled: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--encoder",
        str(encoder),
        "--optim.base-lr",
        "0.3",
        "--save-every",
        "4",
        "--evaluate-every",
        "8",
        "--steps",
        "12",
    )
    run(labelled, tmp_path / "one", *options, program=FILE)
    run(labelled, tmp_path / "two", *options, ranks=2, program=FILE)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one == pytest.approx(two, rel=1e-3)  # bf16
    assert one[12] < one[1]
    assert 0 <= lines(tmp_path / "one" / "metrics.jsonl")[-1]["top1"] <= 1

    # killed between two checkpoints, it goes on bit for bit
    trainer = start(labelled, tmp_path / "killed", *options, program=FILE).until(6).send(signal.SIGKILL)
    assert trainer.wait() == [-signal.SIGKILL]
    run(labelled, tmp_path / "killed", *options, program=FILE)
    assert losses(tmp_path / "killed") == one
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "killed")]
    assert set(weights[0]) == {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())

    assert "| model | 264 parameters |" in (card := (tmp_path / "two" / "card.md").read_text()) and "load_encoder" not in card

    # it evaluates the seven clips that are held out
    evaluated = lines(tmp_path / "two" / "evaluations.jsonl")
    assert [(line["step"], line["clips"], line["of"]) for line in evaluated] == [(8, 7, 7), (12, 7, 7)]
    assert round(7 * evaluated[-1]["held_out_top1"], 4) in range(8)

    # it says what it would be, and what it was
    said = start(labelled, tmp_path / "dry", *options, "--dry-run", program=FILE).said(0)
    assert "parameters" in said and f"{32 * 8 + 8}" in said
    assert report([str(tmp_path / "one"), "--out", str(tmp_path / "report.html")]) == 0
    assert "Held out" in (tmp_path / "report.html").read_text()

    # and its folder is no other stage's
    assert json.loads((tmp_path / "one" / "config.json").read_text())["stage"] == "toy-probe"
    assert "holds a run of `toy-probe`, not of `pretrain`" in start(labelled, tmp_path / "one", "--steps", "3").said(2)
    capsys.readouterr()
