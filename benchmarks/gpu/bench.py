"""The process of a part of the GPU suite: its measurements in turn, each with a `Bench` to put its figures down with."""

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.notes import Notes

if TYPE_CHECKING:
    import torch

LOST_DEVICE = 77  # exit status: nothing more can be done on the GPU in this process
LEAST_SHARE = 0.6  # of the seconds that a measurement takes, which must be left for it to begin


class AbsentError(RuntimeError):
    """A figure cannot be had here; the message is the reason. No failure."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a part's process is told."""

    part: str
    module: str
    measurements: list[tuple[str, float, list[str]]]  # name, seconds at full size, figures
    notes: Path
    out: Path  # for pictures and traces
    work: Path  # for anything else; all parts share it
    kit: Path | None  # clips that were carried along
    dry: bool
    ends: float  # by time.time()


class Bench:
    """What a measurement is given: device, time, clips, and a place for its figures."""

    def __init__(self, job: Job) -> None:
        self.part, self.dry, self.ends, self.notes = job.part, job.dry, job.ends, Notes(job.notes)
        self.out, self.work, self.kit = job.out, job.work, job.kit
        self.measurement, self.given = "", set[str]()

    @cached_property
    def device(self) -> "torch.device":
        """The first GPU; in a dry walk the CPU. Raises AbsentError without a GPU."""
        import torch

        if self.dry:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise AbsentError(f"torch {torch.__version__} sees no CUDA device")
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)

    def begin(self, name: str) -> None:
        """Say which measurement begins now."""
        self.measurement, self.given = name, set()
        self.notes.write("began", part=self.part, measurement=name)

    def left(self) -> float:
        """Seconds that the part still has."""
        return self.ends - time.time()

    def size(self, full: Any, toy: Any) -> Any:
        """One of the two, the second in a dry walk."""
        return toy if self.dry else full

    def figure(self, name: str, value: float, unit: str, baseline: float | None = None, **detail: Any) -> None:
        """Put a figure down. Value and baseline have the same unit; `detail` is anything that JSON can hold."""
        self.given.add(name)
        ratio = value / baseline if baseline else None
        figure = {"name": f"{self.part}/{name}", "value": value, "unit": unit, "baseline": baseline, "ratio": ratio}
        self.notes.write("figure", part=self.part, measurement=self.measurement, **figure, detail=detail)
        against = f", {ratio:.3g} of {baseline:.4g}" if ratio is not None else ""
        print(f"{self.part}/{name}: {value:.4g} {unit}{against}", flush=True)

    def absent(self, name: str, reason: str) -> None:
        """There is no such figure here, and why."""
        self.given.add(name)
        self.notes.write("absent", part=self.part, measurement=self.measurement, name=f"{self.part}/{name}", reason=reason)
        print(f"{self.part}/{name}: absent: {reason}", flush=True)

    def recommend(self, setting: str, value: Any, now: Any, why: str) -> None:
        """A default that should be `value`, by the figures in `why`; `now` is what it is."""
        self.notes.write("recommendation", part=self.part, setting=setting, value=value, now=now, why=why)
        print(f"recommendation: {setting} = {value!r} (now {now!r}): {why}", flush=True)

    def remark(self, text: str) -> None:
        """A sentence for the report."""
        self.notes.write("remark", part=self.part, text=text)
        print(text, flush=True)

    @contextmanager
    def attempt(self, *names: str) -> Iterator[None]:
        """Some of the figures: if they fail it is put down, and the others go on."""
        try:
            yield
        except AbsentError as reason:
            for name in names:
                if name not in self.given:
                    self.absent(name, str(reason))
        except Exception as error:
            self.fail(error, names)
            traceback.clear_frames(error.__traceback__)  # they hold tensors
            _release()

    def fail(self, error: Exception, names: Sequence[str]) -> None:
        """Put a failure down, and those of its figures that are missing for it. Ends the process if the GPU cannot be used any
        more."""
        names = [name for name in names if name not in self.given]
        said, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        self.notes.write("failure", part=self.part, measurement=self.measurement, error=said, traceback=trace, names=names)
        print(trace, flush=True)
        for name in names:
            self.absent(name, f"it failed: {said.splitlines()[0][:300]}")
        if "device" in self.__dict__ and self.device.type == "cuda":
            import torch

            try:
                torch.cuda.synchronize()
            except RuntimeError:
                print("the GPU cannot be used any more in this process", flush=True)
                sys.exit(LOST_DEVICE)


def _release() -> None:
    """Give back the memory of what nobody holds any more."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def run(job: Job) -> None:
    """All measurements that there is time for, one after the other; the others are put off."""
    bench = Bench(job)
    module = importlib.import_module(job.module)
    for name, seconds, figures in job.measurements:
        if not bench.dry and bench.left() < LEAST_SHARE * seconds:
            left = max(0.0, bench.left())
            reason = f"{left:.0f} s were left, it takes {seconds:.0f}"
            bench.notes.write("put off", part=job.part, measurement=name, reason=reason)
            continue
        bench.begin(name)
        began, before = time.time(), sum(os.times()[:4])
        with bench.attempt(*figures):
            getattr(module, name)(bench)
        used = sum(os.times()[:4]) - before
        bench.notes.write("ended", part=job.part, measurement=name, seconds=time.time() - began, cpu_seconds=used)
        _release()


def main() -> None:
    """A process of the supervisor's; the job is its argument."""
    job = json.loads(sys.argv[1])
    paths = {name: Path(job[name]) for name in ("notes", "out", "work", "kit") if job[name]}
    run(Job(**job | paths))
