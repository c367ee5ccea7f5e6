"""What every benchmark hands over: named figures as JSON, the machine that they belong to, and how busy it was."""

import os
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from pipeline.machine import usable_cores
from pipeline.report.verdict import DISTURBED
from pipeline.storage.output_folder import refuse_dataset


@dataclass(frozen=True, slots=True)
class Result:
    """One figure. `value` and `baseline` are absolute and have the same unit."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    rounds: Sequence[float] = ()  # what was measured in turns: the ratio of every round, or the value without a baseline
    detail: Mapping[str, Any] = field(default_factory=dict)  # what else there is to say of it, as JSON can hold it

    @property
    def ratio(self) -> float | None:
        """Value by baseline, or the median of the rounds' ratios; None without a baseline."""
        if self.baseline is None:
            return None
        return median(self.rounds) if self.rounds else self.value / self.baseline

    def as_json(self) -> dict[str, Any]:
        """Baseline and ratio are None without a baseline. What was measured in rounds has them, too; `detail` is there if
        there is any."""
        values = {"name": self.name, "value": self.value, "unit": self.unit, "baseline": self.baseline, "ratio": self.ratio}
        more = {"rounds": list(self.rounds), "detail": dict(self.detail)}
        return {**values, **{name: value for name, value in more.items() if value}}


def check_json(path: Path | None) -> None:
    """Refuse a --json that cannot be written, before minutes of measuring. Raises ValueError."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder" if path.is_dir() else f"its folder {path.parent} does not exist"
        raise ValueError(f"--json {path}: {what}; give a file in a folder that exists")
    if path is not None:
        refuse_dataset("--json", path)


def check_numbers(options: Any, *counts: str) -> None:
    """Raises ValueError, with the flag, for a count below 1, where it is given, and for turns of impossible `seconds`."""
    for name in counts:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    if not 0 < options.seconds <= 3600:
        raise ValueError(f"--seconds {options.seconds:g}: it must be more than 0 and at most 3600")


def about_cpu(*names: str) -> str:
    """What /proc/cpuinfo says first under one of these names, or nothing."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def describe_machine() -> str:
    """Cores, CPU, GPU, torch."""
    cores, cpu = usable_cores(), about_cpu("model name") or "unknown CPU"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cores} core{'' if cores == 1 else 's'} of {cpu}, {gpu}, torch {torch.__version__}"


def disturbance(cores: float) -> list[str]:
    """What to say of so many cores that other programs had in use: a line, or none where they are too few to matter."""
    if cores <= DISTURBED * usable_cores():
        return []
    return [
        f"Other programs had up to {cores:.1f} of the {usable_cores()} cores in use meanwhile: what is said here holds beside "
        "them only. Measure on a quiet machine for figures to keep."
    ]


class Neighbours:
    """What other programs take of this process's cores while it measures. Rates beside them mean little, part by part: a
    training step of `tiny` on two cores does 27 clips/s, and 3 beside a program that holds one of them (OpenMP spins)."""

    def __init__(self) -> None:
        self._busy, self._own, self._began = _busy_seconds(), _own_seconds(), time.perf_counter()

    def cores(self) -> float:
        """Mean cores in use by others since the start."""
        wall = time.perf_counter() - self._began
        return max(0.0, (_busy_seconds() - self._busy - (_own_seconds() - self._own)) / wall)

    def own(self) -> float:
        """Mean cores in use by this process and its children since the start."""
        return (_own_seconds() - self._own) / (time.perf_counter() - self._began)


def _busy_seconds() -> float:
    """CPU time of everybody on the cores that this process may use."""
    times = psutil.cpu_times(percpu=True)
    return sum(_busy(times[core]) for core in os.sched_getaffinity(0))


def _busy(core: Any) -> float:
    """Of a core: what programs here used, and what the host of a virtual machine gave to others meanwhile (steal)."""
    return core.user + core.nice + core.system + getattr(core, "steal", 0.0)


def _own_seconds() -> float:
    """CPU time of this process and its children, those that have ended included."""
    return time.process_time() + children_seconds(ended=True) + children_seconds()


def children_run() -> bool:
    """Whether one of the child processes runs, or waits for a core to run on."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_RUNNING:
                return True
    return False


def children_seconds(ended: bool = False) -> float:
    """CPU time of the child processes that live, or of those that have ended."""
    if ended:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds
