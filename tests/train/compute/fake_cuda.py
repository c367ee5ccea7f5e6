"""CUDA tensors without values or a card: which devices meet, who waits, and what Inductor would write, shows all the same."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

CUDA, META = torch.device("cuda", 0), torch.device("meta")
H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141 << 30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=50 << 20,
    gcnArchName="",
)
engine = SimpleNamespace(deceived=True)


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Tensors made inside have no values. What mixes devices, or needs a value on the host, raises; so does a real tensor.

    The engine of the backward pass queues a CUDA tensor's work for its card, which is not there. So C++ is told that these are
    on "meta", whose work it does in place, and a factory that it calls for "meta" makes one on CUDA. Python, and with it the
    comparison of devices, sees CUDA.
    """
    plain, dispatch = FakeTensor.__torch_dispatch__.__func__, FakeTensorMode.dispatch  # type: ignore[attr-defined]
    device, from_numpy, mode = torch.ops.prim.device.default, torch.from_numpy, FakeTensorMode(allow_non_fake_inputs=False)

    def told(tensor: FakeTensor) -> torch.device:
        deceived = engine.deceived and tensor.fake_device.type == "cuda"
        return META if deceived or tensor.fake_mode.in_kernel_invocation else tensor.fake_device

    def of_tensor(cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return told(args[0]) if func is device else plain(cls, func, types, args, kwargs or {})

    def of_mode(self: FakeTensorMode, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and kwargs.get("device") == META:
            kwargs = {**kwargs, "device": CUDA}
        return dispatch(self, func, types, args, kwargs or {})

    with (
        mock.patch.object(FakeTensor, "__torch_dispatch__", classmethod(of_tensor)),
        mock.patch.dict(fake_tensor._DISPATCH_META_HANDLERS, {device: lambda args: told(args[0])}),
        mock.patch.object(FakeTensorMode, "dispatch", of_mode),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor.clone()),
        mock.patch.object(torch, "from_numpy", lambda array: mode.from_tensor(from_numpy(array))),
        mode,
    ):
        yield mode


def flash(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    """What scaled_dot_product_attention chooses on a card, and does not where there is none."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q_BHNd, k_BHNd, v_BHNd)[0]


@dataclass(frozen=True, slots=True)
class Written:
    """A graph's code for CUDA."""

    kernels: int
    """Of Triton that run; the others are the libraries'."""
    gigabytes: float
    """That they read and write, each tensor once a kernel."""
    code: str


class WrittenError(BaseException):
    """Ends Inductor's work when the code is there, before a compiler is needed."""


class Writer:
    """A backend of torch.compile under `fake_cuda`: Inductor writes the code, and the graph runs on as it is."""

    def __init__(self) -> None:
        self.graphs: list[Written] = []
        """Forward, then backward."""
        self.traced = 0
        """By Dynamo."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx

        self.traced += 1
        with config.patch(joint_graph_constant_folding=False):  # it computes constants, on the device
            return compile_fx(graph, inputs, inner_compile=self._inner)

    def _inner(self, graph: torch.fx.GraphModule, inputs: list[Tensor], **how: Any) -> Callable[..., Any]:
        from torch._inductor import metrics
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.graph import GraphLowering
        from torch._inductor.scheduler import ExternKernelSchedulerNode
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        for node in graph.graph.nodes:  # traced while the engine was deceived
            if node.kwargs.get("device") == META:
                node.update_kwarg("device", CUDA)
            elif node.target is torch.ops.prims.device_put.default and node.args[1] == META:
                node.update_arg(1, CUDA)

        def written(lowering: GraphLowering) -> None:
            metrics.reset()
            code, _ = lowering.codegen()
            # in words of 4 bytes
            moved = [each for node, each in lowering.count_bytes()[1] if not isinstance(node, ExternKernelSchedulerNode)]
            self.graphs.append(Written(metrics.generated_kernel_count, 4 * sum(moved) / 1e9, code.value))
            raise WrittenError

        state = torch.zeros(16, dtype=torch.uint8)
        no_card = {
            "_lazy_init": lambda: None,
            "_get_device_properties": lambda device: H200,
            "_exchange_device": lambda device: 0,
            "_maybe_exchange_device": lambda device: 0,
            "current_device": lambda: 0,
            "device_count": lambda: 1,
            "is_available": lambda: True,
            "get_rng_state": lambda *device: state,
            "set_rng_state": lambda *state: None,
        }
        target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
        with ExitStack() as patches:
            for name, function in no_card.items():
                patches.enter_context(mock.patch.object(torch.cuda, name, function, create=True))
            patches.enter_context(mock.patch.object(driver, "_active", target))
            patches.enter_context(mock.patch.object(GraphLowering, "compile_to_module", written))
            patches.enter_context(mock.patch.object(engine, "deceived", False))
            with suppress(WrittenError):
                compile_fx_inner(graph, inputs, **how)

        def run(arguments: list[Any]) -> Any:
            return graph(*arguments)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run
