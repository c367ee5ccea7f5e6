"""So many ranks in one process: torch's fake process group, whose collectives move nothing, and tensors without data."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from train.compute.parallel import Ranks


class FakeRanks(Ranks):
    """Rank 0 of a world that is not there."""

    def mesh(self, shard: int | None) -> DeviceMesh:
        """As a real rank's: its numbers are read, so they are real."""
        with unset_fake_temporarily():
            return Ranks.mesh(self, shard)


@contextmanager
def fake_ranks(nodes: int, gpus: int) -> Iterator[Ranks]:
    """`nodes` x `gpus` ranks; what is made in here has no data. On a CPU, where FSDP2 does what it does on a GPU, but for the
    streams: those are `timeline`'s business."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=nodes * gpus)
    try:
        with FakeTensorMode():
            yield FakeRanks(0, nodes * gpus, gpus, torch.device("cpu"))
    finally:
        gc.collect()
        dist.destroy_process_group()
