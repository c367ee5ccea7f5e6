"""The machine of the GPU suite, and its ceilings: copy bandwidth and matrix rates, on random data."""

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.parts.card import CardWatch
from benchmarks.parts.results import describe_machine
from pipeline.decoding.decoder_choice import what_dali_lacks
from train.compute.device import driver
from train.compute.device_speed import gemm_flops, seconds_of

PACKAGES = ("torch", "triton", "timm", "nvidia-dali-cuda130", "av", "numpy", "pyarrow", "tyro", "nvidia-ml-py")


def facts(bench: Bench) -> None:
    """For the head of the report; it takes no time."""
    found: dict[str, Any] = {"is": describe_machine(), "python": platform.python_version(), "kernel": platform.release()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found |= {"memory_gib": round(properties.total_memory / 2**30, 1), "multiprocessors": properties.multi_processor_count}
    found["driver"] = driver()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            module = {"nvidia-dali-cuda130": "nvidia", "nvidia-ml-py": "pynvml"}.get(name, name)
            found[name] = "of unknown version" if importlib.util.find_spec(module) else "missing"  # unpacked without metadata
    bench.note("machine", facts={**found, "nvdec": what_dali_lacks() or "can be expected"})


def ceilings(bench: Bench) -> None:
    """What a kernel or a step can be compared with; each lasts for half a second."""
    device, watch = bench.device, CardWatch(bench.device)
    count, side = bench.size(2**31, 2**20), bench.size(8192, 128)
    bench.figure("copy", copy_rate(device, count) / 1e9, "GB/s", bytes_read_and_written=2 * count)
    torch.set_float32_matmul_precision("high")
    for kind, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float32)):
        with bench.attempt(f"gemm/{kind}"):
            with watch:
                flops = gemm_flops(device, dtype, side)
            bench.figure(f"gemm/{kind}", flops / 1e12, "TFLOP/s", side=side, **watch.means)
    torch.set_float32_matmul_precision("highest")
    if device.type == "cuda":
        source = torch.randint(0, 255, (2**28,), dtype=torch.uint8).pin_memory()
        target = torch.empty_like(source, device=device)
        seconds = seconds_of(lambda: target.copy_(source, non_blocking=True), device)
        bench.figure("host_to_device", len(source) / seconds / 1e9, "GB/s")


def copy_rate(device: torch.device, count: int) -> float:
    """Bytes/s, read and written, of copying `count` bytes from one place of the device to another."""
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / seconds_of(lambda: target.copy_(source), device)
