#!/usr/bin/env python3
"""Pre-train a dual-masked autoencoder on a dataset of clips.

    python train/pretrain.py tiny --data DATASET --out RUN
    torchrun --nproc-per-node 8 train/pretrain.py vit-g-hybrid --data DATASET --out RUN
    python train/pretrain.py vit-g-hybrid --dry-run

Interrupted, the same command goes on from the last checkpoint with the same batches, on any number of GPUs. RUN holds
config.json, environment.json, metrics.jsonl, failures.jsonl, tensorboard/, checkpoints/ and, at the end, model.safetensors
(official parameter names) and `complete`.
"""

import sys
from pathlib import Path

ROOT, HERE = (str(Path(__file__).resolve().parents[i]) for i in (1, 0))
sys.path[:] = [ROOT, *(folder for folder in sys.path if folder not in (ROOT, HERE))]

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from types import FrameType

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from model.flops import executed_gmac
from model.videomae import VideoMAE
from pipeline.loader import ClipLoader, LoaderError, LoaderState
from pipeline.manifest import Manifest
from pipeline.order import order_of
from train import checkpoints
from train.checkpoints import Progress
from train.config import PretrainConfig
from train.dry_run import describe
from train.live_profile import LiveProfile
from train.meters import FailureLog, Meters, device_name, memory_gib, peak_flops
from train.optimizer import lr_at, pretraining_optimizer, set_lr
from train.parallel import Ranks, build_model, started
from train.recipes import from_command_line
from train.run_folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is done, or was asked to stop and saved; 2 when it cannot be as asked; 1 when it failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(__doc__)
        with contextlib.suppress(SystemExit):
            from_command_line(["--help"])
        return 2
    config = from_command_line(arguments)
    try:
        if config.dry_run:
            print(describe(config, int(os.environ.get("WORLD_SIZE", "1"))))
            return 0
        if config.data is None or config.out is None:
            raise ValueError("--data DATASET and --out RUN are needed; or --dry-run, to look at the recipe without them")
        with started(config.compute.device) as ranks:
            pretrain(config, ranks)
        return 0
    except (ValueError, OSError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2
    except (RunFailedError, LoaderError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 1


class RunFailedError(RuntimeError):
    """The run cannot go on; the message says why and what is left."""


def pretrain(config: PretrainConfig, ranks: Ranks) -> None:
    """Run, or go on with, the training that the configuration describes; every rank calls it."""
    assert config.data is not None
    stop = StopSignal()
    folder = RunFolder(config, ranks)
    progress = folder.progress
    manifest = Manifest(config.data, progress.loader.version if progress else None)
    total_steps = config.total_steps(order_of(manifest, config.sampling).steps_per_epoch)
    accumulation = config.accumulation(ranks.world_size)
    if folder.completed_steps == total_steps:
        if ranks.rank == 0:
            print(f"{folder.path} is done: {total_steps} steps. For a longer run raise --steps or --epochs.")
        return
    if progress and progress.step > total_steps:
        raise ValueError(
            f"{folder.path} has done {progress.step} steps already, more than the {total_steps} of --steps or --epochs"
        )
    folder.begin()
    loader = ClipLoader(
        config.data,
        config.sampling,
        rank=ranks.rank,
        world_size=ranks.world_size,
        state=progress.loader if progress else None,
        device=ranks.device,
        clips_per_batch=config.sampling.clips_per_step // ranks.world_size // accumulation,
        threads=config.views.threads,
        prefetch=config.views.prefetch,
        decoder=config.compute.decoder,
    )
    folder.note(decoder=str(loader.decoder_choice))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(loader.close)
        failures = FailureLog(folder.path, loader.failures)
        cleanup.callback(failures.flush)
        profile = None
        if config.profile_loader:
            profile = LiveProfile(folder.path, loader, ranks.rank, ranks.device.type, device_name(ranks.device))
            cleanup.callback(profile.write)
        model = build_model(config.model, config.compute, config.seed, ranks)
        optimizer = pretraining_optimizer(model, config.optim)
        if folder.checkpoint:
            checkpoints.load(folder.checkpoint, model, optimizer)
        meters = None
        if ranks.rank == 0:
            announce(config, folder, loader, total_steps, accumulation, ranks)
            meters = Meters(folder.path, total_steps, progress.step if progress else 0)
            cleanup.callback(meters.close)
        if train(config, model, optimizer, loader, progress, total_steps, folder, meters, failures, profile, stop, ranks):
            checkpoints.export(folder.path / "model.safetensors", model, ranks)
            folder.complete(total_steps)
            if ranks.rank == 0:
                print(f"done: {total_steps} steps; weights in {folder.path / 'model.safetensors'}")


def train(
    config: PretrainConfig,
    model: VideoMAE,
    optimizer: torch.optim.AdamW,
    loader: ClipLoader,
    progress: Progress | None,
    total_steps: int,
    folder: RunFolder,
    meters: Meters | None,
    failures: FailureLog,
    profile: LiveProfile | None,
    stop: "StopSignal",
    ranks: Ranks,
) -> bool:
    """The loop. Returns False if a signal ended it before the last step. The host waits for the device only where a line of
    the log or a checkpoint is due."""
    first_step = progress.step if progress else 0
    parameters = list(model.parameters())
    views_per_step = config.views.views_per_step
    flops = 6e9 * executed_gmac(config.model, config.sampling.tokens.visible, config.sampling.tokens.decoded) * views_per_step
    peak = peak_flops(ranks.device, config.compute.precision)
    # on the device: summed loss and number of good steps since the last line; skipped steps in total, and in a row
    loss_sum, good, skipped, in_a_row = (torch.zeros((), device=ranks.device) for _ in range(4))
    if progress and ranks.rank == 0:
        loss_sum += progress.loss_sum
        good += progress.good_steps
    skipped += progress.skipped if progress else 0
    logged_at, waited, last_logged = time.perf_counter(), 0.0, first_step
    tuning = None  # of the loader, as last told

    for step in range(first_step, total_steps):
        lr = lr_at(
            step,
            peak=config.peak_lr,
            final=config.final_lr,
            total_steps=total_steps,
            warmup_steps=config.warmup_steps(total_steps),
        )
        set_lr(optimizer, lr)
        loss = torch.zeros((), device=ranks.device)
        for _ in range(loader.batches_per_step):
            batch = next(loader)
            part = model(batch.views, batch.visible, batch.decoded, batch.loss_weight) / loader.batches_per_step
            part.backward()
            loss += part.detach()
        failures.flush()
        if profile:
            profile.write_if_due()
        norm, bad = guarded_step(optimizer, parameters, config.optim.clip_grad, loss)
        loss_sum += torch.where(bad > 0, 0.0, loss)
        good += 1 - bad
        skipped += bad
        in_a_row = (in_a_row + 1) * bad
        if meters:
            meters.advance()

        done, stopping = step + 1, ranks.any(stop.requested)
        if done % config.log_every == 0 or done == total_steps:
            losses = ranks.sum(torch.stack([loss_sum, good]))
            *values, grad_norm, all_skipped, row = torch.stack([*losses, norm, skipped, in_a_row]).tolist()
            now = time.perf_counter()
            longest_wait = max(ranks.gather(loader.wait_seconds))
            if meters and loader.tuning != tuning:
                tuning = loader.tuning
                meters.say(f"loader: {tuning}")
                folder.note(loader=str(tuning))
            if meters:
                seconds, count = now - logged_at, done - last_logged
                meters.log(
                    {
                        "step": done,
                        "epoch": done / loader.steps_per_epoch,
                        "loss": values[0] / values[1] if values[1] else None,
                        "lr": lr,
                        "grad_norm": grad_norm if row == 0 else None,
                        "clip_ratio": min(1.0, config.optim.clip_grad / grad_norm)
                        if config.optim.clip_grad and row == 0 and grad_norm
                        else None,
                        "views_per_second": count * views_per_step / seconds,
                        "mfu": count * flops / seconds / peak / ranks.world_size if peak else None,
                        "data_wait": min(1.0, (longest_wait - waited) / seconds),
                        "memory_gib": memory_gib(ranks.device),
                        "skipped": int(all_skipped),
                        "time": time.time(),
                    }
                )
            waited = longest_wait
            loss_sum.zero_()
            good.zero_()
            logged_at, last_logged = now, done
            if row >= config.optim.max_skipped:
                raise RunFailedError(
                    f"the gradient was not finite in the last {int(row)} steps ({done - int(row) + 1} to {done}, epoch "
                    f"{(done - 1) // loader.steps_per_epoch}); the last good checkpoint is "
                    f"{checkpoints.latest(folder.checkpoints) or 'none'}. Lower --optim.base-lr or set --compute.precision fp32"
                )
        if done % config.save_every == 0 or done == total_steps or stopping:
            if in_a_row > 0 and not stopping and done != total_steps:
                continue  # nothing is saved while steps are being skipped
            loss_so_far, good_so_far = ranks.sum(torch.stack([loss_sum, good])).tolist()
            checkpoints.save(
                folder.checkpoints,
                model,
                optimizer,
                Progress(
                    step=done,
                    skipped=int(skipped),
                    loss_sum=loss_so_far,
                    good_steps=good_so_far,
                    loader=LoaderState.merged(ranks.gather(loader.state())),
                ),
                config.keep_last,
                ranks,
            )
        if stopping and done < total_steps:
            if meters:
                meters.say(f"stopped by {stop.name} after step {done}, which is saved; the same command goes on from there")
            return False
    return True


def guarded_step(
    optimizer: torch.optim.AdamW, parameters: list[nn.Parameter], clip_grad: float | None, loss: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip and step, unless loss or gradient is not finite: then parameters and moments stay, on all ranks alike.

    Returns the gradient's global norm before clipping, and 1.0 where the step was skipped: both float32 (), on the device.
    The decision is the device's too: `found_inf` of the fused optimizer, which gradient scaling uses.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if clip_grad is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()  # a sum over all ranks, so that a NaN of one is everybody's
    bad = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
    if dist.get_world_size() > 1:
        dist.all_reduce(bad, op=dist.ReduceOp.MAX)  # the loss is one rank's
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, bad


class StopSignal:
    """SIGTERM, SIGUSR1 and Ctrl-C ask the run to save and stop after the step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested, self.name = False, ""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.requested, self.name = True, signal.Signals(number).name


def announce(
    config: PretrainConfig,
    folder: RunFolder,
    loader: ClipLoader,
    total_steps: int,
    accumulation: int,
    ranks: Ranks,
) -> None:
    """What is about to happen, in a few lines."""
    clips = len(loader.manifest)
    print(
        f"{clips} clips, {total_steps / loader.steps_per_epoch:.1f} epochs of {loader.steps_per_epoch} steps; "
        f"{config.views.views_per_step} views a step on {ranks.world_size} x {ranks.device.type} in {accumulation} forward "
        f"pass{'es' if accumulation > 1 else ''}; peak lr {config.peak_lr:.2e}; {config.compute.precision}"
    )
    print(f"decoder {loader.decoder_choice}")
    if folder.progress:
        print(f"going on from step {folder.progress.step} of {total_steps}")
    for change in folder.changes:
        print(f"changed since the last start: {change}")


if __name__ == "__main__":
    sys.exit(main())
