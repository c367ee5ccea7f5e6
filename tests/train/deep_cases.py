"""Two steps of a deep, narrow classifier with stochastic depth: compiled, sharded, every block running again.

python tests/train/deep_cases.py FOLDER        # writes FOLDER/1.pt and FOLDER/2.pt, of one process and of two
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy

from model.classifier import VideoClassifier
from model.config import ModelConfig
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.draws import Draws
from tests.train.parallel_cases import full, main
from train.compute.activation_checkpointing import checkpoint_block
from train.compute.parallel import Ranks, initialise

MODEL = ModelConfig(input_size=16, num_frames=4, patch_size=8, encoder_dim=16, encoder_depth=44, encoder_heads=2)
RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2, num_frames=4, input_size=16, patch_size=8, mask_ratio=0.5)
CLASSES, SEED, RATES = 5, 3, {"drop_path": 0.4, "head_dropout": 0.5}
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def batch(draws: Draws, rates: list[float]) -> tuple[torch.Tensor, ...]:
    """Views, labels and what the draws keep of blocks and of the head's features."""
    generators = draws.generators(0)
    views = [torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=generator) for generator in generators]
    labels = [torch.randint(0, CLASSES, (), generator=generator) for generator in generators]
    keep, keep_features = draws.keep(rates), draws.keep_features(RATES["head_dropout"], MODEL.encoder_dim)
    return torch.stack(views), torch.stack(labels), torch.from_numpy(keep), torch.from_numpy(keep_features)


def gradients(model: VideoClassifier, ranks: int = 1, rank: int = 0) -> dict[str, torch.Tensor]:
    """The sum of two steps'."""
    for step in range(2):
        positions = np.arange(4 * step, 4 * step + 4)[rank::ranks]
        views, labels, keep, keep_features = batch(Draws(RECIPE, 0, positions), model.drop_rates)
        cross_entropy(model(views, keep, keep_features), labels).backward()
    return {name: full(p.grad).float().clone() for name, p in model.named_parameters() if p.grad is not None}


def deep_steps(ranks: Ranks) -> dict[str, Any]:
    """{precision: gradients}, and the graphs that Dynamo made of each, with those of an evaluation."""
    found: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        with torch.device("meta"):
            model = VideoClassifier(MODEL, CLASSES, **RATES)
        mesh, mixed = ranks.mesh(None), MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for block in model.blocks:
            checkpoint_block(block)
            block.compile(fullgraph=True, dynamic=False, backend=counter)
            fully_shard(block, mesh=mesh, mp_policy=mixed, reshard_after_forward=False)
        fully_shard(model, mesh=mesh, mp_policy=mixed, reshard_after_forward=False)
        model.to_empty(device="cpu")
        model.reset_buffers()
        initialise(model, SEED)  # type: ignore[arg-type]
        found[name] = gradients(model, ranks.world_size, ranks.rank)
        training = counter.frame_count
        with torch.no_grad():
            model(batch(Draws(RECIPE, 0, np.arange(2)), model.drop_rates)[0])
        found[f"{name} graphs"] = training, counter.frame_count
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [1, 2], deep_steps))
