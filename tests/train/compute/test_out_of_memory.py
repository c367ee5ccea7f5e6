import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.videomae import VideoMAE
from tests.train.trainers import start
from train.command_line import from_command_line
from train.compute.out_of_memory import is_out_of_memory, knobs, predict
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import Pretraining


def ask_for_too_much(rank: int) -> None:
    """On the last of two ranks, from the third pass on: 4 EiB, which torch refuses on any machine."""
    forward, passes = VideoMAE.forward, iter(range(100))

    def greedy(self: VideoMAE, *arguments: torch.Tensor) -> torch.Tensor:
        assert torch.are_deterministic_algorithms_enabled()
        if rank == 1 and next(passes) >= 2:
            torch.empty(1 << 60, dtype=torch.float32)
        return forward(self, *arguments)

    VideoMAE.forward = greedy  # type: ignore[method-assign]


def test_a_run_without_memory_says_what_to_do(dataset: Path, tmp_path: Path) -> None:
    trainer = start(dataset, tmp_path / "run", "--steps", "5", "--compute.deterministic", ranks=2, fault=ask_for_too_much)
    assert trainer.wait()[1] == 1
    text = trainer.text()
    assert re.search("pretrain: rank 1: .*tried to allocate", text)
    assert re.search(r"should need 0\.0 GiB \(parameters 0\.0, moments", text)
    assert re.search(r"--compute\.activation-checkpointing full +saves 0\.0 GiB, \d+% more FLOPs", text)
    assert "after --compute.views-per-forward 4 --compute.activation-checkpointing none,\n" in text
    assert "goes on from the last checkpoint" in text


@pytest.mark.parametrize("name", ["vit-b-hybrid", "vit-g-hybrid"])
def test_every_flag_is_one_and_saves_what_is_predicted_for_it(name: str) -> None:
    config = RECIPES[name]()
    compute = replace(config.compute, activation_checkpointing="none", precision="fp32", defer_gradients=True)
    config = replace(config, compute=compute)
    stage = Pretraining(config)
    now, flops = predict(stage, compute, 64, 8)
    assert flops == 1
    begin = [name, "--compute.activation-checkpointing", "none", "--compute.precision", "fp32", "--compute.defer-gradients"]
    found = knobs(config, 64, 8)
    assert len(found) == 7
    for flag, changed in found:
        assert from_command_line(RECIPES, [*begin, *flag.split()]).compute == changed
        then, more = predict(stage, changed, 64, 8)
        assert then.total < now.total or flag.startswith("--compute.reshard")
        assert (more > 1) == ("checkpointing" in flag)
    half = predict(stage, found[0][1], 64, 8)[0]
    assert half.activations == now.activations // 2 and half.parameters == now.parameters


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)
