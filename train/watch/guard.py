"""What protects a run from a bad step, without the host waiting for the device.

A step is skipped, on all ranks alike, if its loss or its gradient is not finite or, by option, if the gradient's norm is far
above what it was lately (`--optim.spike-factor`). The device decides, and remembers: the host asks where it waits anyway, at a
line of the log and before a checkpoint, which steps were skipped and whether too many were so in a row.

In fp16 the loss is scaled, so that small gradients do not vanish, and the gradient overflows now and then: the step is skipped
and the scale halved. That is no sign of trouble, and does not count to the steps in a row, unless the scale is at its least.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from train.config import OptimConfig

SPIKE_MEMORY = 100  # steps: the norm's running mean is of all so far, then forgets so many; the rule works from there on


class Verdict(enum.IntEnum):
    """Of a step, the worst of all ranks. Anything but TAKEN: parameters and moments stayed as they were."""

    TAKEN = 0
    SPIKE = 1
    OVERFLOW = 2  # of a scaled gradient, where the scale could still be lowered
    GRADIENT = 3
    LOSS = 4

    def __str__(self) -> str:
        return VERDICTS[self]


VERDICTS = "taken", "gradient spike", "gradient overflow, loss scale halved", "gradient not finite", "loss not finite"


@dataclass(frozen=True, slots=True)
class SkippedStep:
    """A step that was not taken."""

    step: int  # counted from 1, as in the log
    verdict: Verdict
    grad_norm: float  # over all ranks, unscaled; may be inf or nan
    losses: list[float]  # of this rank's forward passes


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardReading:
    """What the guard says when it is asked."""

    skipped: list[SkippedStep]
    """Since it was last asked."""
    longest_row: int
    """Of skipped steps since then, those included that the first of them goes on from; without overflows."""
    total: int
    """Skipped since the run began."""
    loss_scale: float | None
    """For the next step; None if the loss is not scaled."""


class LossScale:
    """Dynamic loss scaling, with the rules and numbers of torch.amp.GradScaler (the official code's), but never below 1.

    It doubles after 2000 steps in a row without an overflow, and halves at each overflow. `value` is float32 (), on
    the device.
    """

    INITIAL, LEAST, INTERVAL = 65536.0, 1.0, 2000

    def __init__(self, device: torch.device, value: float = INITIAL, good_steps: float = 0.0) -> None:
        self.value = torch.tensor(value, device=device)
        self.good_steps = torch.tensor(good_steps, device=device)  # since the scale was last changed

    def update(self, overflow: torch.Tensor) -> None:
        """After a step; `overflow` () bool: its scaled gradient was not finite."""
        good_steps = torch.where(overflow, 0.0, self.good_steps + 1)
        doubled = torch.where(good_steps == self.INTERVAL, self.value * 2, self.value)
        doubled = torch.where(torch.isfinite(doubled), doubled, self.value)
        self.value = torch.where(overflow, (self.value / 2).clamp(min=self.LEAST), doubled)
        self.good_steps = torch.where(good_steps == self.INTERVAL, 0.0, good_steps)


def guarded_step(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    clip_grad: float | None,
    loss: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    most: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip and step, unless something is wrong with the step: then parameters and moments stay, on all ranks alike.

    `loss` is this rank's; the gradients are those of `scale` times the loss; `most` is the norm from which on it is a spike.
    Returns the gradient's global norm before clipping, without the scale, and the `Verdict`, here never OVERFLOW: both float32
    (), on the device. The decision is the device's too: `found_inf` of the fused optimizer, made for gradient scaling.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()  # a sum over all ranks, so that a NaN of one is everybody's
    if scale is not None:
        norm = norm / scale
    # a pass of its own: to have the fused step divide by what is too much (`grad_scale`) would save reading the gradients once,
    # 1 of 381 ms of ViT-g's step on one GPU, 0.1 on eight (both reckoned), and change the last bits of runs that go on
    if clip_grad is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm, foreach=True)
    verdict = torch.where(torch.isfinite(loss), torch.where(torch.isfinite(norm), 0.0, Verdict.GRADIENT), Verdict.LOSS)
    if most is not None:
        verdict = torch.where(norm > most, verdict.clamp(min=Verdict.SPIKE), verdict)
    if dist.get_world_size() > 1:
        dist.all_reduce(verdict, op=dist.ReduceOp.MAX)  # the loss is one rank's
    optimizer.found_inf = (verdict > 0).float()  # type: ignore[attr-defined]
    optimizer.grad_scale = scale  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, verdict


class Guard:
    """Takes a run's steps, and remembers on the device which were skipped. Every rank has one; only the losses differ."""

    def __init__(
        self,
        optim: OptimConfig,
        *,
        passes: int,
        memory: int,
        device: torch.device,
        scaled: bool = False,
        state: Mapping[str, float] | None = None,
    ) -> None:
        """`passes`: forward passes of a step; `memory`: steps after which `read` is called at the latest; `scaled`: the loss is
        (fp16); `state`: of the run that this one goes on with."""
        self._optim, state = optim, state or {}

        def tensor(name: str, default: float = 0.0) -> torch.Tensor:
            return torch.tensor(float(state.get(name, default)), device=device)

        self._skipped, self._in_a_row = tensor("skipped"), tensor("in_a_row")
        self._longest_row = self._in_a_row  # since `read`
        self._norm_mean, self._norm_steps = tensor("norm_mean"), tensor("norm_steps")
        self.scale: LossScale | None = None
        if scaled:
            names = {"value": "loss_scale", "good_steps": "loss_scale_steps"}
            self.scale = LossScale(device, **{name: state[key] for name, key in names.items() if key in state})
        self._steps: list[int] = []  # since `read`, and of each:
        self._notes = torch.zeros(memory, 2 + passes, device=device)  # verdict, norm, losses

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """What `backward` is called on."""
        return loss if self.scale is None else loss * self.scale.value

    def step(
        self, step: int, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], losses: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a step, or skip it. `losses`: of this rank's forward passes, float32 () each.

        Returns the gradient's norm before clipping, and 1.0 where the step was taken: both float32 (), on the device.
        """
        factor, most = self._optim.spike_factor, None
        if factor is not None:
            most = torch.where(self._norm_steps < SPIKE_MEMORY, torch.inf, factor * self._norm_mean)
        scale = None if self.scale is None else self.scale.value
        all_losses = torch.stack(losses)
        norm, verdict = guarded_step(optimizer, parameters, self._optim.clip_grad, all_losses.sum(), scale=scale, most=most)
        if self.scale is not None:
            no_fault = (verdict == Verdict.GRADIENT) & (self.scale.value > LossScale.LEAST)
            verdict = torch.where(no_fault, float(Verdict.OVERFLOW), verdict)
            self.scale.update(verdict >= Verdict.OVERFLOW)
        if most is not None:
            self._learn(torch.minimum(norm, most), verdict <= Verdict.SPIKE)
        taken = verdict == Verdict.TAKEN
        self._skipped = self._skipped + ~taken
        self._in_a_row = torch.where(verdict == Verdict.OVERFLOW, self._in_a_row, torch.where(taken, 0.0, self._in_a_row + 1))
        self._longest_row = torch.maximum(self._longest_row, self._in_a_row)
        self._notes[len(self._steps)] = torch.cat([torch.stack([verdict, norm]), all_losses])
        self._steps.append(step)
        return norm, taken.float()

    def _learn(self, norm: torch.Tensor, finite: torch.Tensor) -> None:
        """Of a spike the limit, not the norm itself, so that the mean can follow where the norm stays high."""
        steps = (self._norm_steps + 1).clamp(max=SPIKE_MEMORY)
        mean = self._norm_mean + (norm - self._norm_mean) / steps
        self._norm_mean = torch.where(finite, mean, self._norm_mean)
        self._norm_steps = torch.where(finite, steps, self._norm_steps)

    def read(self) -> GuardReading:
        """What happened since the last call. The host waits for the device."""
        notes = self._notes[: len(self._steps)].tolist()
        reading = GuardReading(
            skipped=[
                SkippedStep(step, Verdict(int(verdict)), norm, losses)
                for step, (verdict, norm, *losses) in zip(self._steps, notes, strict=True)
                if verdict != Verdict.TAKEN
            ],
            longest_row=int(self._longest_row),
            total=int(self._skipped),
            loss_scale=None if self.scale is None else float(self.scale.value),
        )
        self._steps, self._longest_row = [], self._in_a_row
        return reading

    def trusts(self, parameters: list[nn.Parameter], last: bool) -> bool:
        """Whether the weights may be saved: they are finite, and the step before was taken, or none comes that could be. All
        ranks call it, and get the same answer; the host waits for the device."""
        norm = nn.utils.get_total_norm(parameters, foreach=True)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        return bool(torch.isfinite(norm) & ((self._in_a_row == 0) | last))

    def state(self) -> dict[str, float]:
        """Plain values, exact, for JSON. The host waits for the device."""
        tensors = {"skipped": self._skipped, "in_a_row": self._in_a_row}
        tensors |= {"norm_mean": self._norm_mean, "norm_steps": self._norm_steps}
        if self.scale is not None:
            tensors |= {"loss_scale": self.scale.value, "loss_scale_steps": self.scale.good_steps}
        return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
