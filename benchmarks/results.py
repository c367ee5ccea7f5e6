"""What every benchmark hands over: named figures as JSON, and the machine that they belong to."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset_builders.executors import usable_cores


@dataclass(frozen=True, slots=True)
class Result:
    """One figure. `value` and `baseline` are absolute and have the same unit."""

    name: str
    value: float
    unit: str
    baseline: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value by baseline; None without one."""
        return None if self.baseline is None else self.value / self.baseline

    def as_json(self) -> dict[str, Any]:
        values = {"name": self.name, "value": self.value, "unit": self.unit}
        return {**values, "baseline": self.baseline, "ratio": self.ratio}


def check_json(path: Path | None) -> None:
    """Refuse a --json that cannot be written, before minutes of measuring. Raises ValueError."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder" if path.is_dir() else f"its folder {path.parent} does not exist"
        raise ValueError(f"--json {path}: {what}; give a file in a folder that exists")


def write_json(path: Path, results: Sequence[Result]) -> None:
    """A list of {"name", "value", "unit", "baseline", "ratio"}; the last two are null without a baseline."""
    path.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n")


def describe_machine() -> str:
    """Cores, CPU, GPU, torch, and how busy others keep the machine: rates of a busy one mean little."""
    cores, load = usable_cores(), os.getloadavg()[0]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    busy = " (others are using it: expect lower and less steady rates)" if load > 0.25 * cores else ""
    plural = "s" if cores > 1 else ""
    return f"{cores} core{plural} of {cpu}, {gpu}, torch {torch.__version__}, load {load:.1f} before the start{busy}"
