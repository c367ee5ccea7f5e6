"""Which kernel of attention a GPU takes where nobody said: cuDNN's on Hopper, if its gradients are right there, else
FlashAttention-2.

As others measured (transformers, PR 48163), cuDNN's is 1.7 to 2.3 times as fast as FlashAttention-2 for shapes of training on
an H100, and 0.82 times on an A100. But some versions gave gradients that are not finite, of some shapes and only where all
scores of a token are under -89 (pytorch, issue 196678; cudnn-frontend, 1072). So it is tried before it is trusted: on the run's
own shapes, with scores around 0, and with such. A run that goes on may get another kernel: only rounding changes.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from model.config import AttentionKernel
from model.layers import product
from train.compute.memory import BlockShape
from train.compute.parallel import Ranks

HOPPER = (9, 0)  # compute capability
LOW = -120.0  # of scores: their exponential is no float32 any more
CLOSE = 0.03  # relative L2 distance; in bf16 each kernel is within 0.01 of float64 (see on_cpu.py)

Product = Callable[[Tensor, Tensor, Tensor], Tensor]  # as `layers.product`


@dataclass(frozen=True, slots=True)
class Choice:
    """What attention takes."""

    kernel: AttentionKernel
    why: str = ""
    """A line for people, where there was something to choose."""


def chosen(asked: AttentionKernel, ranks: Ranks, shapes: Sequence[BlockShape], views: int) -> Choice:
    """The same on all ranks, which all call it; `shapes` are those of the run's blocks, `views` those of a forward pass."""
    if asked != "auto" or ranks.device.type != "cuda":
        return Choice(asked)
    halves = tuple(dict.fromkeys(shape for shape in shapes if shape.dtype in (torch.bfloat16, torch.float16)))
    if not halves:
        return Choice("flash", "attention: torch's own kernels for float32")
    if torch.are_deterministic_algorithms_enabled():
        wrong: str | None = "is not deterministic"
    elif torch.cuda.get_device_capability(ranks.device) != HOPPER:
        wrong = "is faster on Hopper only"
    else:
        wrong = next(filter(None, ranks.gather(_cudnn_is_wrong(halves, views, ranks.device))), None)
    if wrong:
        return Choice("flash", f"attention: FlashAttention-2 (cuDNN's {wrong})")
    return Choice("cudnn", "attention: cuDNN's, for Hopper; its results were compared with FlashAttention-2's")


@functools.cache
def _cudnn_is_wrong(shapes: tuple[BlockShape, ...], views: int, device: torch.device) -> str | None:
    found = disagreement(_cudnn, partial(product, kernel="flash"), shapes, views, device)
    torch.cuda.empty_cache()
    return found


def _cudnn(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    """No other kernel in its place."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # why it does not take the tensors; the error will do
        return scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)


def disagreement(
    kernel: Product, reference: Product, shapes: Sequence[BlockShape], views: int, device: torch.device
) -> str | None:
    """Why one kernel cannot stand for another, by their results and gradients for so many views of random values, None if it
    can. The tensors lie as in `layers.Attention`: q, k and v of a token behind each other."""
    for shape in shapes:
        N, Q, H, d, dtype = shape.tokens, shape.queries, shape.heads, shape.dim // shape.heads, shape.dtype
        what = f"for {N} tokens of {H} heads x {d}"
        generator = torch.Generator(device).manual_seed(0)  # not the run's
        qkv_BN3Hd = torch.randn(views, N, 3, H, d, generator=generator, device=device, dtype=dtype)
        weight_BHQd = torch.randn(views, H, Q, d, generator=generator, device=device, dtype=dtype)
        try:
            found = gradients(kernel, qkv_BN3Hd, weight_BHQd)
            for name, theirs in gradients(reference, qkv_BN3Hd, weight_BHQd).items():
                distance = float((found[name].float() - theirs.float()).norm() / theirs.float().norm())
                if not distance < CLOSE:
                    return f"has other {name} {what}, at a distance of {distance:.2g}"
            qkv_BN3Hd *= 0.1
            qkv_BN3Hd[:, :, 0, :, 0], qkv_BN3Hd[:, :, 1, :, 0] = 1.0, LOW * math.sqrt(d)
            for name, value in gradients(kernel, qkv_BN3Hd, weight_BHQd).items():
                if not value.isfinite().all():
                    return f"has {name} that is not finite {what} and low scores"
        except RuntimeError as error:
            return f"fails {what}: {str(error).splitlines()[0]}"
    return None


def gradients(kernel: Product, qkv_BN3Hd: Tensor, weight_BHQd: Tensor) -> dict[str, Tensor]:
    """The last Q tokens' result, and the gradients of q, k and v of a loss that weighs it so."""
    qkv_BN3Hd = qkv_BN3Hd.detach().requires_grad_()
    q_BHNd, k_BHNd, v_BHNd = qkv_BN3Hd.permute(2, 0, 3, 1, 4).unbind(0)
    result_BHQd = kernel(q_BHNd[:, :, -weight_BHQd.shape[2] :], k_BHNd, v_BHNd)
    found = torch.autograd.grad(result_BHQd, qkv_BN3Hd, weight_BHQd)[0].unbind(2)
    return {"result": result_BHQd.detach(), **dict(zip(("dq", "dk", "dv"), found, strict=True))}
