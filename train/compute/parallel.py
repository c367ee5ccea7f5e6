"""Processes, mesh and sharding: one FSDP2 path from a single CPU process to any number of GPUs.

The order matters: build on meta -> checkpoint activations -> compile -> shard -> fill with NaN -> initialise. The NaN make
a parameter that nobody initialised visible at once.

`--compute.shard S` says how many ranks share one copy of parameters, gradients and moments. With all of them the mesh has one
dimension; with fewer it has two, W / S replicas of S shards (S = 1: plain data parallelism). S neighbouring ranks share, those
of a node by default: weights then travel inside nodes only, and between nodes one S-th of the gradients, once a step.
"""

import faulthandler
import gc
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.compiler import compile_blocks, compiler_missing
from model.config import Implementation
from model.layers import activate_flash_attention_3, reset_buffers
from model.trainable import Trainable, blocks_of
from pipeline.console import complain
from pipeline.loader import LoaderError
from train.compute.activation_checkpointing import checkpoint_blocks
from train.compute.device import device_kind
from train.compute.on_cpu import attend_plainly, keep_gradients, keep_memory
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig

CLOSING = 60.0  # seconds that a rank which failed may take to close what it has, such as a checkpoint in work
Tell = Callable[[BaseException], int]  # says what went wrong -> exit status


def say_fault(error: BaseException) -> int:
    """A line of what a user can mend, a trace of what nobody foresaw."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, ValueError | OSError | LoaderError):
        complain(f"{os.path.basename(sys.argv[0])}: rank {os.environ.get('RANK', 0)}: {error}")
        return 2
    sys.excepthook(type(error), error, error.__traceback__)
    return 1


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    def mesh(self, shard: int | None) -> DeviceMesh:
        """The ranks as ("shard",), or as ("replicate", "shard") where `shard` of them, by default those of a node, are fewer
        than all. Every rank calls it. Raises ValueError if the ranks cannot be divided so."""
        size = shard_size(shard, self.world_size, self.local_world_size)
        if size == self.world_size:
            return init_device_mesh(self.device.type, (size,), mesh_dim_names=("shard",))
        return init_device_mesh(self.device.type, (self.world_size // size, size), mesh_dim_names=("replicate", "shard"))

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

    def first(self, read: Callable[[], Any]) -> Any:
        """What `read` gives on rank 0, the only one that calls it, picklable, on every rank. Raises ValueError on all of them
        if it raises that or OSError there."""
        told: tuple[Any, str | None] = (None, None)
        if self.rank == 0:
            try:
                told = read(), None
            except (OSError, ValueError) as error:
                told = None, str(error)
        value, wrong = self.gather(told)[0]
        if wrong is not None:
            raise ValueError(wrong)
        return value


@contextmanager
def started(device: str, tell: Tell = say_fault, *, flag: str = "--compute.device") -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be alone without it; leave them at the end.

    A rank that fails among others says so first (`tell`), and ends the process: nobody is waited for. (To leave a group of NCCL
    waits for the other ranks, who wait in their next exchange for this one.) Raises ValueError if torch does not see a GPU that
    is asked for, or that the machine has.
    """
    if device_kind(device, flag) == "cuda":
        here, backend = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(here)
    else:
        here, backend = torch.device("cpu"), "gloo"
        keep_memory()
    if "RANK" in os.environ:
        meet(backend)
    else:
        be_alone(backend)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)), here)
    together = ranks.world_size > 1
    try:
        with said_first(ranks, tell):
            yield ranks
    except BaseException as error:
        if together:
            os._exit(error.__dict__["exit_status"])
        raise
    finally:
        gc.collect()  # gloo aborts if sharded parameters outlive their group
        dist.destroy_process_group()


@contextmanager
def said_first(ranks: Ranks, tell: Tell) -> Iterator[None]:
    """Among other ranks, what fails in here is said, to people and to torchrun, before anything around it is closed; and what
    does not close, because the device or another rank is waited for, ends the process after `CLOSING`."""
    try:
        yield
    except BaseException as error:
        if ranks.world_size > 1 and "exit_status" not in error.__dict__:
            error.__dict__["exit_status"] = tell(error)
            if isinstance(error, Exception):
                get_error_handler().record_exception(error)  # torchrun repeats it after all that the other ranks have to say
            sys.stdout.flush()
            sys.stderr.flush()
            faulthandler.dump_traceback_later(CLOSING, exit=True)
        raise


