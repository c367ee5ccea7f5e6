"""Part 3 of the GPU suite: single operations. uint8 views to tokens by every method, attention by every backend, and what an
aligned width would gain. A dry walk runs the Triton kernel in Triton's interpreter, on a few tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.machine import copy_rate, time_of
from benchmarks.gpu.plan import TOKEN_METHODS, TOKEN_MODELS
from benchmarks.parts.step_work import random_batch, tokens_of
from model.config import MODELS, ModelConfig
from model.layers import Mlp
from model.patches import token_function
from model.pixels import patches_and_targets, token_bytes

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
GAIN = 1.03  # from which on a change is advised


def tokens(bench: Bench) -> None:
    """Error against float64, bytes per second, and the share of what a plain copy reaches. The bytes are the least that the
    operation can move: what is read twice counts once."""
    copy = copy_rate(bench.device, bench.size(2**31, 2**20)) / 1e9
    for model in TOKEN_MODELS:
        rates: dict[str, float] = {}
        for method in TOKEN_METHODS:
            with bench.attempt(f"tokens/{model}/{method}", f"tokens/{model}/{method}/error"):
                rates[method] = _tokens(bench, model, method, copy)
        if len(rates) > 1:
            best = max(rates, key=lambda method: rates[method])
            why = ", ".join(f"{method} {rate:.0f} GB/s" for method, rate in rates.items()) + f"; a copy {copy:.0f}"
            bench.recommend(f"model/patches.py token_function auto on CUDA ({model})", best, "triton", why)


def _tokens(bench: Bench, model: str, method: Any, copy: float) -> float:
    """One method on one model's batch -> GB/s."""
    if bench.dry and method == "compiled":
        raise AbsentError("nothing is compiled in a dry walk: it takes a CPU minutes")
    config, views = MODELS[bench.size(model, "tiny")], bench.size(64, 1)
    batch, counts = random_batch(config, views, 0.5, bench.device), tokens_of(config, dual=True)
    assert batch.visible is not None and batch.decoded is not None
    visible, loss = batch.visible, batch.decoded[:, : counts.loss]
    if bench.dry:  # the interpreter takes milliseconds a token
        visible, loss = visible[:, :3], loss[:, :5]
    dtype = torch.bfloat16
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
    bench.figure(f"tokens/{model}/{method}/error", error, "relative L2", patches_as_fp64_rounded=rounded)
    seconds = time_of(call, bench.device, bench.size(20, 1))
    moved = views * token_bytes(visible.shape[1], loss.shape[1], config.patch_values, dtype)
    detail = {"ms": 1e3 * seconds, "views": views, "least_bytes": moved, "against": "a copy"}
    bench.figure(f"tokens/{model}/{method}", moved / seconds / 1e9, "GB/s", copy, **detail)
    return moved / seconds / 1e9


def attention(bench: Bench) -> None:
    """ViT-g's two attentions, forward and backward, by every backend of torch's."""
    config: ModelConfig = MODELS[bench.size("vit-g", "tiny")]
    counts, views = tokens_of(config, dual=True), bench.size(32, 1)
    shapes = {
        "encoder": (counts.visible, config.encoder_heads, config.encoder_dim),
        "decoder": (counts.visible + counts.decoded, config.decoder_heads, config.decoder_dim),
    }
    for place, (number, heads, dim) in shapes.items():
        rates: dict[str, float] = {}
        for name, backend in BACKENDS.items():
            with bench.attempt(f"attention/{place}/{name}"):
                rates[name] = _attention(bench, backend, (views, heads, number, dim // heads))
                detail = {"views": views, "heads": heads, "tokens": number, "head_size": dim // heads}
                bench.figure(f"attention/{place}/{name}", rates[name], "TFLOP/s", rates.get("flash"), **detail)
        best = max(rates, key=lambda name: rates[name], default="flash")
        if rates.get(best, 0) > GAIN * rates.get("flash", 0):
            why = ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in rates.items())
            bench.recommend(f"model/layers.py SDPA_BACKENDS, first ({place})", best, "flash", why)


def _attention(bench: Bench, backend: SDPBackend, shape: tuple[int, ...]) -> float:
    """TFLOP/s: two products forward, five backward. Raises AbsentError if the backend does not take it."""
    dtype = bench.size(torch.bfloat16, torch.float32)
    q, k, v, gradient = (torch.randn(shape, device=bench.device, dtype=dtype, requires_grad=i < 3) for i in range(4))

    def both() -> None:
        with sdpa_kernel(backend):
            scaled_dot_product_attention(q, k, v).backward(gradient)

    try:
        seconds = time_of(both, bench.device, bench.size(10, 1))
    except RuntimeError as error:
        if any(phrase in str(error).lower() for phrase in ("no available kernel", "no viable backend")):
            raise AbsentError(f"torch has no such kernel for it on {bench.device.type}") from error
        raise
    views, heads, number, size = shape
    return 14 * views * heads * number * number * size / seconds / 1e12


def _layer(bench: Bench, dim: int, width: int, rows: int) -> float:
    """Seconds of both passes."""
    kind = {"device": bench.device, "dtype": bench.size(torch.bfloat16, torch.float32)}
    layer = Mlp(dim, width).to(**kind)
    x, gradient = (torch.randn(rows, dim, **kind) for _ in range(2))
    x.requires_grad_()
    return time_of(lambda: layer(x).backward(gradient), bench.device, bench.size(10, 1))


def widths(bench: Bench) -> None:
    """ViT-g's decoder MLP at its official width, 2234, and at 2240, the next multiple of 64: forward and backward."""
    config = MODELS["vit-g"]
    rows = bench.size(64 * 1232, 8)
    seconds: dict[int, float] = {}
    for width in (2240, 2234):
        with bench.attempt(f"width/{width}"):
            seconds[width] = _layer(bench, config.decoder_dim, width, rows)
            bench.figure(f"width/{width}", 1e3 * seconds[width], "ms", 1e3 * seconds[2240], rows=rows)
    if len(seconds) == 2 and seconds[2234] > GAIN * seconds[2240]:
        why = f"{1e3 * seconds[2234]:.3f} ms at 2234, {1e3 * seconds[2240]:.3f} at 2240, a layer of 64 views, both passes"
        bench.recommend("width of ViT-g's decoder MLP inside", 2240, 2234, why)
