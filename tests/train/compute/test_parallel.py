"""Several processes compute what one computes, whatever the mesh; bounds are relative L2 distances."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.parts.step_work import pretraining
from model.classifier import VideoClassifier
from model.compiler import compile_blocks
from model.initialization import initialise
from model.videomae import pixel_loss
from tests.train import deep_cases, parallel_cases
from tests.train.parallel_cases import Case, step
from train.compute.parallel import shard_size, started
from train.config import ComputeConfig
from train.training import Training

BOUNDS = {"fp32": 1e-6, "bf16": 2e-2}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The whole batch in one pass of one process."""
    with started("cpu") as ranks:
        return {precision: step(Case(shard=1, precision=precision), ranks) for precision in BOUNDS}


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_compute_what_one_computes(ranks: int, alone: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, parallel_cases.__file__, str(tmp_path), str(ranks)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = torch.load(tmp_path / f"{ranks}.pt", weights_only=True)
    assert [Case(**result["case"]) for result in results] == parallel_cases.cases(ranks)
    for result in results:
        expected, bound = alone[result["case"]["precision"]], BOUNDS[result["case"]["precision"]]
        assert result["wrong"] == [], "initial values"
        assert result["loss"] == pytest.approx(expected["loss"], rel=bound), result["case"]
        assert result["norm"] == pytest.approx(expected["norm"], rel=bound), result["case"]
        assert set(result["gradients"]) == set(expected["gradients"])
        pairs = [(result["gradients"][name], gradient) for name, gradient in expected["gradients"].items()]
        distance = torch.stack([(mine - theirs).norm() for mine, theirs in pairs]).norm() / expected["norm"]
        assert distance < bound, result["case"]


def test_one_process_with_every_option(alone: dict[str, Any]) -> None:
    """Accumulated, resharded, deferred, everything running again; and a budget."""
    assert alone["fp32"]["wrong"] == []
    with started("cpu") as ranks:
        for case in parallel_cases.cases(1)[1:]:
            result, expected = step(case, ranks), alone[case.precision]
            pairs = [(result["gradients"][name], gradient) for name, gradient in expected["gradients"].items()]
            distance = torch.stack([(mine - theirs).norm() for mine, theirs in pairs]).norm() / expected["norm"]
            assert distance < BOUNDS[case.precision], case


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own look at the activations it traces
def test_models_of_many_blocks_compile_few_graphs_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-g's depth, sharded. Together they are more graphs than the 8 of a function at which Dynamo ends a process."""
    deep = replace(parallel_cases.MODEL, encoder_dim=16, encoder_depth=40, decoder_dim=16, decoder_depth=4, mlp_ratio=1.0)
    monkeypatch.setattr("train.compute.parallel.compiler_missing", lambda kind: None)
    torch._dynamo.reset()
    graphs = {}
    with started("cpu") as ranks:
        for precision, policy in (("bf16", "none"), ("bf16", "full"), ("bf16", "every:2"), ("fp16", "none"), ("fp32", "full")):
            counter = CompileCounterWithBackend("eager")
            monkeypatch.setattr("train.compute.parallel.compile_blocks", partial(compile_blocks, backend=counter))
            compute = ComputeConfig(compile=True, precision=precision, activation_checkpointing=policy)  # type: ignore[arg-type]
            model = Training(pretraining(deep, compute, views=parallel_cases.VIEWS), ranks).model
            pixel_loss(model, *(part[:2] for part in parallel_cases.batch())).backward()
            graphs[precision, policy] = counter.frame_count
            del model
    torch._dynamo.reset()
    assert list(graphs.values()) == [3, 3, 5, 3, 3], graphs
    assert sum(graphs.values()) > 8


@pytest.mark.slow
@pytest.mark.timeout(900)  # beside other programs; it takes a minute and a half
def test_stochastic_depth_of_many_blocks_compiles_once_and_is_the_same_on_two_ranks(tmp_path: Path) -> None:
    """44 blocks of 44 rates, each running again: one graph for training and one for evaluation."""
    command = [sys.executable, deep_cases.__file__, tmp_path]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    alone, two = (torch.load(tmp_path / f"{ranks}.pt", weights_only=True) for ranks in (1, 2))
    plain = VideoClassifier(deep_cases.MODEL, deep_cases.CLASSES, **deep_cases.RATES)
    initialise(plain, deep_cases.SEED)
    for found, expected, name, bound in (
        (alone["fp32"], deep_cases.gradients(plain), "fp32", 1e-6),
        (two["fp32"], alone["fp32"], "fp32", 1e-6),
        (alone["bf16"], alone["fp32"], "bf16", 2e-2),
        (two["bf16"], alone["bf16"], "bf16", 2e-2),
    ):
        assert set(found) == set(expected)
        distance = torch.stack([(found[key] - expected[key]).norm() for key in expected]).norm()
        assert distance < bound * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        assert alone[f"{name} graphs"] == two[f"{name} graphs"] == (1, 2)


@pytest.mark.parametrize(
    ("shard", "world", "local", "expected"), [(None, 8, 8, 8), (None, 16, 8, 8), (1, 8, 8, 1), (4, 8, 2, 4), (8, 8, 4, 8)]
)
def test_a_copy_is_shared_by_a_node_unless_told(shard: int | None, world: int, local: int, expected: int) -> None:
    assert shard_size(shard, world, local) == expected


def test_ranks_that_cannot_be_divided_are_told_how_they_can() -> None:
    with pytest.raises(ValueError, match=r"--compute.shard: 3 must divide the 8 ranks; possible: 1, 2, 4, 8"):
        shard_size(3, 8, 8)
    with pytest.raises(ValueError, match="the 3 ranks of this node must divide the 7 ranks"):
        shard_size(None, 7, 3)
