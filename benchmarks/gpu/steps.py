"""Part 4 of the GPU suite: the training step, 16 x 224², on a batch of random pixels.

The bar is ViT-g in bf16: 45 % of the data sheet's 989 TFLOP/s with all of the step on the clock, about 310 views/s; the goal
75 % of the card's own matrix products, about 400. Where it falls short, its profile says what costs most, and the modes what
was tried. FLOPs are the executed ones, three forward passes' worth; recomputation does not count.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.plan import COSTS, POLICIES, STEP_PRECISIONS
from benchmarks.gpu.step_costs import costs
from benchmarks.parts.path_parts import ModelWork
from benchmarks.parts.step_work import step_flops, step_work, tokens_of
from benchmarks.parts.stopwatch import Part, Stopwatch, Work
from model.config import MODELS, ModelConfig
from train.compute.activation_checkpointing import recomputed_blocks
from train.compute.device_speed import gemm_flops, peak_flops
from train.compute.memory import activation_bytes
from train.compute.optimizer import set_lr
from train.compute.parallel import started
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig, Policy
from train.loop import step
from train.stages.pretraining import autoencoder_cost

VIEWS = {"vit-b": 256, "vit-l": 192, "vit-h": 128, "vit-g": 128}  # with 100 GB and more; a fourth with less
LARGE = 100e9  # bytes
BAR, GOAL = 0.45, 0.75  # of the data sheet, and of the measured matrix products
STATE_BYTES = 18  # of a parameter: weight, gradient and two moments in float32, and its copy in the compute type
RESERVE = 6e9  # bytes for the context, the fragments of the allocator, and what a step's ends take


def vit_g(bench: Bench) -> None:
    """The bar; what the step consists of; and that the host never waits."""
    with kept_step(bench, "vit-g") as (work, views):
        rate = put_down(bench, "vit-g/dual", work, "vit-g", views)
        bars(bench, rate, views)
        with bench.attempt(*(f"profile/{cost}" for cost in COSTS)):
            costs(bench, work)
        with bench.attempt("no_host_sync"):
            no_host_sync(bench, work)


def vit_b(bench: Bench) -> None:
    """And the guard, which is the same for all."""
    with kept_step(bench, "vit-b") as (work, views):
        put_down(bench, "vit-b/dual", work, "vit-b", views)
        with bench.attempt("guard/skips", "guard/goes_on"):
            guard(bench, work)


@contextmanager
def kept_step(
    bench: Bench, name: str, views: int | None = None, dual: bool = True, **changes: Any
) -> Iterator[tuple[ModelWork, int]]:
    """A model's step in bf16 (fp32 in a dry walk), warm, and its views; everything of it is gone afterwards."""
    views = views or max(1, views_of(bench, name) // (1 if dual else 2))
    with started(bench.device.type) as ranks:
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        work = step_work(model_of(bench, name), views, compute_of(bench, **changes), ranks, dual=dual)
        try:
            yield work, views
        finally:
            work.__dict__.clear()  # whoever still holds it must not hold the model beyond its process group
            gc.collect()


def put_down(bench: Bench, figure: str, work: ModelWork, name: str, views: int, baseline: float | None = None) -> float:
    """Views/s, and the shares of the data sheet's and of the measured rate. Returns it."""
    part = timed(bench, work, 2.0, 3)
    bench.figure(figure, part.views, "views/s", baseline, **shares(bench, name, part.views, views), rounds=part.rates)
    return part.views


def timed(bench: Bench, work: Work, seconds: float = 1.5, rounds: int = 2) -> Part:
    """So many turns of it."""
    part = Part("step", "step", 1, work)
    Stopwatch(bench.size(seconds, 0.01), bench.device).rounds([part], bench.size(rounds, 1))
    return part


def shares(bench: Bench, name: str, rate: float, views: int, dual: bool = True, precision: str = "bf16") -> dict[str, Any]:
    """What a rate in views/s is, in the device's terms."""
    tflops = step_flops(model_of(bench, name), views, dual) / views * rate / 1e12
    found: dict[str, Any] = {"tflops": tflops, "views": views, "ms": 1e3 * views / rate}
    if peak := peak_flops(bench.device, PRECISIONS[precision]):
        found["of_data_sheet"] = tflops * 1e12 / peak
    if bench.device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["of_gemm"] = tflops * 1e12 / gemm_flops(bench.device, PRECISIONS[precision].encoder)
    return found


def bars(bench: Bench, rate: float, views: int) -> None:
    """ViT-g's two."""
    found = shares(bench, "vit-g", rate, views)
    for figure, key, bar in (("bar/of_data_sheet", "of_data_sheet", BAR), ("bar/of_gemm", "of_gemm", GOAL)):
        if key in found:
            bench.figure(figure, found[key], "share", bar, met=found[key] >= bar, views_per_s=rate)
        else:
            bench.absent(figure, "the rate of this device is in no data sheet we know" if key == "of_data_sheet" else "no GPU")


def no_host_sync(bench: Bench, work: ModelWork) -> None:
    """Two whole steps in which waiting for the device is an error."""
    if bench.device.type != "cuda":
        raise AbsentError("there is no device to wait for")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            work.work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    bench.figure("no_host_sync", 1.0, "of two steps")


def guard(bench: Bench, work: ModelWork) -> None:
    """A step whose loss is not a number changes nothing; the next one is taken."""
    training, batch = work.training, next(work.cached)
    assert batch.loss_weight is not None
    weight = batch.loss_weight
    set_lr(training.optimizer, 1e-4)

    def taken(factor: float) -> float:
        weighted = replace(batch, loss_weight=weight * factor)
        return float(step(training, 1, lambda: weighted).taken)

    def state() -> list[torch.Tensor]:
        moments = [value for held in training.optimizer.state.values() for value in held.values() if value.ndim]
        return [tensor.detach().clone() for tensor in (*training.parameters, *moments)]

    before = state()
    skipped = taken(float("nan")) == 0
    unchanged = sum(bool((a == b).all()) for a, b in zip(before, state(), strict=True)) / len(before)
    bench.figure("guard/skips", unchanged, "of tensors unchanged", skipped=skipped)
    went_on = taken(1.0) == 1
    after = state()
    moved = sum(not bool((a == b).all()) for a, b in zip(before, after, strict=True)) / len(before)
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in after)
    bench.figure("guard/goes_on", float(went_on and finite), "of one step", tensors_changed=moved)
    set_lr(training.optimizer, 0.0)


