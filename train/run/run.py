"""A run while it is worked on: loader and training, what watches them, and what is written of them."""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from model.compiler import compiler_missing
from pipeline.console import may_fail
from pipeline.loader import ClipLoader, LoaderState
from pipeline.sampling.splits import describe_split
from pipeline.workers.tuning import Tuning
from train.checkpoint import descent
from train.checkpoint import state as checkpoints
from train.checkpoint.state import TAKEN, Progress
from train.compute.device_speed import device_name, gemm_flops, peak_flops
from train.compute.parallel import Ranks
from train.compute.plan import Plan
from train.compute.precision import PRECISIONS
from train.compute.startup import Startup, load_compiled, save_compiled
from train.config import LABEL_MAP, parse_steps
from train.evaluation import Evaluations
from train.run.folder import RunFolder
from train.stage import Stage
from train.training import Training
from train.watch.guard import GuardReading
from train.watch.live_profile import LiveProfile
from train.watch.meters import FailureLog, Meters
from train.watch.profiler import StepProfiler
from train.watch.skip_log import SkipLog
from train.watch.step_meter import StepMeter, view_flops


class RunFailedError(RuntimeError):
    """The run cannot go on; the message says why and what is left."""


class Run:
    """What the training loop works with. Every rank has one; only rank 0 has `meters`."""

    def __init__(
        self,
        stage: Stage,
        plan: Plan,
        ranks: Ranks,
        folder: RunFolder,
        total_steps: int,
        startup: Startup,
        cleanup: ExitStack,
    ) -> None:
        """Everything as it was when the folder's checkpoint was written, or new. `plan` is the stage's; `cleanup` is for what
        has to be closed.

        Raises ValueError if these ranks cannot share a step, and what the parts raise.
        """
        config = stage.config
        self.config, self.ranks, self.folder, self.total_steps = config, ranks, folder, total_steps
        progress, self.first_step = folder.progress, folder.first_step  # steps that are done
        self._startup, precision = startup, PRECISIONS[config.compute.precision]
        clips = config.sampling.clips_per_step // ranks.world_size // config.accumulation(ranks.world_size)

        self.loader = stage.loader(ranks, progress.loader if progress else None, clips, folder.document(LABEL_MAP))
        if ranks.rank == 0 and self.loader.label_map:
            folder.keep(LABEL_MAP, self.loader.label_map)
        folder.note(notices=self.loader.notices)
        cleanup.callback(self.loader.close)
        self._failures = FailureLog(folder.path, self.loader)
        cleanup.callback(self._failures.flush)
        self._profile = None
        if config.profile_loader and isinstance(self.loader, ClipLoader):
            kind, name = ranks.device.type, device_name(ranks.device)
            self._profile = LiveProfile(folder.path, stage.name, self.loader, ranks.rank, kind, name)
            cleanup.callback(may_fail("--profile-loader")(self._profile.write))
        startup.done("dataset")  # the first batches are decoded beside what follows

        load_compiled(folder.path)
        guard = progress.guard if progress else None
        self.training = Training(stage, ranks, resumed=folder.checkpoint is not None, memory=config.log_every, guard=guard)
        if beginning := self.training.beginning:
            folder.keep(descent.FILE, beginning.descent)
            folder.note(init=[*beginning.lines])
        elif ranks.rank == 0 and (begun := folder.document(descent.FILE)):
            folder.keep(descent.FILE, descent.read_descent(begun.read_text()))
        startup.done("model")
        if folder.checkpoint and progress:
            self._check_frozen(progress.frozen)
            checkpoints.load(folder.checkpoint, self.training)
        startup.done("checkpoint")

        self._skip_log = SkipLog(folder.path, self.loader, ranks, self.first_step)
        gemm = gemm_flops(ranks.device, precision.encoder)
        flops = view_flops(stage)
        peak = peak_flops(ranks.device, precision)
        self.meter = StepMeter(self.loader, ranks, dtype=precision.encoder, flops=flops, peak=peak, gemm=gemm)
        folder.note(first_step=self.first_step, total_steps=total_steps)
        folder.note(decoder=str(self.loader.decoder_choice), gemm_tflops=gemm / 1e12)
        folder.note(plan=str(plan), attention=self.training.attention.kernel)
        self.meters = None
        if ranks.rank == 0:
            self._announce(plan)
            self.meters = Meters(folder.path, total_steps, self.first_step, config.wandb, asdict(config))
            cleanup.callback(self.meters.close)
            folder.saver.say = self.meters.say
        cleanup.callback(folder.saver.close)
        if config.save_in_background and total_steps - self.first_step > config.save_every:
            folder.saver.start(checkpoints.share_bytes(self.training))
        self._evaluations = Evaluations(
            stage,
            self.training,
            folder.path,
            folder.manifest,
            first_step=self.first_step,
            total_steps=total_steps,
        )
        self._profiler = None
        if config.profile and ranks.rank == 0:
            self._profiler = StepProfiler(folder.path, parse_steps(config.profile), ranks.device, self.first_step)
            cleanup.callback(may_fail("--profile")(self._profiler.close))
        startup.done("meters")

        # this rank's, on the device, of the steps taken since the last line of the log, and their number
        before = progress.sums if progress else {"loss": 0.0, TAKEN: 0.0}
        mine = float(ranks.rank == 0)
        self._sums = {name: torch.tensor(value * mine, device=ranks.device) for name, value in before.items()}
        self._last_line = self.first_step
        self._tuning: Tuning | None = None  # of the loader, as last told

    def say(self, text: str) -> None:
        """A line on the console, once."""
        if self.meters:
            self.meters.say(text)

    def stepped(self, step: int, losses: list[Tensor], scalars: dict[str, Tensor], taken: Tensor) -> None:
        """Between two steps: count the loss, and let those who watch the run look. Waits for the device after the first one."""
        for name, value in {"loss": torch.stack(losses).sum(), **scalars}.items():
            self._add(name, torch.where(taken > 0, value, 0.0))
        self._add(TAKEN, taken)
        if step == self.first_step + 1:
            taken.item()
            self._startup.stepped(self.loader.wait_seconds)
            self.folder.note(startup=self._startup.seconds)
            self.say(str(self._startup))
            if self.meters:
                save_compiled(self.folder.path)
        self._failures.flush()
        self.folder.saver.poll()
        if self._profile:
            with may_fail("--profile-loader"):
                self._profile.write_if_due()
        if self._profiler:
            with may_fail("--profile"):
                self._profiler.stepped(step)
        if self.meters:
            self.meters.advance()

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _totals(self) -> dict[str, float]:
        """The sums over all ranks, which all have the same names."""
        return dict(zip(self._sums, self.ranks.sum(torch.stack([*self._sums.values()])).tolist(), strict=True))

    def evaluate(self, step: int, *, again: bool = False) -> None:
        """What is due after a step; `again`: which may have been done when it was taken, by an earlier start."""
        for line in self._evaluations.after(step, self.meters, again=again):
            self.say(line)

    def check(self) -> GuardReading:
        """Write down the steps that were skipped. Waits for the device. Raises RunFailedError if too many were in a row."""
        reading = self.training.guard.read()
        self._skip_log.write(reading.skipped)
        if reading.longest_row >= self.config.optim.max_skipped:
            self.folder.saver.wait()
            last_good = checkpoints.latest(self.folder.checkpoints) or "none"
            other = " or --compute.attention flash" if self.training.attention.kernel == "cudnn" else ""
            raise RunFailedError(
                f"{self._skip_log.explain()}. The last good checkpoint is {last_good}. "
                f"Lower --optim.base-lr, or set --compute.precision fp32{other}"
            )
        return reading

    def log(self, step: int, lr: float, norm: torch.Tensor, reading: GuardReading) -> dict[str, Any] | None:
        """A line of metrics.jsonl, for `show`. `norm` is the last step's."""
        sums = self._totals()
        taken = sums.pop(TAKEN)
        measured = self.meter.line(step - self._last_line)
        if self.loader.tuning != self._tuning:
            self._tuning = self.loader.tuning
            self.say(f"loader: {self._tuning}")
            self.folder.note(loader=str(self._tuning))
        self._sums = {name: torch.zeros_like(value) for name, value in self._sums.items()}
        self._last_line = step
        if not self.meters:
            return None
        clip_grad, grad_norm = self.config.optim.clip_grad, float(norm)
        finite = math.isfinite(grad_norm)
        line = {
            "step": step,
            "epoch": step / self.loader.steps_per_epoch,
            **{name: value / taken if taken else None for name, value in sums.items()},
            "lr": lr,
            "grad_norm": grad_norm if finite else None,
            "clip_ratio": min(1.0, clip_grad / grad_norm) if clip_grad and finite and grad_norm else None,
            **measured,
            "skipped": reading.total,
            "loss_scale": reading.loss_scale,
            "time": time.time(),
        }
        self.meters.log(line)
        return line

    def show(self, line: dict[str, Any] | None) -> None:
        """The same line to whoever looks."""
        if self.meters and line:
            self.meters.show(line)

    def save(self, step: int, *, last: bool) -> None:
        """A checkpoint; the last one of this process is on disk when this returns."""
        training = self.training
        for settle in training.settling:
            settle()
        loader = LoaderState.merged(self.ranks.gather(self.loader.state()))
        progress = Progress(
            step=step, sums=self._totals(), guard=training.guard.state(), frozen=training.fingerprints, loader=loader
        )
        later = self.config.save_in_background and not last
        self.folder.saver.save(checkpoints.state_of(training), progress, background=later)

    def _check_frozen(self, before: Mapping[str, str]) -> None:
        """Raises ValueError if a frozen model is not the one that the run began with."""
        for name, now in self.training.fingerprints.items():
            if before.get(name) != now:
                raise ValueError(
                    f"the {name} has other weights (fingerprint {now}) than when {self.folder.path} was begun "
                    f"({before.get(name, 'none')}); give the ones it began with, or another --out"
                )

    def _announce(self, plan: Plan) -> None:
        """What is about to happen, in a few lines."""
        loader, config, ranks, accumulation = self.loader, self.config, self.ranks, self.training.passes
        print(
            f"{describe_split(loader.manifest, loader.recipe.split)}; "
            f"{self.total_steps / loader.steps_per_epoch:.1f} epochs of {loader.steps_per_epoch} steps; "
            f"{config.views.views_per_step} views a step on {ranks.world_size} x "
            f"{ranks.device.type} in {accumulation} forward pass{'es' if accumulation > 1 else ''}; "
            f"peak lr {config.peak_lr:.2e}; {config.compute.precision}"
        )
        print(f"decoder {loader.decoder_choice}")
        print(plan)
        if why := self.training.attention.why:
            print(why)
        if ranks.device.type == "cuda" and config.compute.compile is None and (missing := compiler_missing("cuda")):
            print(f"slower than it could be: blocks are not compiled, and tokens are made by plain operations: {missing}")
        for line in self.training.beginning.lines if self.training.beginning else ():
            print(line)
        if self.folder.progress:
            print(f"going on from step {self.first_step} of {self.total_steps}")
        for change in self.folder.changes:
            print(f"changed since the last start: {change}")
