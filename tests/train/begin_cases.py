"""A run's beginning on several ranks: what the others have of weights that rank 0 alone has read."""

from dataclasses import replace
from typing import Any

from benchmarks.parts.step_work import pretraining
from tests.train.parallel_cases import MODEL, SEED, full
from train.checkpoint import source
from train.compute.parallel import Ranks
from train.config import ComputeConfig
from train.stages.pretraining import Pretraining
from train.training import Training


def begin(ranks: Ranks) -> dict[str, Any]:
    """For each mesh, parameters and the frozen teacher's, whole; what the weights in the current folder gave them."""
    if ranks.rank:
        source.read_source = forbidden  # type: ignore[assignment]
    found = {}
    for shard in {1: [1], 3: [1, 3], 4: [2]}[ranks.world_size]:  # the last in two dimensions
        config = pretraining(MODEL, ComputeConfig(precision="bf16", shard=shard), views=12, seed=SEED).config
        config = replace(config, init="weights.pth", target="features", teacher="teacher.safetensors")
        training = Training(Pretraining(config), ranks)
        assert isinstance(training.stage, Pretraining)
        teacher = training.stage.target._teacher  # type: ignore[attr-defined]
        found[f"{shard}"] = {
            "parameters": {name: full(parameter).clone() for name, parameter in training.model.named_parameters()},
            "teacher": {name: full(parameter).clone() for name, parameter in teacher.named_parameters()},
            "fingerprints": ranks.gather(training.fingerprints),
            "descent": ranks.gather(training.beginning and training.beginning.descent),
        }
    return found


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError("rank 0 alone reads")