def modes(bench: Bench) -> None:
    """ViT-B, where launching costs most: eager, blocks compiled, the whole step as one CUDA graph."""
    eager: float | None = None
    with bench.attempt("mode/eager"), kept_step(bench, "vit-b", compile=False) as (work, views):
        eager = put_down(bench, "mode/eager", work, "vit-b", views)
    with bench.attempt("mode/compiled", "mode/cuda_graph"):
        if bench.dry:
            raise AbsentError("nothing is compiled in a dry walk: it takes a CPU minutes")
        with kept_step(bench, "vit-b", compile=True) as (work, views):
            put_down(bench, "mode/compiled", work, "vit-b", views, eager)
            with bench.attempt("mode/cuda_graph"):
                captured(bench, work, views, eager)


def captured(bench: Bench, work: ModelWork, views: int, eager: float | None) -> None:
    """The step captured as a CUDA graph, and replayed."""
    for group in work.training.optimizer.param_groups:
        group["capturable"] = True
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work.work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.work()
    replay = timed(bench, Replay(graph, views), 2.0, 3)
    bench.figure("mode/cuda_graph", replay.views, "views/s", eager, **shares(bench, "vit-b", replay.views, views))


class Replay(Work):
    """A captured step as a contestant."""

    def __init__(self, graph: torch.cuda.CUDAGraph, views: int) -> None:
        self.graph, self.views = graph, views

    def work(self) -> int:
        self.graph.replay()
        return self.views


