"""What makes a step quick on a CPU changes nothing else: gradients in memory that stays, attention in plain products."""

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.parts.step_work import pretraining
from model.config import Implementation
from model.layers import Attention
from model.videomae import VideoMAE, pixel_loss
from tests.train.parallel_cases import MODEL, TOKENS
from train.compute import parallel
from train.compute.on_cpu import KeptGradients, attend_plainly
from train.compute.parallel import started
from train.config import ComputeConfig
from train.training import Training


def batch(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(0, 256, (2, MODEL.num_frames, 32, 32, 3), dtype=torch.uint8, generator=generator)
    order = torch.stack([torch.randperm(MODEL.num_tokens, generator=generator) for _ in range(2)])
    return views, order[:, : TOKENS.visible], order[:, -TOKENS.decoded :], torch.ones(2, TOKENS.loss)


def gradients(model: VideoMAE) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        found[name] = parameter.grad.to_local().clone()
    return found


def steps(precision: str) -> list[dict[str, torch.Tensor]]:
    """Of a pass, of another one after it, and of three that add up."""
    found = []
    with started("cpu") as ranks:
        model = Training(pretraining(MODEL, ComputeConfig(precision=precision)), ranks).model  # type: ignore[arg-type]
        for passes in ((1,), (2,), (3, 4, 5)):
            for seed in passes:
                pixel_loss(model, *batch(seed)).backward()
            found.append(gradients(model))
            model.zero_grad(set_to_none=True)
        del model
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_they_are_the_same(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = steps(precision)
    monkeypatch.setattr(parallel, "keep_gradients", lambda model: None)
    for ours, theirs in zip(kept, steps(precision), strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=0)


def test_the_memory_stays_and_nothing_is_copied_twice() -> None:
    with started("cpu") as ranks:
        model = Training(pretraining(MODEL, ComputeConfig(precision="bf16")), ranks).model
        addresses = []
        for seed in (1, 2, 3):
            pixel_loss(model, *batch(seed)).backward()
            addresses.append(
                {n: p.grad.to_local().data_ptr() for n, p in model.named_parameters() if isinstance(p.grad, DTensor)}
            )
            model.zero_grad(set_to_none=True)
        groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
        states = [group._get_fsdp_state() for group in groups]
        reducers = [  # torch before 2.15 has one group of parameters
            (getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group])[0]._reduce_scatter_comm
            for state in states
        ]
        assert all(isinstance(each, KeptGradients) and each._copied_to is None for each in reducers)
        held = sum(each._kept.numel() for each in reducers if isinstance(each, KeptGradients) and each._kept is not None)
        assert held == sum(parameter.numel() for parameter in model.parameters())
        del model, groups, states, reducers
    assert addresses[0] == addresses[1] == addresses[2]


def test_plain_products_are_taken_for_few_tokens_in_bf16() -> None:
    """Their output and gradients are those of SDPA in float64, to bf16's rounding."""
    layer = Attention(24, 3, Implementation(attention="auto"))
    attend_plainly(layer)
    kernels = set()

    class Kernels(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kernels.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    results = {}
    for dtype, tokens in ((torch.float64, 9), (torch.bfloat16, 9), (torch.bfloat16, 257)):
        layer.to(dtype)
        x = torch.randn(2, tokens, 24, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(dtype).requires_grad_()
        kernels.clear()
        with Kernels():
            y = layer(x, slice(2, 6))
        assert ("_softmax" in kernels) == (dtype == torch.bfloat16 and tokens == 9)
        results[dtype, tokens] = y, torch.autograd.grad(y.square().sum(), x)[0]
    for got, want in zip(results[torch.bfloat16, 9], results[torch.float64, 9], strict=True):
        assert (got.double() - want).norm() < 0.03 * want.norm()
