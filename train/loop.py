"""The only training loop. What is trained is a stage's business (`train/stage.py`), what is written down of it a run's."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline.batches import AnyBatch
from pipeline.stop_signals import StopSignal
from train.compute.optimizer import lr_at, set_lr
from train.compute.parallel import exchange_gradients
from train.run.run import Run, RunFailedError
from train.training import Training


@dataclass(frozen=True, slots=True)
class Step:
    """What a step was like; every tensor on the device, and unread."""

    losses: list[Tensor]
    """Of this rank's forward passes, each by their number: () float32."""
    scalars: dict[str, Tensor]
    """Others of the stage's, means over this rank's passes: () float32."""
    norm: Tensor
    """Of the gradient, over all ranks, before clipping: ()."""
    taken: Tensor
    """1.0 where the step was taken: ()."""


def step(training: Training, number: int, next_batch: Callable[[], AnyBatch]) -> Step:
    """One optimizer step over as many forward passes as it takes. The host does not wait for the device."""
    losses: list[Tensor] = []
    scalars: dict[str, Tensor] = {}
    for left in reversed(range(training.passes)):
        batch = next_batch()
        exchange_gradients(training.model, training.compute, last=left == 0)
        value, others = training.stage.loss(training.model, batch, training.draws(batch))
        loss = value / training.passes
        training.guard.scaled(loss).backward()
        losses.append(loss.detach())
        for name, scalar in others.items():
            part = scalar.detach().float() / training.passes
            scalars[name] = scalars[name] + part if name in scalars else part
    norm, taken = training.guard.step(number, training.optimizer, training.parameters, losses)
    if training.mean:
        training.mean.update(taken)
    return Step(losses, scalars, norm, taken)


def train(run: Run, stop: StopSignal) -> bool:
    """The loop. Returns False if a signal ended it before the last step. The host waits for the device after the first step,
    where a line of the log is due, before a checkpoint and in evaluations, and nowhere else."""
    config, training, last_step = run.config, run.training, run.total_steps
    warmup, save_due = config.warmup_steps(last_step), False
    run.evaluate(run.first_step, again=True)

    for number in range(run.first_step + 1, last_step + 1):
        lr = lr_at(number - 1, peak=config.peak_lr, final=config.final_lr, total_steps=last_step, warmup_steps=warmup)
        set_lr(training.optimizer, lr)
        done = step(training, number, run.meter.next_batch)
        run.stepped(number, done.losses, done.scalars, done.taken)

        stopping = run.ranks.any(stop.requested)
        line_due = number % config.log_every == 0 or number == last_step
        save_due = save_due or stopping or number % config.save_every == 0 or number == last_step
        if line_due or save_due:
            reading = run.check()
        line = run.log(number, lr, done.norm, reading) if line_due else None
        if save_due and training.guard.trusts(training.parameters, last=number == last_step):  # otherwise after the next step
            run.save(number, last=stopping or number == last_step)
            save_due = False
        run.show(line)  # saved first: who reads may be slow, or gone
        if stopping and not save_due and number < last_step:
            run.say(f"stopped by {stop.name} after step {number}, which is saved; the same command goes on from there")
            return False
        run.evaluate(number)
    if save_due:
        raise RunFailedError(f"the weights are not finite after step {last_step}, the last one, which is not saved")
    return True
