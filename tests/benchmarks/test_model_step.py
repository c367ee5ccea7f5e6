import json
from pathlib import Path

import pytest
import torch

from benchmarks import model_step
from benchmarks.model_step import wanted_precisions
from benchmarks.parts import hf_step
from benchmarks.parts.hf_step import HfWork
from benchmarks.parts.step_work import largest_product, step_flops
from model.config import MODELS
from model.videomae import VideoMAE

SHORT = ["--model", "tiny", "--views", "2", "--rounds", "2", "--seconds", "0.05", "--device", "cpu"]


def test_step_beside_matrix_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hf_step.importlib.util, "find_spec", lambda name: None)
    assert model_step.main([*SHORT, "--bf16", "--json", str(tmp_path / "step.json")]) == 0
    found = {result["name"]: result for result in json.loads((tmp_path / "step.json").read_text())}
    for precision in ("fp32", "bf16"):
        step, gemm = found[f"step/tiny/{precision}"], found[f"step/tiny/{precision}/vs_gemm"]
        assert step["unit"] == "views/s" and len(step["rounds"]) == 2
        assert gemm["value"] == pytest.approx(step["value"] * step_flops(MODELS["tiny"], 2, dual=True) / 2 / 1e12)
        assert gemm["ratio"] > 0  # how much is a matter of the machine and its other programs
    assert "HF transformers: transformers is not installed" in capsys.readouterr().out


def test_the_peer_takes_the_same_views_and_sizes() -> None:
    pytest.importorskip("transformers")
    config = MODELS["tiny"]
    work = HfWork(config, 2, "bf16", torch.device("cpu"))
    assert work.work() == 2
    assert work.hidden.sum(1).tolist() == [228, 228]  # 57 of 64 positions in 4 frames
    with torch.device("meta"):
        ours = VideoMAE(config)
    assert sum(p.numel() for p in work.parameters) == sum(p.numel() for p in ours.parameters())


def test_largest_products() -> None:
    """ViT-B's decoder works on 8 x 944 tokens; ViT-g's encoder is most of it."""
    assert largest_product(MODELS["vit-b"], 8, dual=True) == (7552, 384, 1536)
    assert largest_product(MODELS["vit-g"], 128, dual=True) == (128 * 208, 1408, 6144)


def test_bf16_without_instructions_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_step, "cpu_has_bf16", lambda: False)
    cpu = torch.device("cpu")
    precisions, skipped = wanted_precisions(model_step.Options(), cpu)
    assert precisions == ["fp32"] and "--bf16 measures it all the same" in skipped[0]
    assert wanted_precisions(model_step.Options(bf16=True), cpu) == (["fp32", "bf16"], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--model", "vit-x"], "there is no model 'vit-x'; the models are tiny, vit-s"), (["--rounds", "0"], "--rounds 0")],
)
def test_impossible_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert model_step.main(arguments) == 2
    assert message in capsys.readouterr().err
