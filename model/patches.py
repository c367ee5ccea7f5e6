"""uint8 views -> what the model computes with: normalised visible patches and the targets of the loss tokens.

Only the patches asked for are read. The float clip (9.6 MB a view of 16 x 224²) and the targets of all tokens are never
built. Pre-training asks for both in one call, `patches_and_targets` or what `token_function` puts in its place: the same
compiled, or the kernel of model/token_kernel.py.

B views, T frames, N tokens (t-major, then row, column), V visible tokens, L loss tokens, P values of a patch (tubelet
frame, row, column, channel: channel fastest).
"""

import functools
import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from model.compiler import compiled, compiler_missing
from model.config import TokenMethod
from model.pixels import patches_and_targets

TokenFunction = Callable[..., tuple[Tensor, Tensor]]  # `patches_and_targets` or its equal


def token_function(method: TokenMethod, device: torch.device, dtype: torch.dtype) -> TokenFunction:
    """What makes patches and targets on a device, by name.

    "auto" is the kernel on CUDA, where it can be built, and the reference elsewhere: on a CPU compiling gains nothing (ViT-B, 8
    views, one core: 132 ms of CPU time beside 110). float64 is always the reference. Raises ValueError for "triton" and
    "compiled" where they cannot be had.
    """
    if dtype == torch.float64:
        return patches_and_targets
    if method == "auto":
        method = "triton" if device.type == "cuda" and triton_missing(device) is None else "reference"
    if method == "triton":
        if reason := triton_missing(device):
            raise ValueError(f'--compute.tokens triton: {reason}; use "auto", "reference" or "compiled"')
        from model import token_kernel

        return token_kernel.patches_and_targets
    if method == "compiled":
        if reason := compiler_missing(device.type):
            raise ValueError(f'--compute.tokens compiled: {reason}; or use "auto" or "reference"')
        return compiled(patches_and_targets)
    return patches_and_targets


@functools.cache
def triton_missing(device: torch.device) -> str | None:
    """Why the kernel cannot run on a device, or None. Triton's interpreter runs it anywhere, slowly."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it has no {device.type} code (with TRITON_INTERPRET=1 in the environment its interpreter runs it, slowly)"
    return compiler_missing("cuda") if device.type == "cuda" else None
