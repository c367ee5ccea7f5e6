"""What a run says about itself: metrics.jsonl and TensorBoard always, and one console line."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# dense bf16 TFLOP/s of the data sheets, by a part of the device's name
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0, "L40S": 362.0}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a GPU's data sheet, None where it is not known: MFU is then not given, rather than guessed."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)


def device_name(device: torch.device) -> str:
    """What the data sheet calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{len(os.sched_getaffinity(0))} CPU cores"


def memory_gib(device: torch.device) -> float:
    """Peak memory of the GPU since the start, or the resident memory of this process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def keep_lines(file: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines of a JSONL file from the first one that is not to be kept, or that was cut off: they were written by a
    run that did not save what they tell of."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if not keep(json.loads(line)):
                break
        except ValueError:
            break
        kept.append(line)
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    temporary.rename(file)


class FailureLog:
    """RUN/failures.jsonl: the clips that could not be decoded, a line each. Every rank writes its own."""

    def __init__(self, out: Path, failures: Sequence[Any]) -> None:
        """`failures` grows as the loader works."""
        self._file, self._failures, self._written = out / "failures.jsonl", failures, 0

    def flush(self) -> None:
        """Write those that are new."""
        if len(self._failures) > self._written:
            with self._file.open("a") as file:
                file.writelines(json.dumps(asdict(failure)) + "\n" for failure in self._failures[self._written :])
            self._written = len(self._failures)


def duration(seconds: float) -> str:
    """95 -> "1:35", 4000 -> "1:06:40"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Meters:
    """Writes a run's log. Only rank 0 has one; `out` is the run's folder."""

    def __init__(self, out: Path, total_steps: int, step: int) -> None:
        self.total_steps = total_steps
        keep_lines(out / "metrics.jsonl", lambda line: line["step"] <= step)
        self._file = (out / "metrics.jsonl").open("a", buffering=1)
        self._tensorboard = SummaryWriter(out / "tensorboard", purge_step=step + 1)
        self._bar = tqdm(total=total_steps, initial=step, unit="step", disable=None, leave=False)
        self._began, self._first = time.perf_counter(), step

    def advance(self) -> None:
        """A step is done (as far as the host knows)."""
        self._bar.update()

    def log(self, values: dict[str, Any]) -> None:
        """A line: values with at least step, loss, lr, grad_norm, views_per_second and data_wait."""
        self._file.write(json.dumps(values) + "\n")
        step = values["step"]
        for name, value in values.items():
            if name not in ("step", "time") and value is not None:
                self._tensorboard.add_scalar(name, value, step)
        elapsed = time.perf_counter() - self._began
        left = elapsed / max(step - self._first, 1) * (self.total_steps - step)
        mfu = "" if values["mfu"] is None else f" · MFU {values['mfu']:.1%}"
        skipped = f" · {values['skipped']} skipped" if values["skipped"] else ""
        loss, norm = (format(values[name], ".4g") if values[name] is not None else "none" for name in ("loss", "grad_norm"))
        self.say(
            f"step {step}/{self.total_steps} · loss {loss} · lr {values['lr']:.2e} · grad {norm} · "
            f"{values['views_per_second']:.1f} views/s{mfu} · "
            f"waiting for data {values['data_wait']:.0%}{skipped} · {duration(left)} left"
        )

    def say(self, text: str) -> None:
        """A line on the console, above the progress bar."""
        tqdm.write(text)

    def close(self) -> None:
        self._bar.close()
        self._tensorboard.close()
        self._file.close()
