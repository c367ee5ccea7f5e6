"""Whole training steps, 16 x 224², on random pixels: `model_step.py` on the suite's device, and what must hold of a step there.

The bar is ViT-g in bf16: 45 % of the data sheet's 989 TFLOP/s with all of the step on the clock, about 310 views/s. FLOPs are
the executed ones, three forward passes' worth; recomputation does not count.
"""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.model_step import CONTEST
from benchmarks.parts.path_parts import ModelWork
from benchmarks.parts.step_contest import StepOptions, measure_precision
from pipeline.loader import Batch
from train.compute.optimizer import set_lr
from train.compute.parallel import started
from train.loop import step as one_step
from train.training import Training

VIEWS = {"vit-g": 128, "vit-b": 256}  # in one forward pass, with 100 GB and more; a fourth with less
LARGE = 100e9  # bytes
KINDS = (  # of kernels, by parts of their names; the first that fits counts. Of Inductor's only templates are products
    ("tokens", ("tokens_kernel", "index_select")),
    ("matrix products", ("triton_tem",)),
    ("elementwise and norms", ("triton_",)),
    ("attention", ("flash", "fmha", "sdpa", "attention", "softmax")),
    ("matrix products", ("gemm", "cutlass", "nvjet", "addmm", "::mm", "linear", "xmma")),
    ("optimizer", ("adam", "multi_tensor", "foreach", "norm_kernel_l2")),
    ("copies", ("memcpy", "memset", "copy", "cat", "nccl")),
    ("elementwise and norms", ("elementwise", "layer_norm", "layernorm", "gelu", "reduce", "add", "mul")),
)


def step(bench: Bench, model: str, checkpointing: str, attention: Any) -> None:
    """Views/s, the share of the data sheet and of the largest matrix product; memory; what it consists of; what must hold."""
    views = views_of(bench, model)
    options = StepOptions(
        model=bench.size(model, "tiny"),
        views=views,
        peer=False,
        compile=bench.size(None, False),
        activation_checkpointing=checkpointing,
        attention=attention,
        seconds=bench.size(2.0, 0.01),
        rounds=bench.size(2, 1),
    )
    with started(bench.device.type) as ranks, ExitStack() as stack:
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        measured = measure_precision(CONTEST, options, views, bench.size("bf16", "fp32"), ranks, stack)
        work = measured.step.work
        assert isinstance(work, ModelWork)
        with cleared(work):
            bench.put(measured.results(f"step/{options.model}"), views=views, ms=1e3 * views / measured.step.views)
            if bench.device.type == "cuda":
                bench.figure("memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
            if checkpointing == "none":
                with bench.attempt("kernels of a step"):
                    costs(bench, work)
            if model == "vit-b":
                with bench.attempt("steps without waiting"):
                    do_not_wait(work)
                    bench.remark("Two steps, and the host waited for the device in neither.")
                with bench.attempt("skipped"):
                    changed = changed_by_a_skipped_step(work.training, next(work.cached))
                    bench.figure("skipped", len(changed), "tensors changed by a step whose loss is NaN", names=changed[:8])


def views_of(bench: Bench, model: str) -> int:
    """Of a step, in one forward pass."""
    if bench.dry:
        return 4
    return VIEWS[model] // (1 if torch.cuda.get_device_properties(bench.device).total_memory > LARGE else 4)


@contextmanager
def cleared(work: ModelWork) -> Iterator[None]:
    """Whoever still holds it afterwards must not hold the model beyond its process group."""
    try:
        yield
    finally:
        work.__dict__.clear()
        gc.collect()


def costs(bench: Bench, work: ModelWork) -> None:
    """Shares of the device's time by kind of kernel, and the three that cost most."""
    on_gpu, steps = bench.device.type == "cuda", bench.size(2, 1)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as trace:
        for _ in range(steps):
            work.work()
        if on_gpu:
            torch.cuda.synchronize()
    times: dict[str, float] = {}  # ms
    for event in trace.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        on_device = event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
        if spent > 0 and (on_device or not on_gpu):
            times[event.key] = times.get(event.key, 0.0) + spent / 1e3 / steps
    total, by_kind = sum(times.values()), dict[str, float]()
    for kernel, spent in times.items():
        by_kind[kind_of(kernel)] = by_kind.get(kind_of(kernel), 0.0) + spent
    for kind, spent in sorted(by_kind.items(), key=lambda item: -item[1]):
        bench.figure(f"share/{kind}", spent / total, "of the step", ms=spent)
    largest = sorted(times.items(), key=lambda item: -item[1])[:3]
    told = "; ".join(f"{kernel[:90]}: {spent:.1f} ms, {spent / total:.0%}" for kernel, spent in largest)
    bench.remark(f"What costs most of {total:.0f} ms: {told}")


def kind_of(kernel: str) -> str:
    """A kernel's or operator's kind, by its name."""
    name = kernel.lower()
    return next((kind for kind, words in KINDS if any(word in name for word in words)), "other")


def do_not_wait(work: ModelWork) -> None:
    """Two steps in which waiting for a GPU is an error. Raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else 0
    try:
        if work.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(2):
            work.work()
    finally:
        if work.device.type == "cuda":
            torch.cuda.set_sync_debug_mode(before)


def changed_by_a_skipped_step(training: Training, batch: Batch) -> list[str]:
    """Parameters and moments that a step whose loss is not a number changes. Raises RuntimeError if it is taken, or the next
    one, with a loss that is one, is not."""
    assert batch.loss_weight is not None
    poisoned = replace(batch, loss_weight=batch.loss_weight * float("nan"))
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in training.model.named_parameters()}

    def state() -> dict[str, torch.Tensor]:
        values = {names[parameter]: parameter for parameter in training.parameters}
        for parameter, held in training.optimizer.state.items():
            values |= {f"{names[parameter]}, {kind}": value for kind, value in held.items() if value.ndim}
        return {name: value.detach().clone() for name, value in values.items()}

    set_lr(training.optimizer, 1e-4)
    try:
        before = state()
        if float(one_step(training, 1, lambda: poisoned).taken):
            raise RuntimeError("a step was taken whose loss is not a number")
        after = state()
        if not float(one_step(training, 1, lambda: batch).taken):
            raise RuntimeError("no step is taken after one that was skipped")
    finally:
        set_lr(training.optimizer, 0.0)
    return [name for name, value in before.items() if not bool((value == after[name]).all())]
