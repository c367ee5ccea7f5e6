"""The guard alone, in one process. What the trainer makes of it is in test_faults.py."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tests.train.trainers import SMALL
from train.command_line import from_command_line
from train.compute.optimizer import set_lr
from train.compute.parallel import Ranks, started
from train.config import OptimConfig
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import Pretraining
from train.training import Training
from train.watch.guard import SPIKE_MEMORY, Guard, LossScale, Verdict, guarded_step

CPU = torch.device("cpu")


class Model:
    """A sharded model and its optimizer."""

    def __init__(self, ranks: Ranks) -> None:
        training = Training(Pretraining(from_command_line(RECIPES, SMALL)), ranks)
        self.optimizer, self.parameters = training.optimizer, training.parameters
        set_lr(self.optimizer, 1e-2)

    def set_gradients(self, value: float) -> None:
        for parameter in self.parameters:
            parameter.grad = torch.full_like(parameter, value)

    def tensors(self) -> list[torch.Tensor]:
        """Copies of all that a step changes."""
        moments = [self.optimizer.state[p][name] for p in self.parameters for name in ("exp_avg", "exp_avg_sq", "step")]
        tensors = [t.full_tensor() if isinstance(t, DTensor) else t for t in [*self.parameters, *moments]]
        return [t.detach().clone() for t in tensors]


@pytest.fixture(scope="module", autouse=True)
def ranks() -> Iterator[Ranks]:
    with started("cpu") as ranks:
        yield ranks


@pytest.fixture
def model(ranks: Ranks) -> Iterator[Model]:
    model = Model(ranks)
    yield model
    vars(model).clear()  # before its process group is


def one_parameter(
    *, scaled: bool = False, state: dict[str, float] | None = None, **optim: Any
) -> tuple[Guard, Callable[..., Verdict]]:
    """A guard, and a function that takes its next step with a gradient of this norm and a loss -> its verdict."""
    parameter = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    guard = Guard(OptimConfig(**optim), passes=1, memory=1000, device=CPU, scaled=scaled, state=state)

    def step(norm: float, loss: float = 1.0) -> Verdict:
        parameter.grad = torch.full((4,), norm / 2 * (1.0 if guard.scale is None else float(guard.scale.value)))
        before = parameter.detach().clone()
        taken = guard.step(len(guard._steps) + 1, optimizer, [parameter], [torch.tensor(loss)])[1]
        assert torch.equal(before, parameter.detach()) == (not taken)
        return Verdict(int(guard._notes[len(guard._steps) - 1][0]))

    return guard, step


@pytest.mark.parametrize(
    ("gradient", "loss", "verdict"),
    [
        (float("nan"), 1.0, Verdict.GRADIENT),
        (float("inf"), 1.0, Verdict.GRADIENT),
        (1.0, float("inf"), Verdict.LOSS),
        (float("nan"), float("nan"), Verdict.LOSS),
        (7.0, 1.0, Verdict.SPIKE),
    ],
)
def test_a_skipped_step_changes_nothing(model: Model, gradient: float, loss: float, verdict: Verdict) -> None:
    states = []
    for value, of_loss, expected in ((1.0, 1.0, Verdict.TAKEN), (gradient, loss, verdict), (1.0, 1.0, Verdict.TAKEN)):
        model.set_gradients(value)
        ones = sum(parameter.numel() for parameter in model.parameters) ** 0.5
        norm, found = guarded_step(model.optimizer, model.parameters, 0.5, torch.tensor(of_loss), most=torch.tensor(3 * ones))
        assert found == expected
        assert norm.item() == pytest.approx(value * ones, rel=1e-5, nan_ok=True)
        states.append(model.tensors())
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))


def test_a_scaled_loss_gives_the_same_step_to_the_last_bit(model: Model) -> None:
    """Clipping included: powers of two are exact."""
    before = [parameter.detach().clone() for parameter in model.parameters]
    results = []
    for scale in (None, torch.tensor(65536.0)):
        for parameter, value in zip(model.parameters, before, strict=True):
            parameter.detach().copy_(value)
        model.optimizer.state.clear()
        for value in (0.3, -0.7):
            model.set_gradients(value * (1.0 if scale is None else 65536.0))
            norm, _ = guarded_step(model.optimizer, model.parameters, 0.02, torch.tensor(1.0), scale=scale)
        results.append([norm, *model.tensors()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_loss_scale_is_that_of_torch_amp(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not begin anew with a restart."""
    assert torch.amp.GradScaler("cpu").get_growth_interval() == LossScale.INTERVAL
    theirs = torch.amp.GradScaler("cpu", growth_interval=20)
    monkeypatch.setattr(LossScale, "INTERVAL", 20)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    ours = LossScale(CPU)
    draw = random.Random(0)
    overflows = {draw.randrange(300) for _ in range(12)}
    seen = set()
    for step in range(300):
        theirs.scale(torch.zeros(()))
        parameter.grad = torch.tensor([float("inf") if step in overflows else 1.0])
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(step in overflows))
        assert float(ours.value) == theirs.get_scale(), step
        assert int(ours.good_steps) == theirs.state_dict()["_growth_tracker"], step
        seen.add(float(ours.value))
        if step % 37 == 0:
            ours = LossScale(CPU, *json.loads(json.dumps([float(ours.value), float(ours.good_steps)])))
    assert len(seen) > 4


