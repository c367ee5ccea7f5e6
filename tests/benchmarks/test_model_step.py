import json
from pathlib import Path

import pytest
import torch

from benchmarks import finetune_step, model_step, probe_cost
from benchmarks.parts import hf_step, step_contest
from benchmarks.parts.flop_counter import flop_counter
from benchmarks.parts.hf_step import HfClassification, HfPretraining, HfWork
from benchmarks.parts.step_contest import StepOptions, wanted_precisions
from benchmarks.parts.step_work import CLASSES, largest_product, step_flops
from benchmarks.probe_cost import Probe, config_of
from model.classifier import VideoClassifier
from model.config import MODELS, Implementation
from model.videomae import VideoMAE
from train.stages.probing import Probing

SHORT = ["--model", "tiny", "--views", "2", "--rounds", "2", "--seconds", "0.05", "--device", "cpu"]


@pytest.mark.slow
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
    how = ["--precision", "fp32", "--compute.activation-checkpointing", "full", "--compute.attention", "cudnn"]
    assert finetune_step.main([*SHORT, *how, "--json", str(tmp_path / "step.json")]) == 0
    found = {result["name"]: result for result in json.loads((tmp_path / "step.json").read_text())}
    gemm = found["finetune/tiny/fp32/vs_gemm"]
    # 256 tokens, 4 blocks of 12 D^2 + 2 N D products a token, patches of 384 values
    macs = 256 * (4 * (12 * 128**2 + 2 * 256 * 128) + 384 * 128) + 128 * CLASSES
    assert gemm["value"] == pytest.approx(found["finetune/tiny/fp32"]["value"] * 6e-12 * macs) and gemm["ratio"] > 0


@pytest.mark.slow
def test_the_peers_take_the_same_views_and_sizes() -> None:
    pytest.importorskip("transformers")
    config, cpu = MODELS["tiny"], torch.device("cpu")
    with torch.device("meta"):
        ours = [VideoMAE(config), VideoClassifier(config, CLASSES)]
    work: HfWork
    for work, model in zip(
        (HfPretraining(config, 2, "bf16", cpu), HfClassification(config, 2, "fp32", cpu)), ours, strict=True
    ):
        assert work.work() == 2
        assert sum(p.numel() for p in work.parameters) == sum(p.numel() for p in model.parameters())
        if isinstance(work, HfPretraining):
            assert work.hidden.sum(1).tolist() == [228, 228]  # 57 of 64 positions in 4 frames


@pytest.mark.parametrize(
    ("probe", "most"), [("linear", 1.01), ("attentive", 1.02), pytest.param("attentive-4", 9.1, marks=pytest.mark.slow)]
)
def test_what_twenty_settings_of_a_probe_cost(probe: Probe, most: float) -> None:
    """Beside one, of ViT-B; and what the stage says of a view is what torch counts."""
    one, twenty = (config_of(probe, number, 4, probe_cost.Options(device="cpu")) for number in (1, 20))
    assert len(twenty.heads) == 20
    assert 1 < probe_cost.step_flops(twenty) / probe_cost.step_flops(one) < most
    found, stage, sizes = [], Probing(twenty), twenty.model
    for views in (4, 8):  # of each batch, weights are multiplied with each other
        with torch.device("meta"), torch.no_grad(), flop_counter() as counter:
            tokens = () if probe == "linear" else (sizes.num_tokens,)
            stage.model(Implementation())(torch.empty(views, *tokens, sizes.encoder_dim))
        found.append(counter.get_total_flops())
    assert (found[1] - found[0]) / 4 == pytest.approx(2e9 * stage.cost(twenty.compute).gmac, rel=1e-9)


@pytest.mark.slow
def test_a_probe_is_timed(tmp_path: Path) -> None:
    assert probe_cost.main([*SHORT, "--probes", "linear", "attentive", "--json", str(tmp_path / "cost.json")]) == 0
    found = {result["name"]: result for result in json.loads((tmp_path / "cost.json").read_text())}
    names = [f"probe/{probe}/20_vs_1{of}" for probe in ("linear", "attentive") for of in ("/flops", "")]
    assert list(found) == names and all(found[name]["ratio"] > 0 for name in names)
    assert len(found["probe/linear/20_vs_1"]["rounds"]) == 2


def test_largest_products() -> None:
    """ViT-B's decoder works on 8 x 944 tokens; ViT-g's encoder is most of it."""
    assert largest_product(MODELS["vit-b"], 8, dual=True) == (7552, 384, 1536)
    assert largest_product(MODELS["vit-g"], 128, dual=True) == (128 * 208, 1408, 6144)


def test_bf16_without_instructions_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_contest, "cpu_has_bf16", lambda: False)
    cpu = torch.device("cpu")
    precisions, skipped = wanted_precisions(StepOptions(), cpu)
    assert precisions == ["fp32"] and "--bf16 measures it all the same" in skipped[0]
    assert wanted_precisions(StepOptions(bf16=True), cpu) == (["fp32", "bf16"], [])
    assert wanted_precisions(StepOptions(precision="bf16"), cpu) == (["bf16"], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--model", "vit-x"], "there is no model 'vit-x'; the models are micro, tiny, vit-s"), (["--rounds", "0"], "--rounds 0")],
)
def test_impossible_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert model_step.main(arguments) == 2
    assert message in capsys.readouterr().err
