"""What makes a step quick where there is no GPU, put on a model and a process from outside: neither knows of it.

Gradients of a single process lie in memory that stays. FSDP2 copies a block's gradients into one buffer, to be reduced, and
that into another, to be kept. Where there is nobody to reduce them with, the second copy is for nothing, and the memory of
both is given back to the system every step and comes back page by page: 1.1 of the 2.5 s of ViT-B's step in bf16 (8 views,
two cores with AMX).
"""

import ctypes
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from model.layers import Attention, product

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>
SHORT = 256  # tokens, up to which plain products are quicker in bf16; at 944 they are not


def keep_memory() -> None:
    """Have the C library keep what a step gives back: the next one asks for the same, and pages that come fresh from the
    system cost time. ViT-B in bf16, 8 views, two cores with AMX: 1.90 s a step instead of 2.23."""
    with suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_MAX, 0)  # large blocks, too, from the heap
        mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks


def plain_product(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    """Attention as three operations, whose matrix of all pairs is kept; of few tokens in bf16, else the model's own.

    The backward pass of torch's flash kernel for CPUs is slow in bf16: 8 views of ViT-B's encoder (160 tokens), one core with
    AMX, take 9 + 107 ms of CPU time, this 12 + 16. Scores are rounded to bf16: gradients are within 0.9 % of float64's, where
    the kernel's are within 0.4 % (relative L2, random inputs).
    """
    if k_BHNd.shape[2] > SHORT or q_BHNd.dtype != torch.bfloat16:
        return product(q_BHNd, k_BHNd, v_BHNd)
    scores = torch.matmul(q_BHNd * q_BHNd.shape[-1] ** -0.5, k_BHNd.transpose(-1, -2))
    return torch.matmul(scores.softmax(-1), v_BHNd)


def attend_plainly(model: nn.Module) -> None:
    """For every attention of a model on a CPU that was not told which kernel to take."""
    for module in model.modules():
        if isinstance(module, Attention) and module.kernel == "auto":
            module.product = plain_product


class KeptGradients:
    """In the place of FSDP2's reduce-scatter for one group of parameters, of one process."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._kept: torch.Tensor | None = None
        self._copied_to: torch.Tensor | None = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Asked twice in turn: for what the gradients are copied to, and for the result, which is the same tensor."""
        if self._copied_to is not None:
            given, self._copied_to = self._copied_to, None
            assert given.shape == torch.Size(size) and given.dtype == dtype, (given.shape, size, given.dtype, dtype)
            return given
        if self._kept is None:
            self._kept = torch.empty(size, dtype=dtype, device=device)
        holds_some = any(parameter.grad is not None for parameter in self._parameters)  # to which these are to be added
        self._copied_to = torch.empty_like(self._kept) if holds_some else self._kept
        return self._copied_to

    def __call__(self, *_: object, **__: object) -> None:
        raise AssertionError("a single process reduces nothing")


def keep_gradients(model: nn.Module) -> None:
    """For every group of a sharded model whose weights have been made. Call it in a single process, on a CPU."""
    taken: set[nn.Parameter] = set()
    for module in reversed(list(model.modules())):  # inner ones first: outer groups have the rest
        if isinstance(module, FSDPModule):
            group = [parameter for parameter in module.parameters() if parameter not in taken]
            taken.update(group)
            module.set_custom_reduce_scatter(KeptGradients(group))  # type: ignore[arg-type]