def precisions(bench: Bench) -> None:
    """ViT-B in bf16, in fp16, and as in the paper: encoder in fp16, decoder in fp32."""
    first: float | None = None
    for precision in STEP_PRECISIONS:
        with bench.attempt(f"precision/{precision}"):
            rate, detail = measured(bench, "vit-b", precision=precision)
            bench.figure(f"precision/{precision}", rate, "views/s", first, **detail)
            first = first or rate


def vit_l(bench: Bench) -> None:
    """Dual masking."""
    whole(bench, "vit-l", dual=True)


def vit_h(bench: Bench) -> None:
    """Dual masking."""
    whole(bench, "vit-h", dual=True)


def encoder_only(bench: Bench) -> None:
    """Every model without the decoder's masking (VideoMAE V1): twice the decoder tokens, so half the views."""
    for name in ("vit-g", "vit-b", "vit-l", "vit-h"):
        if not bench.dry and bench.left() < 20:
            bench.absent(f"{name}/encoder_only", f"no time: {bench.left():.0f} s were left")
        else:
            with bench.attempt(f"{name}/encoder_only"):
                whole(bench, name, dual=False)


def whole(bench: Bench, name: str, dual: bool) -> None:
    """A model's step."""
    rate, detail = measured(bench, name, dual=dual)
    bench.figure(f"{name}/{'dual' if dual else 'encoder_only'}", rate, "views/s", **detail)


def measured(
    bench: Bench, name: str, dual: bool = True, precision: str = "bf16", views: int | None = None, **changes: Any
) -> tuple[float, dict[str, Any]]:
    """-> (views/s, what else there is to say), which is found out when the step's memory is free."""
    with kept_step(bench, name, views, dual, precision=precision, **changes) as (work, views):
        rate = timed(bench, work).views
    return rate, shares(bench, name, rate, views, dual, precision)


def largest(bench: Bench) -> None:
    """ViT-g's largest batch by checkpointing policy: what `train/compute/memory.py` predicts, tried, and less until it fits."""
    for policy in POLICIES:
        with bench.attempt(f"largest/{policy}"):
            _largest(bench, policy)


def _largest(bench: Bench, policy: str) -> None:
    """Up to three tries, each with an eighth less."""
    if bench.device.type != "cuda":
        raise AbsentError("there is no GPU memory to fill")
    cost = autoencoder_cost(MODELS["vit-g"], tokens_of(MODELS["vit-g"], True), PRECISIONS["bf16"])
    recomputed = recomputed_blocks(Policy.parse(policy), cost, 1)
    room = torch.cuda.mem_get_info()[1] - RESERVE - STATE_BYTES * cost.sizes.whole
    predicted = int(room // activation_bytes(cost, recomputed))
    views = predicted
    for _ in range(3):
        try:
            rate, detail = measured(bench, "vit-g", views=views, activation_checkpointing=policy)
        except torch.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
            views = views * 7 // 8
            continue
        bench.figure(f"largest/{policy}", views, "views", predicted, views_per_s=rate, **detail)
        return
    raise RuntimeError(f"not even {views * 8 // 7} views fit, where {predicted} were predicted")


def model_of(bench: Bench, name: str) -> ModelConfig:
    return MODELS[bench.size(name, "tiny")]


def views_of(bench: Bench, name: str) -> int:
    """Of a step, in one forward pass."""
    if bench.dry:
        return 2
    return VIEWS[name] // (1 if torch.cuda.get_device_properties(bench.device).total_memory > LARGE else 4)


def compute_of(bench: Bench, **changes: Any) -> ComputeConfig:
    """The recipes' defaults; fp32 and eager in a dry walk."""
    if bench.dry:
        changes |= {"precision": "fp32", "compile": False}
    return replace(ComputeConfig(device=bench.device.type), **changes)  # type: ignore[arg-type]
