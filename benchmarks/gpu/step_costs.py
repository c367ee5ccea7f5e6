"""What a training step consists of, by kind of kernel."""

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import COSTS
from benchmarks.parts.path_parts import ModelWork
from benchmarks.parts.stopwatch import Work

KINDS = (  # of kernels, by parts of their names; the first that fits counts. Of Inductor's only templates are products
    ("tokens", ("tokens_kernel", "index_select")),
    ("matrix_products", ("triton_tem",)),
    ("elementwise_and_norms", ("triton_",)),
    ("attention", ("flash", "fmha", "sdpa", "attention", "softmax")),
    ("matrix_products", ("gemm", "cutlass", "nvjet", "addmm", "::mm", "linear", "xmma")),
    ("optimizer", ("adam", "multi_tensor", "foreach", "norm_kernel_l2")),
    ("copies", ("memcpy", "memset", "copy", "cat", "nccl")),
    ("elementwise_and_norms", ("elementwise", "layer_norm", "layernorm", "gelu", "reduce", "add", "mul")),
)


def traced(bench: Bench, work: Work, steps: int, file: str) -> profile:
    """So many steps, and their trace as a file of the suite's."""
    on_gpu = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as trace:
        for _ in range(steps):
            work.work()
        if on_gpu:
            torch.cuda.synchronize()
    trace.export_chrome_trace(str(bench.out / file))
    return trace


def costs(bench: Bench, work: ModelWork) -> None:
    """Shares of the device's time by kind of kernel, the three that cost most, and the trace of a step."""
    on_gpu, steps = bench.device.type == "cuda", bench.size(2, 1)
    work.work()
    trace = traced(bench, work, steps, "step.json.gz")
    times: dict[str, float] = {}
    for event in trace.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        on_device = event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
        if spent > 0 and (on_device or not on_gpu):
            times[event.key] = times.get(event.key, 0.0) + spent / 1e3 / steps
    total, by_kind = sum(times.values()), dict.fromkeys(COSTS, 0.0)
    for kernel, spent in times.items():
        by_kind[kind_of(kernel)] += spent
    largest = sorted(times.items(), key=lambda item: -item[1])[:3]
    for kind, spent in by_kind.items():
        bench.figure(f"profile/{kind}", spent / total, "of the step", ms=spent)
    told = "; ".join(f"{kernel[:90]}: {spent:.1f} ms, {spent / total:.0%}" for kernel, spent in largest)
    bench.remark(f"The three kernels that cost most of a ViT-g step of {total:.0f} ms: {told}")


def kind_of(kernel: str) -> str:
    """A kernel's or operator's kind, by its name."""
    name = kernel.lower()
    return next((kind for kind, words in KINDS if any(word in name for word in words)), "other")
