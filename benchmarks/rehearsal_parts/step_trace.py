"""What a training step does, in its order: products, collectives, waits for gathered weights; and the memory it takes.

A dispatch mode sees every operation below autograd and FSDP2, on tensors with or without data: the same trace is taken of a
real rank and of a fake one.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops, sync_ops
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.parts.flop_counter import flop_counter

Kind = Literal["pass", "compute", "all-gather", "reduce-scatter", "all-reduce", "gathered"]
COLLECTIVES: tuple[Kind, ...] = ("all-gather", "reduce-scatter", "all-reduce")
OPERATIONS: dict[Any, Kind] = {
    torch.ops.c10d._allgather_base_: "all-gather",
    torch.ops._c10d_functional.all_gather_into_tensor: "all-gather",
    torch.ops.c10d._reduce_scatter_base_: "reduce-scatter",
    torch.ops._c10d_functional.reduce_scatter_tensor: "reduce-scatter",
    torch.ops.c10d.allreduce_: "all-reduce",
    torch.ops._c10d_functional.all_reduce: "all-reduce",
    torch.ops._c10d_functional.all_reduce_: "all-reduce",
}

FUNCTIONAL = {packet for packet in OPERATIONS if "_c10d_functional" in packet._qualified_op_name}


@dataclass(frozen=True, slots=True)
class Event:
    """A piece of a step. `amount` are FLOPs of "compute" and bytes of a collective's whole tensor, the one that is gathered,
    scattered or reduced; "gathered" is where the device waits for the last gather. A collective has `ranks` on `nodes`, and is
    `waited` for at once where it is not FSDP2's."""

    kind: Kind
    amount: float = 0.0
    ranks: int = 1
    nodes: int = 1
    waited: bool = False


class StepTrace(TorchDispatchMode):
    """`with StepTrace(gpus, held) as trace: step(...)`, then `trace.events` and `trace.peak`.

    `held` are the tensors that are there before; `peak` are the most bytes of tensors that were ever alive, those included.
    """

    def __init__(self, local_world_size: int, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.now = self.peak = 0
        self._local, self._flops = local_world_size, flop_counter().flop_registry
        self._sizes: dict[int, int] = {}  # address of a storage -> its bytes
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._resize, self._shapes = torch.UntypedStorage.resize_, ShardingPropagator._propagate_tensor_meta_non_cached
        self._imagined = False
        for tensor in held:
            self._see(tensor)

    def __enter__(self) -> Self:
        trace, resize, shapes = self, self._resize, self._shapes

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:  # how FSDP2 frees gathered weights, and has them again
            done = resize(storage, size)
            trace._set(storage._cdata, size, known=True)
            return done

        def imagined(*given: Any) -> Any:  # DTensor learns an operation's shapes from whole tensors, which no rank ever has
            trace._imagined = True
            try:
                return shapes(*given)
            finally:
                trace._imagined = False

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign,assignment]
        ShardingPropagator._propagate_tensor_meta_non_cached = imagined  # type: ignore[method-assign,assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        ShardingPropagator._propagate_tensor_meta_non_cached = self._shapes  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # what it does with its parts is seen
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._imagined:
            return result
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        packet = func._overloadpacket
        if packet in self._flops:
            self._compute(self._flops[packet](*args, **kwargs, out_val=result))
        elif func in collective_ops and func not in sync_ops:
            self._collective(func, packet, result, args, kwargs)
        elif packet is torch.ops.fsdp.split_with_sizes_copy:
            self.events.append(Event("gathered"))
        return result

    def _compute(self, flops: float) -> None:
        if self.events and self.events[-1].kind == "compute":
            flops += self.events.pop().amount
        self.events.append(Event("compute", flops))

    def _collective(self, func: Any, packet: Any, result: Any, args: Any, kwargs: Any) -> None:
        if packet not in OPERATIONS:
            raise RuntimeError(f"the step has a collective that the rehearsal does not know: {func}")
        members = dist.get_process_group_ranks(CollectiveOp.get_process_group(func, args))
        nodes = len({rank // self._local for rank in members})
        size = _bytes(args[1] if packet is torch.ops.c10d._reduce_scatter_base_ else args[0])
        if packet is torch.ops._c10d_functional.all_gather_into_tensor:
            size *= len(members)
        waited = packet in FUNCTIONAL or size == 4  # the norm; whether some rank's loss is not finite
        self.events.append(Event(OPERATIONS[packet], size, len(members), nodes, waited))

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._watched[key] = weakref.ref(storage, partial(self._gone, key))
        self._set(key, storage.nbytes())

    def _gone(self, key: int, _: Any) -> None:
        self.now -= self._sizes.pop(key, 0)
        self._watched.pop(key, None)

    def _set(self, key: int, size: int, *, known: bool = False) -> None:
        if known and key not in self._sizes:
            return
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor))


def collectives(events: Iterable[Event]) -> Counter[tuple[Kind, int, int]]:
    """(kind, ranks, bytes) -> how many."""
    return Counter((each.kind, each.ranks, int(each.amount)) for each in events if each.kind in COLLECTIVES)