def be_alone(backend: str) -> None:
    """A process group of one rank, which needs no network. Raises ValueError where this torch cannot do without."""
    try:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    except RuntimeError as error:  # gloo wants the address of an interface, if only the loopback's, also where nobody will call
        import torch.testing._internal.distributed.fake_pg

        dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=1)
        given, taken = torch.ones(1), torch.zeros(2)
        dist.all_gather_into_tensor(taken[:1], given)
        dist.reduce_scatter_tensor(taken[1:], given)
        if not taken.all():  # before torch 2.15 it may take without giving
            dist.destroy_process_group()
            raise ValueError(f"there is no network interface; bring up the loopback: ip link set lo up ({error})") from error


def meet(backend: str) -> None:
    """Join the process group, in a corner of the store to which no earlier start of these ranks has written.

    torchrun keeps its store over restarts (torch 2.15): a rank that is early finds there the addresses of dead ones, and fails
    (gloo) or hangs (NCCL).
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    if rank == 0:
        store.set("tubecell", uuid.uuid4().hex)
    corner = store.get("tubecell").decode()
    dist.init_process_group(backend, store=dist.PrefixStore(corner, store), rank=rank, world_size=world_size)
    if rank == 0:
        store.delete_key("tubecell")  # gloo has connected all ranks, so all have read it; those of the next start must not


def shard_size(shard: int | None, world_size: int, local_world_size: int) -> int:
    """Ranks that share one copy of the state. Raises ValueError, with what is possible, if it does not divide the ranks."""
    size = local_world_size if shard is None else shard
    if size < 1 or world_size % size:
        possible = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        given = f"the {size} ranks of this node" if shard is None else f"{size}"
        raise ValueError(f"--compute.shard: {given} must divide the {world_size} ranks; possible: {possible}")
    return size


def implementation(compute: ComputeConfig, device: torch.device) -> Implementation:
    """How models are computed on a device. Raises ValueError for kernels that are not there, and as `compiles` does."""
    if compute.attention == "flash3":
        activate_flash_attention_3()
    align_mlp = compute.align_mlp if compute.align_mlp is not None else device.type == "cuda"
    compile_loss = device.type == "cuda" and compiles(compute, device)
    return Implementation(tokens=compute.tokens, attention=compute.attention, align_mlp=align_mlp, compile_loss=compile_loss)


def compiles(compute: ComputeConfig, device: torch.device) -> bool:
    """Whether blocks are compiled: by default on a GPU, if that can be. Raises ValueError if it is asked for and cannot be."""
    if not (device.type == "cuda" if compute.compile is None else compute.compile):
        return False
    missing = compiler_missing(device.type)
    if missing and compute.compile:
        raise ValueError(f"--compute.compile: {missing}; or leave it out")
    return missing is None


def shard_model(model: Trainable, compute: ComputeConfig, ranks: Ranks, recomputed: Sequence[bool]) -> None:
    """A model on meta -> sharded, on the device, and NaN throughout: `initialise` comes next. `recomputed` says of each
    block whether it runs again in the backward pass.

    Sets torch's precision of float32 products for the whole process. Raises ValueError for a mesh that cannot be, and for
    compilation where there is no compiler.
    """
    precision = PRECISIONS[compute.precision]
    torch.set_float32_matmul_precision("high" if precision.tf32 else "highest")
    mesh, on_gpu, parts = ranks.mesh(compute.shard), ranks.device.type == "cuda", model.parts()
    blocks = [block for part in parts.values() for block in blocks_of(part)]
    if not on_gpu:
        attend_plainly(model)
    checkpoint_blocks(blocks, recomputed)
    if compiles(compute, ranks.device):
        compile_blocks(blocks)
    # weights are handed out in the compute type, gradients reduced in float32, master weights stay float32; what leaves a part
    # is in the last one's type
    last = precision.of(list(parts)[-1])
    for name, part in parts.items():
        mixed = MixedPrecisionPolicy(param_dtype=precision.of(name), reduce_dtype=torch.float32)
        for block in blocks_of(part):
            fully_shard(block, mesh=mesh, mp_policy=mixed, reshard_after_forward=compute.reshard_after_forward)
        if precision.of(name) != last:
            mixed = replace(mixed, output_dtype=last)
        if part is not model:
            fully_shard(part, mesh=mesh, mp_policy=mixed, reshard_after_forward=False)
    mixed = MixedPrecisionPolicy(param_dtype=last, reduce_dtype=torch.float32)
    fully_shard(model, mesh=mesh, mp_policy=mixed, reshard_after_forward=False)
    model.to_empty(device=ranks.device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.reset_buffers()
    if ranks.world_size == 1 and not on_gpu:
        keep_gradients(model)


def shard_frozen(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    compute: ComputeConfig,
    ranks: Ranks,
    *,
    compiled: bool = False,
) -> None:
    """A model on meta that is run and never trained -> with its weights, which are `of_rank_0`, in the compute type, sharded;
    `compiled`: its blocks are, where they can be. The first forward pass gathers the weights, once: they stay. Raises
    ValueError, with the names, if the weights are not its own."""
    dtype, mesh = PRECISIONS[compute.precision].encoder, ranks.mesh(compute.shard)
    if ranks.device.type != "cuda":
        attend_plainly(model)
    model.eval()
    for module in model.modules():  # not of buffers: positions are rounded where they are added
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    if compiled and compiles(compute, ranks.device):
        compile_blocks(blocks_of(model))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    model.to_empty(device=ranks.device)
    reset_buffers(model)
    fill(model, weights.items(), handed_out=ranks.world_size > 1)
    if missing := [name for name, _ in model.named_parameters() if name not in weights]:
        raise ValueError(f"the weights lack {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}")


def exchange_gradients(model: nn.Module, compute: ComputeConfig, *, last: bool) -> None:
    """Call it before each forward pass of an accumulated step: what its backward pass sends.

    Replicas sum their shards of the gradient after the step's last pass only, which costs nothing. Inside a copy every pass
    is reduced, too, unless `--compute.defer-gradients` keeps each rank's own sum of it, unsharded, until the last.
    """
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last or not compute.defer_gradients)
    model.set_requires_all_reduce(last)


def of_rank_0(read: Callable[[], Mapping[str, torch.Tensor]], ranks: Ranks) -> Mapping[str, torch.Tensor]:
    """What `read` gives on rank 0, the only one that calls it; on the others its names and shapes, on meta. Raises ValueError
    on all ranks if it raises that or OSError there."""
    values: Mapping[str, torch.Tensor] = {}

    def shapes() -> dict[str, tuple[int, ...]]:
        nonlocal values
        values = read()
        return {name: tuple(tensor.shape) for name, tensor in values.items()}

    told = ranks.first(shapes)
    return values if ranks.rank == 0 else {name: torch.empty(shape, device="meta") for name, shape in told.items()}


def initialise(
    model: Trainable, seed: int, given: Mapping[str, torch.Tensor] | None = None, *, handed_out: bool = False
) -> None:
    """Parameter by parameter: every rank computes the full tensor from (seed, official name), or takes it from `given`, and
    keeps its part; what is `handed_out` rank 0 alone has (`of_rank_0`). Raises ValueError, with the names, for values that the
    model has no parameter for.

    (`nn.init` on a sharded parameter draws the same numbers on every rank.)
    """
    given = given or {}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if name not in given}
    fill(model, given.items(), handed_out=handed_out)
    fill(model, ((name, model.initial_value(name, shape, seed)) for name, shape in shapes.items()))


@torch.no_grad()
def fill(model: nn.Module, values: Iterable[tuple[str, torch.Tensor]], *, handed_out: bool = False) -> None:
    """Whole tensors into the parameters of these names, of which each rank keeps its part. All ranks have them, or rank 0
    alone, which hands them out one by one: a rank never holds more than the largest. Raises ValueError for a name that the
    model does not have, or another shape."""
    parameters = dict(model.named_parameters())
    for name, value in values:
        parameter = parameters.get(name)
        if not isinstance(parameter, DTensor) or parameter.shape != value.shape:
            has = "no such parameter" if parameter is None else f"{tuple(parameter.shape)} there"
            raise ValueError(f"the weights have {name} {tuple(value.shape)}, and the model has {has}")
        if handed_out and dist.get_rank() != 0:
            value = torch.empty(value.shape, device=parameter.device, dtype=parameter.dtype)  # comes from rank 0
        value = value.to(parameter.device, parameter.dtype)
        # in a mesh of two dimensions along the first one, then along the second: what is not rank 0's is written over
        source = 0 if handed_out else None
        parameter.copy_(distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=source))
