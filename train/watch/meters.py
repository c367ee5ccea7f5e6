"""What a run says about itself: metrics.jsonl and TensorBoard always, Weights & Biases if asked for, and one console line."""

import importlib.util
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pipeline.batches import AnyLoader
from pipeline.console import may_fail
from pipeline.progress import Progress
from train.watch.json_lines import JsonLines, keep_lines

GROUPS = {
    "optimizer": ("lr", "grad_norm", "clip_ratio", "skipped", "loss_scale"),
    "speed": (
        *(
            "seconds",
            "views_per_second",
            "views_per_second_of",
            "tflops",
            "mfu",
            "hfu",
            "gemm_share",
            "data_wait",
            "memory_gib",
        ),
        *("slowest_rank", "slowest_behind"),
    ),
}
TENSORBOARD, WANDB = "TensorBoard's file", "Weights & Biases"


class FailureLog:
    """RUN/failures.jsonl: the clips that could not be decoded, a line each. Every rank writes its own."""

    def __init__(self, out: Path, loader: AnyLoader) -> None:
        self._file, self._loader, self._written = JsonLines(out / "failures.jsonl"), loader, 0

    def flush(self) -> None:
        """Write those that are new: once a step, because the loader keeps the last ones only."""
        if new := self._loader.num_failures - self._written:
            self._file.add(*map(asdict, self._loader.failures[-new:]))
            self._written += new


def duration(seconds: float) -> str:
    """95 -> "1:35", 4000 -> "1:06:40"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Meters:
    """Writes a run's log. Only rank 0 has one; `out` is the run's folder.

    Nothing here raises: where a line cannot be written, that is told once, and the others still are.
    """

    def __init__(
        self, out: Path, total_steps: int, step: int, wandb: str | None = None, config: dict[str, Any] | None = None
    ) -> None:
        """`step` steps are done. `wandb` names a project of Weights & Biases, where a run that goes on stays one run; `config`
        is what is kept there."""
        self.total_steps = total_steps
        self._file = JsonLines(out / "metrics.jsonl")
        self._tensorboard, self._wandb = None, None
        with may_fail(str(self._file.file)):
            keep_lines(self._file.file, lambda line: line["step"] <= step)
        with may_fail(TENSORBOARD):
            self._tensorboard = SummaryWriter(out / "tensorboard", purge_step=step + 1)
        if wandb:
            with may_fail(WANDB):
                self._wandb = open_wandb(out, wandb, config or {})
        self._bar = Progress(total=total_steps, initial=step, unit="step", leave=False)
        self._began, self._first = time.perf_counter(), step
        self._steady = False  # whether the first line, with start and compilation in its time, is behind

    def advance(self) -> None:
        """A step is done (as far as the host knows)."""
        self._bar.update()

    def log(self, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl: step, epoch, loss, lr, grad_norm, clip_ratio, skipped, time; and what `StepMeter` says."""
        self._file.add(values)

    def show(self, values: dict[str, Any]) -> None:
        """The same line on the console, in TensorBoard and where else it is looked at."""
        scalars = {name: value for name, value in values.items() if not isinstance(value, dict)}
        for name, parts in values.items():
            if isinstance(parts, dict):
                scalars |= {f"{name}/{part}": value for part, value in parts.items()}
        step = scalars.pop("step")
        numbers = {name: value for name, value in scalars.items() if isinstance(value, int | float) and name != "time"}
        scalars = {f"{group_of(name)}/{name}": value for name, value in numbers.items()}
        if self._tensorboard:
            with may_fail(TENSORBOARD):
                for name, value in scalars.items():
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            with may_fail(WANDB):
                self._wandb.log(scalars, step=step)
        now = time.perf_counter()
        left = (now - self._began) / max(step - self._first, 1) * (self.total_steps - step)
        if not self._steady:
            self._began, self._first, self._steady = now, step, True
        self.say(f"step {step}/{self.total_steps} · {console_line(values)} · {duration(left)} left")
        self._bar.told()

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """What an evaluation found, to TensorBoard and where else it is looked at."""
        if self._tensorboard:
            with may_fail(TENSORBOARD):
                for name, value in figures.items():
                    self._tensorboard.add_scalar(f"evaluation/{name}", value, step)
        if self._wandb:
            with may_fail(WANDB):
                self._wandb.log({f"evaluation/{name}": value for name, value in figures.items()}, step=step)

    def picture(self, name: str, file: Path, pixels: np.ndarray, step: int) -> None:
        """A picture, uint8 (height, width, 3), which lies in `file`."""
        if self._tensorboard:
            with may_fail(TENSORBOARD):
                self._tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb:
            with may_fail(WANDB):
                import wandb

                self._wandb.log({name: wandb.Image(str(file))}, step=step)

    def say(self, text: str) -> None:
        """A line on the console, above the progress bar."""
        with may_fail("the console"):
            tqdm.write(text)

    def close(self) -> None:
        with may_fail("the console"):
            self._bar.close()
        if self._tensorboard:
            with may_fail(TENSORBOARD):
                self._tensorboard.close()
        if self._wandb:
            with may_fail(WANDB):
                self._wandb.finish()


def group_of(name: str) -> str:
    """Under which of its headings TensorBoard shows a figure of a line."""
    return next((group for group, names in GROUPS.items() if name.partition("/")[0] in names), "train")


def console_line(values: dict[str, Any]) -> str:
    """The part of a line of the log that is for people. A rank is named from 5 % behind the others on."""
    loss, norm = (format(values[name], ".4g") if values[name] is not None else "none" for name in ("loss", "grad_norm"))
    parts = [f"loss {loss}", f"lr {values['lr']:.2e}", f"grad {norm}", f"{values['views_per_second']:.1f} views/s"]
    if values["mfu"] is not None:
        parts.append(f"MFU {values['mfu']:.1%}")
    parts.append(f"{values['gemm_share']:.1%} of GEMM rate")
    parts.append(f"waiting for data {values['data_wait']:.0%}")
    if values["slowest_behind"] >= 0.05:
        parts.append(f"rank {values['slowest_rank']} ({values['slowest_host']}) {values['slowest_behind']:.0%} behind")
    if values["skipped"]:
        parts.append(f"{values['skipped']} skipped")
    return " · ".join(parts)


def check_wandb(project: str | None) -> None:
    """Raises ValueError if Weights & Biases is asked for and not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(f"--wandb {project}: wandb is not installed; run `pip install wandb` and `wandb login`, or leave it")


def open_wandb(out: Path, project: str, config: dict[str, Any]) -> Any:
    """The run of Weights & Biases that belongs to this folder: a new one, or the one that RUN/wandb_id names."""
    import wandb

    file = out / "wandb_id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    return wandb.init(project=project, name=out.name, id=file.read_text(), resume="allow", dir=str(out), config=config)
