"""The process beside a trainer that writes its checkpoints, and the memory that they share.

Not `torch.distributed.checkpoint.async_save` with its own process, for what it did here (torch 2.15): its state lies in
/dev/shm, 64 MB in most containers, where the trainer fails with "no space left"; every tensor takes a file descriptor, so that
3,000 of them fail under the usual limit of 1024; and torchrun's SIGTERM, which goes to the process group, ends it in the middle
of the save that the SIGTERM asked for. Here a rank's share lies in one `memfd`, the process does not hear the job's signals and
ends with the trainer: by the kernel's hand (`PR_SET_PDEATHSIG`), also when the trainer is killed.

The plan of what goes where is the stock planner's, made in the trainer, so that neither sharded tensors nor device meshes
travel; the writers of all ranks agree on it, and write, with the stock `dcp.save` in a process group of their own.
"""

import io
import json
import mmap
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from pipeline.cuda_context import pin
from pipeline.storage.files import write_durably
from train.checkpoint import helper_process
from train.checkpoint.files import CHECKSUMS, checksum

ALIGNMENT = 64

Gather = Callable[[Any], list[Any]]  # a value of every rank, on every rank


def write(
    folder: Path, state: dict[str, Any], planner: SavePlanner, documents: Mapping[str, str], rank: int, gather: Gather
) -> None:
    """Write one checkpoint, but for its final name; every rank calls it, in trainers with their state, or in writers without.

    `documents`: small files that go with it, name -> text. Raises OSError on at least one rank if it could not be written.
    """
    alone = len(gather(rank)) == 1
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it should be in a lone writer
            dcp.save(state, storage_writer=PlainFiles(folder), planner=planner, no_dist=alone)
    except CheckpointException as error:  # on every rank alike
        failed, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"{cause}" if alone else f"rank {failed}: {cause}") from error
    mine: dict[str, Any] = {}
    wrong = None
    try:
        mine = {file.name: checksum(file) for file in folder.glob(f"__{rank}_*")}
    except OSError as error:  # the others wait to hear of this rank's files
        wrong = f"rank {rank}: {error}"
    every = gather((mine, wrong))
    for _, wrong in every:
        if wrong:
            raise OSError(wrong)
    if rank == 0:
        for name, text in documents.items():
            write_durably(folder / name, text.encode())
        sums = {name: value for part, _ in every for name, value in part.items()}
        sums |= {name: checksum(folder / name) for name in (".metadata", *documents)}
        write_durably(folder / CHECKSUMS, (json.dumps(sums, indent=1) + "\n").encode())


class PlainFiles(dcp.FileSystemWriter):
    """The stock writer of files, which says "unexpected pos" where the disk is full; this one says what the system did."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None


@dataclass(frozen=True, slots=True)
class Place:
    """Of a tensor in the shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Shipment:
    """A rank's share of a state: what is to be written, and where in the shared memory it lies."""

    plan: SavePlan
    data: list[Place | bytes]  # of the plan's items
    nbytes: int  # of the memory


class Staging:
    """The trainer's side of the shared memory: as large as its share of the state, and kept for the next save."""

    def __init__(self, device: torch.device) -> None:
        self.memfd = os.memfd_create("tubecell-checkpoint")
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._device = device
        self._reserving: Thread | None = None

    def reserve(self, nbytes: int) -> None:
        """Take the memory beside the training, rather than at the first save: to pin 12 GB takes seconds. What goes wrong, goes
        wrong there, too."""

        def reserve() -> None:
            with suppress(OSError):
                self._grow(nbytes)

        self._reserving = Thread(target=reserve, name="checkpoint memory", daemon=True)
        self._reserving.start()

    def stage(self, state: dict[str, Any], rank: int) -> Shipment:
        """Copy this rank's share of a state dict; when it returns, the originals may change. Raises OSError without memory."""
        planner = DefaultSavePlanner()
        planner.set_up_planner(state, is_coordinator=rank == 0)
        plan = planner.create_local_plan()
        found: list[Any] = [planner.resolve_data(item) for item in plan.items]
        data: list[Place | bytes] = []
        end = 0
        for value in found:
            if isinstance(value, io.BytesIO):
                data.append(value.getvalue())
            else:
                data.append(Place(end, tuple(value.shape), value.dtype))
                end += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        if self._reserving:
            self._reserving.join()
        self._grow(end)
        for value, place in zip(found, data, strict=True):
            if isinstance(place, Place):
                view(self._memory, place).copy_(value, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Shipment(plan, data, self._memory.nbytes)

    def _grow(self, nbytes: int) -> None:
        if nbytes <= self._memory.nbytes:
            return
        os.posix_fallocate(self.memfd, 0, nbytes)  # an error here, where writing to memory that is not there would be SIGBUS
        self._memory = torch.frombuffer(mmap.mmap(self.memfd, nbytes), dtype=torch.uint8)
        if self._device.type == "cuda" and (code := pin(self._memory.data_ptr(), nbytes, self._device, self._memory)):
            raise OSError(f"CUDA refused to pin {nbytes >> 20} MiB for checkpoints (error {code})")

    def close(self) -> None:
        if self._reserving:
            self._reserving.join()
        os.close(self.memfd)


def view(memory: torch.Tensor, place: Place) -> torch.Tensor:
    """The tensor at a place of the memory, a uint8 tensor (bytes,)."""
    count = torch.Size(place.shape).numel() * place.dtype.itemsize
    return memory[place.offset : place.offset + count].view(place.dtype).view(place.shape)


class StagedPlanner(DefaultSavePlanner):
    """Writes what a trainer has staged."""

    def __init__(self, shipment: Shipment, memory: torch.Tensor) -> None:
        super().__init__()
        self._shipped = shipment.plan
        self._data = dict(zip((item.index for item in shipment.plan.items), shipment.data, strict=True))
        self._memory = memory

    def create_local_plan(self) -> SavePlan:
        self.plan = self._shipped
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        data = self._data[write_item.index]
        return io.BytesIO(data) if isinstance(data, bytes) else view(self._memory, data)


def write_shipment(folder: Path, shipment: Shipment, documents: Mapping[str, str]) -> None:
    """`write`, in a writer."""
    assert helper_process.post.memfd is not None
    memory = torch.frombuffer(mmap.mmap(helper_process.post.memfd, max(1, shipment.nbytes)), dtype=torch.uint8)
    write(folder, {}, StagedPlanner(shipment, memory), documents, helper_process.post.rank, _gather)


def _gather(value: Any) -> list[Any]:
    if helper_process.post.world_size == 1:
        return [value]
    if not dist.is_initialized():  # through the store of the trainers, under a name of ours
        trainers = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        store = dist.PrefixStore(helper_process.post.group, trainers)
        dist.init_process_group("gloo", store=store, rank=helper_process.post.rank, world_size=helper_process.post.world_size)
    values: list[Any] = [None] * helper_process.post.world_size
    dist.all_gather_object(values, value)
    return values
