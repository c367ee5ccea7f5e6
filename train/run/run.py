"""A run while it is worked on: loader, model and optimizer, what watches them, and what is written of them."""

import math
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from pipeline.console import may_fail
from pipeline.loader import ClipLoader, LoaderState
from pipeline.storage.clip_cache import ClipCache
from pipeline.workers.tuning import Tuning
from train.checkpoint import state as checkpoints
from train.checkpoint.state import Progress
from train.compute.device_speed import device_name, gemm_flops, peak_flops
from train.compute.optimizer import pretraining_optimizer
from train.compute.parallel import Ranks, build_model
from train.compute.precision import PRECISIONS
from train.compute.startup import Startup, keep_compiled
from train.config import PretrainConfig, parse_steps
from train.run.folder import RunFolder
from train.watch.guard import Guard, GuardReading
from train.watch.live_profile import LiveProfile
from train.watch.meters import FailureLog, Meters
from train.watch.profiler import StepProfiler
from train.watch.skip_log import SkipLog
from train.watch.step_meter import StepMeter, view_flops

if TYPE_CHECKING:
    from train.reconstructions import Reconstructions


class RunFailedError(RuntimeError):
    """The run cannot go on; the message says why and what is left."""


class Run:
    """What a training loop works with. Every rank has one; only rank 0 has `meters`."""

    def __init__(
        self, config: PretrainConfig, ranks: Ranks, folder: RunFolder, total_steps: int, startup: Startup, cleanup: ExitStack
    ) -> None:
        """Everything as it was when the folder's checkpoint was written, or new. `cleanup` is for what has to be closed.

        Raises ValueError if these ranks cannot share a step, and what the parts raise.
        """
        assert config.data is not None
        self.config, self.ranks, self.folder, self.total_steps = config, ranks, folder, total_steps
        progress, self.first_step = folder.progress, folder.first_step  # steps that are done
        self._startup, precision = startup, PRECISIONS[config.compute.precision]
        accumulation = config.accumulation(ranks.world_size)

        self.loader = ClipLoader(
            config.data,
            config.sampling,
            rank=ranks.rank,
            world_size=ranks.world_size,
            state=progress.loader if progress else None,
            device=ranks.device,
            clips_per_batch=config.sampling.clips_per_step // ranks.world_size // accumulation,
            workers=config.loader.workers,
            prefetch=config.loader.prefetch,
            decoder=config.loader.decoder,
            cache=ClipCache.asked_for(config.loader.cache, config.loader.cache_size),
        )
        cleanup.callback(self.loader.close)
        self._failures = FailureLog(folder.path, self.loader)
        cleanup.callback(self._failures.flush)
        self._profile = None
        if config.profile_loader:
            self._profile = LiveProfile(folder.path, self.loader, ranks.rank, ranks.device.type, device_name(ranks.device))
            cleanup.callback(may_fail("--profile-loader")(self._profile.write))
        startup.done("dataset")  # the first batches are decoded beside what follows

        keep_compiled(folder.path)
        self.model = build_model(config.model, config.compute, config.seed, ranks, config.sampling.tokens)
        self.parameters = list(self.model.parameters())
        self.optimizer = pretraining_optimizer(self.model, config.optim)
        startup.done("model")
        if folder.checkpoint:
            checkpoints.load(folder.checkpoint, self.model, self.optimizer)
        startup.done("checkpoint")

        self.guard = Guard(
            config.optim,
            passes=accumulation,
            memory=config.log_every,
            device=ranks.device,
            scaled=precision.loss_scaling,
            state=progress.guard if progress else None,
        )
        self._skip_log = SkipLog(folder.path, self.loader, ranks, self.first_step)
        gemm = gemm_flops(ranks.device, precision.encoder)
        peak = peak_flops(ranks.device, precision)
        self.meter = StepMeter(self.loader, ranks, dtype=precision.encoder, flops=view_flops(config), peak=peak, gemm=gemm)
        folder.note(first_step=self.first_step, total_steps=total_steps)
        folder.note(decoder=str(self.loader.decoder_choice), gemm_tflops=gemm / 1e12)
        self.meters = None
        if ranks.rank == 0:
            self._announce(accumulation)
            self.meters = Meters(folder.path, total_steps, self.first_step, config.wandb, asdict(config))
            cleanup.callback(self.meters.close)
            folder.saver.say = self.meters.say
        cleanup.callback(folder.saver.close)
        if config.save_in_background and total_steps - self.first_step > config.save_every:
            folder.saver.start()
        self._pictures: Reconstructions | None = None
        if config.reconstruct_every:
            from train import reconstructions  # matplotlib: half a second

            self._pictures = reconstructions.Reconstructions(
                folder.path, config.reconstruct_every, self.loader.manifest, config.sampling, self.model, ranks
            )
        self._profiler = None
        if config.profile and ranks.rank == 0:
            self._profiler = StepProfiler(folder.path, parse_steps(config.profile), ranks.device, self.first_step)
            cleanup.callback(may_fail("--profile")(self._profiler.close))
        startup.done("meters")

        # this rank's, on the device, of the steps taken since the last line of the log: summed loss, and their number
        self._sums = torch.zeros(2, device=ranks.device)
        if progress and ranks.rank == 0:
            self._sums += torch.tensor([progress.loss_sum, progress.good_steps], device=ranks.device)
        self._last_line = self.first_step
        self._tuning: Tuning | None = None  # of the loader, as last told

    def say(self, text: str) -> None:
        """A line on the console, once."""
        if self.meters:
            self.meters.say(text)

    def stepped(self, step: int, losses: list[torch.Tensor], taken: torch.Tensor) -> None:
        """Between two steps: count the loss, and let those who watch the run look. Waits for the device after the first one."""
        self._sums += torch.stack([torch.where(taken > 0, torch.stack(losses).sum(), 0.0), taken])
        if step == self.first_step + 1:
            taken.item()
            self._startup.stepped(self.loader.wait_seconds)
            self.folder.note(startup=self._startup.seconds)
            self.say(str(self._startup))
        self._failures.flush()
        self.folder.saver.poll()
        if self._profile:
            with may_fail("--profile-loader"):
                self._profile.write_if_due()
        if self._profiler:
            with may_fail("--profile"):
                self._profiler.stepped(step)
        if self._pictures:
            self._pictures.draw_if_due(step, self.meters)
        if self.meters:
            self.meters.advance()

    def check(self) -> GuardReading:
        """Write down the steps that were skipped. Waits for the device. Raises RunFailedError if too many were in a row."""
        reading = self.guard.read()
        self._skip_log.write(reading.skipped)
        if reading.longest_row >= self.config.optim.max_skipped:
            self.folder.saver.wait()
            last_good = checkpoints.latest(self.folder.checkpoints) or "none"
            raise RunFailedError(
                f"{self._skip_log.explain()}. The last good checkpoint is {last_good}. "
                "Lower --optim.base-lr, or set --compute.precision fp32"
            )
        return reading

    def log(self, step: int, lr: float, norm: torch.Tensor, reading: GuardReading) -> dict[str, Any] | None:
        """A line of metrics.jsonl, for `show`. `norm` is the last step's."""
        loss_sum, taken = self.ranks.sum(self._sums).tolist()
        measured = self.meter.line(step - self._last_line)
        if self.loader.tuning != self._tuning:
            self._tuning = self.loader.tuning
            self.say(f"loader: {self._tuning}")
            self.folder.note(loader=str(self._tuning))
        self._sums.zero_()
        self._last_line = step
        if not self.meters:
            return None
        clip_grad, grad_norm = self.config.optim.clip_grad, float(norm)
        finite = math.isfinite(grad_norm)
        line = {
            "step": step,
            "epoch": step / self.loader.steps_per_epoch,
            "loss": loss_sum / taken if taken else None,
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
        loss_sum, taken = self.ranks.sum(self._sums.clone()).tolist()
        loader = LoaderState.merged(self.ranks.gather(self.loader.state()))
        progress = Progress(step=step, loss_sum=loss_sum, good_steps=taken, guard=self.guard.state(), loader=loader)
        later = self.config.save_in_background and not last
        self.folder.saver.save(self.model, self.optimizer, progress, background=later)

    def _announce(self, accumulation: int) -> None:
        """What is about to happen, in a few lines."""
        loader, config, ranks = self.loader, self.config, self.ranks
        print(
            f"{len(loader.manifest)} clips, {self.total_steps / loader.steps_per_epoch:.1f} epochs of "
            f"{loader.steps_per_epoch} steps; {config.views.views_per_step} views a step on {ranks.world_size} x "
            f"{ranks.device.type} in {accumulation} forward pass{'es' if accumulation > 1 else ''}; "
            f"peak lr {config.peak_lr:.2e}; {config.compute.precision}"
        )
        print(f"decoder {loader.decoder_choice}")
        if self.folder.progress:
            print(f"going on from step {self.first_step} of {self.total_steps}")
        for change in self.folder.changes:
            print(f"changed since the last start: {change}")
