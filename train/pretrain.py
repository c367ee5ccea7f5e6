#!/usr/bin/env python3
"""Pre-train a dual-masked autoencoder on a dataset of clips.

    tubecell pretrain tiny --data DATASET --out RUN
    torchrun --nproc-per-node 8 -m tubecell pretrain vit-g-hybrid --data DATASET --out RUN
    tubecell pretrain vit-g-hybrid --dry-run

Interrupted, the same command goes on from the last checkpoint with the same batches, on any number of GPUs. RUN holds
config.json, environment.json, metrics.jsonl, skipped.jsonl, failures.jsonl, tensorboard/, checkpoints/ and, at the end,
model.safetensors (official parameter names) and `complete`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import contextlib
import os
from collections.abc import Collection, Sequence

from torch.distributed.elastic.multiprocessing.errors import get_error_handler, record

from pipeline.console import check_printed, open_streams
from pipeline.loader import LoaderError
from pipeline.sampling.order import order_of
from pipeline.stop_signals import StopSignal
from train.checkpoint import state as checkpoints
from train.compute.optimizer import lr_at, set_lr
from train.compute.out_of_memory import advice, is_out_of_memory
from train.compute.parallel import Ranks, exchange_gradients, started
from train.compute.startup import Startup
from train.config import PretrainConfig
from train.recipes import check_length, flags_of, from_command_line
from train.run.dry_run import describe
from train.run.folder import RunFolder
from train.run.run import Run, RunFailedError
from train.watch.meters import check_wandb

PATIENCE = 10.0  # seconds that the training waits for a console that does not take in what is said


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is done, or was asked to stop and saved; 2 when it cannot be as asked; 1 when it failed."""
    startup = Startup()
    open_streams(PATIENCE)
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(__doc__)
        with contextlib.suppress(SystemExit):
            from_command_line(["--help"])
        return 2
    config = from_command_line(arguments)
    try:
        given = flags_of(arguments)
        if config.dry_run:
            check_length(config, given)
            print(describe(config, int(os.environ.get("WORLD_SIZE", "1"))))
            check_printed()
            return 0
        if config.data is None or config.out is None:
            raise ValueError("--data DATASET and --out RUN are needed; or --dry-run, to look at the recipe without them")
        with started(config.compute.device) as ranks:
            startup.done("process group")
            full = None
            try:
                pretrain(config, ranks, startup, given)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                full = str(error)  # the error itself holds the model, by its traceback
            if full:
                raise RunFailedError(f"{full}\n{advice(config, ranks)}")
        return 0
    except (ValueError, OSError, RunFailedError, LoaderError) as error:
        rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        print(f"pretrain: {rank}{error}", file=sys.stderr)
        get_error_handler().record_exception(error)  # torchrun repeats it after all that the other ranks have to say
        return 2 if isinstance(error, ValueError | OSError) else 1


def pretrain(config: PretrainConfig, ranks: Ranks, startup: Startup, given: Collection[str] = ()) -> None:
    """Run, or go on with, the training that the configuration describes; every rank calls it. `given` are the fields that a
    command line names."""
    assert config.data is not None
    check_wandb(config.wandb)
    stop = StopSignal()
    with contextlib.ExitStack() as cleanup:
        folder = cleanup.enter_context(contextlib.closing(RunFolder(config, ranks, given)))
        config = folder.config
        order = order_of(folder.manifest, config.sampling)
        order.rank_positions(0, ranks.rank, ranks.world_size)  # refuses ranks that cannot share the clips and lanes
        total_steps = config.total_steps(order.steps_per_epoch)
        if folder.completed_steps == total_steps:
            if ranks.rank == 0:
                print(f"{folder.path} is done: {total_steps} steps. For a longer run raise --steps or --epochs.")
            return
        if folder.first_step > total_steps:
            raise ValueError(
                f"{folder.path} has done {folder.first_step} steps already, more than the {total_steps} of --steps or --epochs"
            )
        run = Run(config, ranks, folder, total_steps, startup, cleanup)
        folder.begin()
        if train(run, stop):
            checkpoints.export(folder.path / "model.safetensors", run.model, ranks)
            folder.complete(total_steps)
            run.say(f"done: {total_steps} steps; weights in {folder.path / 'model.safetensors'}")


def train(run: Run, stop: StopSignal) -> bool:
    """The loop. Returns False if a signal ended it before the last step. The host waits for the device after the first step,
    where a line of the log is due and before a checkpoint, and nowhere else."""
    config, loader, guard, last_step = run.config, run.loader, run.guard, run.total_steps
    warmup, save_due = config.warmup_steps(last_step), False

    for step in range(run.first_step + 1, last_step + 1):
        lr = lr_at(step - 1, peak=config.peak_lr, final=config.final_lr, total_steps=last_step, warmup_steps=warmup)
        set_lr(run.optimizer, lr)
        losses = []
        for left in reversed(range(loader.batches_per_step)):
            batch = run.meter.next_batch()
            exchange_gradients(run.model, config.compute, last=left == 0)
            loss = run.model(batch.views, batch.visible, batch.decoded, batch.loss_weight) / loader.batches_per_step
            guard.scaled(loss).backward()
            losses.append(loss.detach())
        norm, taken = guard.step(step, run.optimizer, run.parameters, losses)
        run.stepped(step, losses, taken)

        stopping = run.ranks.any(stop.requested)
        line_due = step % config.log_every == 0 or step == last_step
        save_due = save_due or stopping or step % config.save_every == 0 or step == last_step
        if line_due or save_due:
            reading = run.check()
        line = run.log(step, lr, norm, reading) if line_due else None
        if save_due and guard.trusts(run.parameters, last=step == last_step):  # otherwise after the next step
            run.save(step, last=stopping or step == last_step)
            save_due = False
        run.show(line)  # saved first: who reads may be slow, or gone
        if stopping and not save_due and step < last_step:
            run.say(f"stopped by {stop.name} after step {step}, which is saved; the same command goes on from there")
            return False
    if save_due:
        raise RunFailedError(f"the weights are not finite after step {last_step}, the last one, which is not saved")
    return True


if __name__ == "__main__":
    sys.exit(record(main)())