def test_an_overflow_counts_only_where_the_scale_cannot_fall() -> None:
    guard, step = one_parameter(scaled=True)
    for exponent in range(16, 0, -1):
        assert guard.state()["loss_scale"] == 2**exponent
        assert step(float("inf")) == Verdict.OVERFLOW
    reading = guard.read()
    assert (reading.total, reading.longest_row, reading.loss_scale) == (16, 0, 1.0)
    assert guard.trusts([nn.Parameter(torch.ones(1))], last=False)
    assert [step(float("inf")) for _ in range(3)] == [Verdict.GRADIENT] * 3
    assert guard.read().longest_row == 3
    assert guard.state()["loss_scale"] == 1.0
    guard, step = one_parameter(scaled=True)
    assert step(1.0, loss=float("nan")) == Verdict.LOSS  # of which no scale is to blame
    assert guard.read().longest_row == 1


def test_spikes_are_skipped_by_option_after_a_hundred_steps() -> None:
    draw = random.Random(1)
    guard, step = one_parameter(spike_factor=3.0)
    _, careless = one_parameter()
    assert step(500.0) == Verdict.TAKEN  # no mean yet
    for _ in range(SPIKE_MEMORY - 1):
        assert step(draw.uniform(0.5, 1.5)) == Verdict.TAKEN
    mean = guard.state()["norm_mean"]
    assert mean == pytest.approx((500 + 99) / 100, rel=0.1)
    assert step(3.01 * mean) == Verdict.SPIKE and careless(3.01 * mean) == Verdict.TAKEN
    for _ in range(600):
        assert step(draw.uniform(0.5, 1.5)) == Verdict.TAKEN
    assert guard.state()["norm_mean"] == pytest.approx(1.0, rel=0.1)
    assert step(2.5) == Verdict.TAKEN and step(3.5) == Verdict.SPIKE and step(float("nan")) == Verdict.GRADIENT
    row = [step(5.0) for _ in range(70)]  # it stays there: then it is no spike
    assert row[0] == Verdict.SPIKE and row[-1] == Verdict.TAKEN


def test_a_guard_that_goes_on_decides_the_same() -> None:
    draw = random.Random(2)
    norms = [draw.lognormvariate(0, 0.6) for _ in range(500)]
    guard, step = one_parameter(spike_factor=2.0)
    straight = [step(norm) for norm in norms]
    assert 5 < straight.count(Verdict.SPIKE) < 200
    broken = []
    state = None
    for part in (norms[:77], norms[77:203], norms[203:]):
        part_guard, step = one_parameter(spike_factor=2.0, state=state)
        broken += [step(norm) for norm in part]
        state = json.loads(json.dumps(part_guard.state()))
    assert broken == straight
    assert state == guard.state()


def test_what_was_skipped_is_told_with_its_losses_and_the_longest_row() -> None:
    guard, step = one_parameter()
    for loss in (1.0, float("nan"), float("inf"), float("nan"), 2.0, float("nan")):
        step(1.0, loss)
    reading = guard.read()
    assert [(s.step, s.verdict, s.grad_norm) for s in reading.skipped] == [(n, Verdict.LOSS, 1.0) for n in (2, 3, 4, 6)]
    assert reading.skipped[1].losses == [float("inf")]
    assert (reading.longest_row, reading.total) == (3, 4)
    step(1.0, float("nan"))  # the second in a row, over the break of the log
    assert (guard.read().longest_row, guard.read().total) == (2, 5)


def test_nothing_is_trusted_while_steps_are_skipped_or_a_weight_is_not_finite() -> None:
    guard, step = one_parameter()
    sound, spoilt = nn.Parameter(torch.ones(3)), nn.Parameter(torch.tensor([1.0, float("nan")]))
    step(1.0)
    assert guard.trusts([sound], last=False)
    assert not guard.trusts([sound, spoilt], last=False) and not guard.trusts([sound, spoilt], last=True)
    step(float("nan"))
    assert not guard.trusts([sound], last=False)
    assert guard.trusts([sound], last=True)  # no step comes that could be good, and the skipped one changed nothing
