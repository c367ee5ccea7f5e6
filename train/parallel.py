"""Processes, mesh and sharding: one FSDP2 path from a single CPU process to any number of GPUs.

The order matters: build on meta -> checkpoint activations -> compile -> shard -> fill with NaN -> initialise. The NaN make
a parameter that nobody initialised visible at once.
"""

import functools
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.initialization import initial_value
from model.videomae import VideoMAE
from train.config import ComputeConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    mesh: DeviceMesh

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: how ranks agree to stop. Goes over gloo, so the device is not waited for."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes)
        return bool(votes)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all ranks, on the device; in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """A picklable value from every rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def started(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be alone without it; leave them at the end.

    Raises ValueError if a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--compute.device cuda: torch sees no CUDA device; use --compute.device auto or cpu")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    here = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(here)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("shard",))
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)), here, mesh)
    finally:
        gc.collect()  # gloo aborts if sharded parameters outlive their group
        dist.destroy_process_group()


def build_model(config: ModelConfig, compute: ComputeConfig, seed: int, ranks: Ranks) -> VideoMAE:
    """The sharded model with its initial weights: bit-equal for any number of ranks."""
    with torch.device("meta"):
        model = VideoMAE(config)
    # forward passes run in the compute type, gradients are reduced in float32, master weights stay float32
    precision = MixedPrecisionPolicy(param_dtype=DTYPES[compute.precision], reduce_dtype=torch.float32)
    compiled = compute.compile if compute.compile is not None else ranks.device.type == "cuda"
    for block in model.blocks():
        if compute.activation_checkpointing:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.compile(fullgraph=True, dynamic=False)
        fully_shard(block, mesh=ranks.mesh, mp_policy=precision, reshard_after_forward=False)
    fully_shard(model, mesh=ranks.mesh, mp_policy=precision, reshard_after_forward=False)
    model.to_empty(device=ranks.device)
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: VideoMAE, seed: int) -> None:
    """Initialise parameter by parameter: every rank computes the full tensor from (seed, official name) and keeps its part.

    (`nn.init` on a sharded parameter draws the same numbers on every rank.)
    """
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    model.reset_buffers()
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        value = initial_value(name, tuple(parameter.shape), seed, model.config.patch_values)
        part = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(part)
