"""How fast the training device is: by its data sheet, and measured with the one operation that training consists of."""

import math
import os
import timeit
from collections.abc import Callable

import psutil
import torch

from train.compute.precision import Precision

# dense bf16 and fp16 TFLOP/s of the data sheets, by a part of the device's name, the longer names first
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H200 NVL": 835.0, "GB200": 2500.0, "H100": 989.0, "H200": 989.0}
PEAK_TFLOPS |= {"A100": 312.0, "B200": 2250.0, "L40S": 362.0, "RTX 4090": 165.0, "RTX 3090": 71.0}

SUSTAINED = 0.5  # seconds of a measurement on a GPU: a power limit acts after about 0.1


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s of a GPU's data sheet, None where it is not known or encoder and decoder have different ones: MFU is then not
    given, rather than guessed."""
    return data_sheet_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def data_sheet_flops(card: str, precision: Precision) -> float | None:
    """The same of a card by its name; None of a MIG slice, which has a part of it. On all of these TF32 has half the rate of
    bf16."""
    plain_fp32 = precision.encoder == torch.float32 and not precision.tf32
    if plain_fp32 or precision.encoder != precision.decoder or " MIG " in f"{card} ":
        return None
    tflops = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in card), None)
    return tflops and tflops * (0.5e12 if precision.tf32 else 1e12)


def gemm_flops(device: torch.device, dtype: torch.dtype, size: int | None = None, seconds: float = SUSTAINED) -> float:
    """FLOP/s of square matrix products, under the settings of matmul that hold now.

    On a GPU products of 8192³ (1.1 TFLOP each) follow each other for so many `seconds` and their mean counts, so what heat and
    the power limit leave does. On a CPU it is the fastest of eight products of 512³: others use its cores, too.
    """
    size = size or (8192 if device.type == "cuda" else 512)
    generator = torch.Generator(device).manual_seed(0)  # not the run's; and not zeros, which take less power
    factors = torch.randn(2, size, size, device=device, dtype=dtype, generator=generator)
    product = torch.mm(*factors)  # the first one chooses a kernel
    return 2 * size**3 / seconds_of(lambda: torch.mm(*factors, out=product), device, seconds)


def seconds_of(work: Callable[[], object], device: torch.device, seconds: float = SUSTAINED, least: int = 8) -> float:
    """Of one call. On a GPU the mean of as many in a row as take so many `seconds`, by the device's clock; how many that are,
    `least` calls tell, after which the host waits, and then at the end only. On a CPU the fastest of `least`."""
    if device.type != "cuda":
        return min(timeit.repeat(work, number=1, repeat=least))
    first = _between_events(work, least)
    more = math.ceil(seconds / first)
    return _between_events(work, more) if more > least else first


def _between_events(work: Callable[[], object], number: int) -> float:
    """Seconds of a call, the mean of so many."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(number):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / number


def device_name(device: torch.device) -> str:
    """What the data sheet calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{len(os.sched_getaffinity(0))} CPU cores"


def memory_gib(device: torch.device) -> float:
    """Peak memory of the GPU since the start, or the resident memory of this process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
