"""The machine of the GPU suite, and its ceilings: copy bandwidth and matrix rates, on random data."""

import importlib
import importlib.util
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.parts.results import describe_machine
from pipeline.decoding.decoder_choice import what_dali_lacks
from train.compute.device_speed import gemm_flops

PACKAGES = ("torch", "triton", "timm", "nvidia-dali-cuda130", "av", "numpy", "pyarrow")


def ceilings(bench: Bench) -> None:
    """What a kernel or a step can be compared with."""
    bench.notes.write("machine", part=bench.part, facts=facts())
    device = bench.device
    count = bench.size(2**31, 2**20)
    bench.figure("copy", copy_rate(device, count) / 1e9, "GB/s", bytes_read_and_written=2 * count)
    side = bench.size(8192, 128)
    torch.set_float32_matmul_precision("high")
    for kind, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float32)):
        with bench.attempt(f"gemm/{kind}"):
            bench.figure(f"gemm/{kind}", gemm_flops(device, dtype, side, bench.size(10, 2)) / 1e12, "TFLOP/s", side=side)
    with bench.attempt("host_to_device"):
        _host_to_device(bench)


def copy_rate(device: torch.device, count: int) -> float:
    """Bytes/s, read and written, of copying `count` bytes from one place of the device to another."""
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / time_of(lambda: target.copy_(source), device, 10)


def time_of(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds, the median of `repeats` after two that warm up: by the device's clock on a GPU."""
    for _ in range(2):
        work()
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            began = perf_counter()
            work()
            seconds.append(perf_counter() - began)
    return median(seconds)


def _host_to_device(bench: Bench) -> None:
    if bench.device.type != "cuda":
        raise AbsentError("there is no GPU to copy to")
    source = torch.randint(0, 255, (2**28,), dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=bench.device)
    seconds = time_of(lambda: target.copy_(source, non_blocking=True), bench.device, 10)
    bench.figure("host_to_device", len(source) / seconds / 1e9, "GB/s")


def facts() -> dict[str, Any]:
    """For the head of the report."""
    found: dict[str, Any] = {"is": describe_machine(), "python": platform.python_version(), "kernel": platform.release()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"cuda": torch.version.cuda, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"multiprocessors": properties.multi_processor_count, "driver": _driver()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            module = name.split("-")[0]  # unpacked without its metadata
            found[name] = "of unknown version" if importlib.util.find_spec(module) else "missing"
    return {**found, "nvdec": what_dali_lacks() or "can be expected"}


def _driver() -> str | None:
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # see gpu_usage
        return None
