import json
from pathlib import Path

import pytest
import torch

from benchmarks import table2
from benchmarks.parts.step_work import tokens_of
from benchmarks.table2 import kept_bytes
from model.config import MODELS
from train.compute.memory import activation_bytes
from train.compute.precision import PRECISIONS


@pytest.mark.parametrize("dual", [True, False])
def test_activations_are_those_of_the_closed_form(dual: bool) -> None:
    """Two countings that share nothing: autograd's hooks, and shapes."""
    config = MODELS["tiny"]
    want = activation_bytes(config, tokens_of(config, dual), PRECISIONS["fp32"])
    assert kept_bytes(config, dual, torch.float32) == pytest.approx(want, abs=8)  # the loss's own scalars


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a small model in the paper's place."""
    monkeypatch.setitem(table2.MODELS, "vit-b", MODELS["tiny"])
    arguments = ["--models", "vit-b", "--views", "2", "--rounds", "2", "--seconds", "0.05", "--device", "cpu"]
    assert table2.main([*arguments, "--json", str(tmp_path / "table.json")]) == 0
    found = {result["name"]: result for result in json.loads((tmp_path / "table.json").read_text())}
    for figure in ("gmac", "executed_gmac", "activations"):
        assert found[f"table2/vit-b/dual/{figure}"]["value"] < found[f"table2/vit-b/encoder-only/{figure}"]["value"]
    assert found["table2/vit-b/dual/activations"]["baseline"] == 328
    assert found["table2/vit-b/speedup"]["baseline"] == pytest.approx(28.4 / 15.9)
    assert found["table2/vit-b/dual/views_per_second"]["value"] > 0
    assert "times as fast (paper 1.79)" in capsys.readouterr().out


def test_impossible_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert table2.main(["--views", "0"]) == 2
    assert "--views 0: it must be at least 1" in capsys.readouterr().err
