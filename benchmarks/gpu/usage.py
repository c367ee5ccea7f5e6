"""How busy the GPU's decoders are while something else is measured, by NVML."""

import importlib
import threading
from statistics import mean
from typing import Any

INTERVAL = 0.05  # seconds; NVML itself renews them about six times a second


class Usage:
    """`with Usage() as usage: ...`, then `usage.nvdec`: a mean share in 0..1, None where NVML cannot be had."""

    def __init__(self, index: int = 0) -> None:
        self.nvdec: float | None = None
        self._decoders = list[float]()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._nvml: Any = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByIndex(index)
        except Exception:  # not installed, no driver, not allowed: a library of another kind for each
            self._nvml = None

    def __enter__(self) -> "Usage":
        if self._nvml is not None:
            self._thread = threading.Thread(target=self._watch, name="usage", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._stop.set()
            self._thread.join()
            self.nvdec = mean(self._decoders) if self._decoders else None

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self._decoders.append(self._nvml.nvmlDeviceGetDecoderUtilization(self._device)[0] / 100)
            except self._nvml.NVMLError:
                return
