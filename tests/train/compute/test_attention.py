"""The kernel of attention that is tried before it is taken, with kernels that fail in every way."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import MODELS
from model.layers import product
from pipeline.sampling.masking import token_counts
from train.compute import attention
from train.compute.attention import chosen, disagreement
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig
from train.stages.pretraining import autoencoder_cost

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def shapes(precision: str = "bf16") -> Any:
    config = MODELS["tiny"]
    return autoencoder_cost(config, token_counts(config.grid, 0.9, 0.5), PRECISIONS[precision]).shapes


class Changed(torch.autograd.Function):
    """The same, with other gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.change(grad), None


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v


def one_nan(grad: Tensor) -> Tensor:
    grad = grad.clone()
    grad[-1, -1, -1, -1] = torch.nan
    return grad


def low(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Wrong where all scores of a token are low, as cuDNN's was in pytorch's issue 196678."""
    lowest = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).logsumexp(-1).min()
    return plain(Changed.apply(q, one_nan) if lowest < -88.7 else q, k, v)


def missing(*tensors: Tensor) -> Tensor:
    raise RuntimeError("No available kernel. Aborting execution.\nmore")


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (plain, None),
        (lambda q, k, v: plain(q, k, v) * 1.05, "has other result for 28 tokens of 4 heads x 32, at a distance of 0.05"),
        (lambda q, k, v: plain(Changed.apply(q, one_nan), k, v), "has other dq for 28 .*, at a distance of nan"),
        (lambda q, k, v: plain(q, Changed.apply(k, torch.zeros_like), v), "has other dk for 28 .*, at a distance of 1$"),
        (low, "has dq that is not finite for 28 tokens of 4 heads x 32 and low scores$"),
        (missing, "fails for 28 tokens of 4 heads x 32: No available kernel. Aborting execution.$"),
        (lambda q, k, v: plain(q, k, v) if q.shape == k.shape else missing(), "fails for 156 tokens of 2 heads x 32: No"),
    ],
)
def test_a_kernel_is_taken_if_its_gradients_are_right(kernel: Any, said: str | None) -> None:
    """The last one cannot do the decoder's last block, of which only the tokens of the loss leave."""
    found = disagreement(kernel, product, tuple(dict.fromkeys(shapes())), 2, CPU)
    assert (found is None) if said is None else re.match(said, found or "")


def test_hopper_takes_cudnn_unless_some_rank_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[str | None] = [None]
    capability = [(9, 0)]
    tried: list[Any] = []

    class Others(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, *wrong]

    def try_it(shapes: Any, views: int, device: torch.device) -> str | None:
        tried.append((len(shapes), views, device))
        return None

    monkeypatch.setattr(attention, "_cudnn_is_wrong", try_it)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    ranks = Others(0, 2, 2, CUDA)
    choice = chosen("auto", ranks, shapes(), 8)
    assert (choice.kernel, tried) == ("cudnn", [(3, 8, CUDA)])  # encoder, decoder, its last block
    assert choice.why.startswith("attention: cuDNN's, for Hopper")
    wrong[0] = "has other dq"
    assert chosen("auto", ranks, shapes(), 8) == attention.Choice("flash", "attention: FlashAttention-2 (cuDNN's has other dq)")
    capability[0] = (8, 0)
    assert "faster on Hopper only" in chosen("auto", ranks, shapes(), 8).why
    assert chosen("auto", ranks, shapes("fp32"), 8).kernel == "flash"
    for asked, device in (("auto", CPU), ("cudnn", CUDA), ("flash3", CUDA)):
        assert chosen(asked, Others(0, 2, 2, device), shapes(), 8) == attention.Choice(asked)  # type: ignore[arg-type]
    assert len(tried) == 2
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert chosen("auto", ranks, shapes(), 8).kernel == "flash"
    with pytest.raises(ValueError, match=r'--compute.deterministic: attention "cudnn" is not; take "flash"'):
        ComputeConfig(deterministic=True, attention="cudnn")
