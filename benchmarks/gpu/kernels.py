"""Single operations: uint8 views to tokens by every method, attention by every backend, and what an aligned width gains. A dry
walk runs the Triton kernel in Triton's interpreter, on a few tokens."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.machine import copy_rate
from benchmarks.parts.step_work import random_batch, tokens_of
from model.config import MODELS, ModelConfig, TokenMethod
from model.layers import Mlp
from model.patches import token_function
from model.pixels import patches_and_targets, token_bytes
from train.compute.attention import gradients
from train.compute.device_speed import seconds_of

METHODS: tuple[TokenMethod, ...] = ("reference", "compiled", "triton")
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def tokens(bench: Bench) -> None:
    """Bytes per second beside a plain copy's, and the error against float64. The bytes are the least that the operation can
    move: what is read twice counts once."""
    copy = copy_rate(bench.device, bench.size(2**31, 2**20)) / 1e9
    for model in ("vit-g", "vit-b"):
        for method in METHODS:
            with bench.attempt(f"tokens/{model}/{method}"):
                _tokens(bench, model, method, copy)


def _tokens(bench: Bench, model: str, method: TokenMethod, copy: float) -> None:
    if bench.dry and method == "compiled":
        raise AbsentError("nothing is compiled in a dry walk: it takes a CPU minutes")
    config, views, dtype = MODELS[bench.size(model, "tiny")], bench.size(128, 1), torch.bfloat16
    batch, counts = random_batch(config, views, 0.5, bench.device), tokens_of(config, dual=True)
    assert batch.visible is not None and batch.decoded is not None
    visible, loss = batch.visible, batch.decoded[:, : counts.loss]
    if bench.dry:  # the interpreter takes milliseconds a token
        visible, loss = visible[:, :3], loss[:, :5]
    try:
        function = token_function(method, bench.device, dtype)
    except ValueError as reason:
        raise AbsentError(str(reason)) from reason

    def call() -> tuple[Tensor, Tensor]:
        return function(batch.views, visible, loss, config.patch_size, config.tubelet_size, dtype)

    patches, targets = call()
    few = slice(0, min(views, 8))  # in float64 a batch of targets is large
    exact_patches, exact_targets = patches_and_targets(
        batch.views[few], visible[few], loss[few], config.patch_size, config.tubelet_size, torch.float64
    )
    error = float((targets[few] - exact_targets).norm() / exact_targets.norm())
    rounded = float((patches[few] == exact_patches.to(dtype)).float().mean())
    seconds = seconds_of(call, bench.device, least=bench.size(8, 1))
    moved = views * token_bytes(visible.shape[1], loss.shape[1], config.patch_values, dtype)
    detail = {"ms": 1e3 * seconds, "views": views, "error": error, "patches_as_fp64_rounded": rounded}
    bench.figure(f"tokens/{model}/{method}", moved / seconds / 1e9, "GB/s", copy, **detail)


def attention(bench: Bench) -> None:
    """ViT-g's two attentions as its blocks have them, forward and backward, by backend."""
    config: ModelConfig = MODELS[bench.size("vit-g", "tiny")]
    counts, views = tokens_of(config, dual=True), bench.size(128, 1)
    shapes = {
        "encoder": (counts.visible, config.encoder_heads, config.encoder_dim),
        "decoder": (counts.visible + counts.decoded, config.decoder_heads, config.decoder_dim),
    }
    for place, (number, heads, dim) in shapes.items():
        shape, flash = (views, number, 3, heads, dim // heads), None
        for name, backend in BACKENDS.items():
            with bench.attempt(f"attention/{place}/{name}"):
                rate, error = attention_rate(bench.device, bench.size(torch.bfloat16, torch.float32), backend, shape)
                bench.figure(f"attention/{place}/{name}", rate / 1e12, "TFLOP/s", flash, shape=shape, error=error)
                flash = flash or rate / 1e12


def attention_rate(
    device: torch.device, dtype: torch.dtype, backend: SDPBackend, shape: tuple[int, int, int, int, int]
) -> tuple[float, float]:
    """Of packed queries, keys and values (B, N, 3, H, d), as the blocks have them -> (FLOP/s of two products forward and five
    backward, largest relative L2 error of result and gradients against float32's). Raises AbsentError if the backend does not
    take them."""
    views, number, _, heads, size = shape
    qkv = torch.randn(shape, device=device, dtype=dtype)
    up = torch.randn(views, heads, number, size, device=device, dtype=dtype)

    def by(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return scaled_dot_product_attention(q, k, v)

    try:
        ours = gradients(partial(by, backend), qkv, up)
    except RuntimeError as refused:
        if any(phrase in str(refused).lower() for phrase in ("no available kernel", "no viable backend")):
            raise AbsentError(f"torch has no such kernel for it on {device.type}") from refused
        raise
    few = slice(0, 4)
    exact = gradients(partial(by, SDPBackend.MATH), qkv[few].float(), up[few].float())
    error = max(float((ours[name][few].float() - value).norm() / value.norm()) for name, value in exact.items())
    least = 8 if device.type == "cuda" else 1
    seconds = seconds_of(partial(gradients, partial(by, backend), qkv, up), device, least=least)
    return 14 * views * heads * number * number * size / seconds, error


def widths(bench: Bench) -> None:
    """ViT-g's decoder MLP at its official width, 2234, and at 2240, the next multiple of 64: forward and backward."""
    dim, rows, first = MODELS["vit-g"].decoder_dim, bench.size(128 * 1232, 8), None
    kind: dict[str, Any] = {"device": bench.device, "dtype": bench.size(torch.bfloat16, torch.float32)}
    x, up = torch.randn(rows, dim, **kind, requires_grad=True), torch.randn(rows, dim, **kind)
    for width in (2240, 2234):
        layer = Mlp(dim, width).to(**kind)
        ms = 1e3 * seconds_of(partial(_both_passes, layer, x, up), bench.device)
        bench.figure(f"width/{width}", ms, "ms", first, rows=rows)
        first = first or ms


def _both_passes(layer: Mlp, x: Tensor, up: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), up)
