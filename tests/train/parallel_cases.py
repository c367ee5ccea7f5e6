"""One step's loss and gradient for many meshes, policies and precisions, on real processes that share one import of torch.

python tests/train/parallel_cases.py FOLDER 2 4        # writes FOLDER/2.pt and FOLDER/4.pt
"""

import gc
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from benchmarks.parts.step_work import pretraining
from model.config import ModelConfig
from model.initialization import initial_value
from model.videomae import pixel_loss
from pipeline.sampling.masking import token_counts
from train.compute.memory import GIB, activation_bytes
from train.compute.parallel import Ranks, exchange_gradients, started
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig
from train.stages.pretraining import autoencoder_cost
from train.training import Training

# widths that no number of ranks divides: shards are uneven
MODEL = ModelConfig(
    input_size=32,
    num_frames=8,
    patch_size=8,
    encoder_dim=44,
    encoder_depth=2,
    encoder_heads=2,
    decoder_dim=22,
    decoder_depth=1,
    decoder_heads=1,
    mlp_ratio=48 / 11,
)
TOKENS = token_counts(MODEL.grid, 0.9, 0.5)
VIEWS, SEED = 8, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """How a step is computed."""

    shard: int
    checkpointing: str = "none"
    precision: str = "fp32"
    passes: int = 1
    reshard: bool = False
    defer: bool = False


def cases(world_size: int) -> list[Case]:
    """On every mesh every policy, in two accumulated passes, and the other options with some of them; and bf16. Of two ranks
    with a copy each, in the quick test, the plain ones: what else there is does not hang on the number of copies."""
    # what one view keeps with one of the three blocks running again
    keeps = activation_bytes(autoencoder_cost(MODEL, TOKENS, PRECISIONS["fp32"]), [True, False, False])
    found = []
    for shard in (n for n in (1, 2, 4) if n <= world_size):
        found += [Case(shard=shard), Case(shard=shard, passes=2, precision="bf16")]
        if (world_size, shard) == (2, 1):
            continue
        found += [
            Case(shard=shard, passes=2, checkpointing="every:2", reshard=True),
            Case(shard=shard, passes=2, checkpointing="full", reshard=True, defer=True),
            Case(shard=shard, passes=2, checkpointing=f"budget:{VIEWS * keeps / GIB}", defer=True),
        ]
    return found


def batch() -> tuple[torch.Tensor, ...]:
    """Views, visible and decoded tokens, weights of the whole step."""
    generator = torch.Generator().manual_seed(3)
    views = torch.randint(0, 256, (VIEWS, 8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    order = torch.stack([torch.randperm(MODEL.num_tokens, generator=generator) for _ in range(VIEWS)])
    return views, order[:, : TOKENS.visible], order[:, -TOKENS.decoded :], torch.ones(VIEWS, TOKENS.loss)


def step(case: Case, ranks: Ranks) -> dict[str, Any]:
    """Loss, gradient norm, whole gradients by name, and the names of parameters whose initial values are not their own."""
    compute = ComputeConfig(
        precision=case.precision,  # type: ignore[arg-type]
        activation_checkpointing=case.checkpointing,
        views_per_forward=VIEWS,
        shard=case.shard,
        reshard_after_forward=case.reshard,
        defer_gradients=case.defer,
    )
    model = Training(pretraining(MODEL, compute, views=VIEWS, seed=SEED), ranks).model
    wrong = [
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(full(parameter), initial_value(name, tuple(parameter.shape), SEED, MODEL.patch_values))
    ]
    mine = [part[ranks.rank :: ranks.world_size].contiguous() for part in batch()]
    loss = torch.zeros(())
    for i, parts in enumerate(zip(*(part.chunk(case.passes) for part in mine), strict=True)):
        exchange_gradients(model, compute, last=i == case.passes - 1)
        part = pixel_loss(model, *parts) / case.passes
        part.backward()
        loss += part.detach()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {
        "case": asdict(case),
        "loss": ranks.sum(loss).item() / ranks.world_size,
        "norm": full(norm).item(),
        "gradients": {name: full(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None},
        "wrong": wrong,
    }


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor of which this rank has a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def every_case(ranks: Ranks) -> list[dict[str, Any]]:
    return [step(case, ranks) for case in cases(ranks.world_size)]


def run(rank: int, world_size: int, port: int, out: Path, work: Callable[[Ranks], Any]) -> None:
    """One process of several."""
    os.environ.update(RANK=f"{rank}", LOCAL_RANK=f"{rank}", WORLD_SIZE=f"{world_size}", LOCAL_WORLD_SIZE=f"{world_size}")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=f"{port}")
    with started("cpu") as here:
        results = work(here)
        if rank == 0:
            torch.save(results, out)
        gc.collect()


def main(folder: Path, world_sizes: list[int], work: Callable[[Ranks], Any] = every_case) -> int:
    """What rank 0's work gives, into a file for each number of ranks. Forks before torch has computed anything, so that its
    threads are not cut off."""
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    for world_size in world_sizes:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        arguments = (world_size, port, folder / f"{world_size}.pt", work)
        processes = [fork.Process(target=run, args=(rank, *arguments)) for rank in range(world_size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [int(argument) for argument in sys.argv[2:]]))
