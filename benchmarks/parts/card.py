"""What a GPU is like while something is measured, by NVML: a rate under a power limit is another than one without."""

import importlib
import threading
from contextlib import suppress
from statistics import mean
from typing import Any

import torch

INTERVAL = 0.1  # seconds; NVML renews its figures about six to ten times a second


class CardWatch:
    """`with watch: ...`, then `watch.means`: watts, sm_mhz and nvdec, the share of the decoders in use (0..1). It is empty on a
    CPU, where pynvml (nvidia-ml-py) or the driver is missing, and on a MIG slice, which NVML does not tell of."""

    def __init__(self, device: torch.device) -> None:
        self.means: dict[str, float] = {}
        self._nvml: Any = None
        if device.type == "cuda":
            with suppress(Exception):  # not installed, no driver, not allowed: a library of another kind for each
                nvml = importlib.import_module("pynvml")
                nvml.nvmlInit()
                self._card = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
                self._nvml = nvml

    def __enter__(self) -> "CardWatch":
        self.means, self._seen, self._stop = {}, list[dict[str, float]](), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="card", daemon=True)
        if self._nvml is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is not None:
            self._stop.set()
            self._thread.join()
            self.means = means_of(self._seen)

    def _watch(self) -> None:
        nvml, card = self._nvml, self._card
        while not self._stop.wait(INTERVAL):
            with suppress(nvml.NVMLError):
                watts = nvml.nvmlDeviceGetPowerUsage(card) / 1e3
                mhz = nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)
                self._seen.append({"watts": watts, "sm_mhz": mhz, "nvdec": nvml.nvmlDeviceGetDecoderUtilization(card)[0] / 100})


def means_of(seen: list[dict[str, float]]) -> dict[str, float]:
    """By name."""
    return {name: mean(each[name] for each in seen) for name in (seen[0] if seen else {})}
