"""One step of the real trainer at a world size that is not there: its memory, its collectives, its checkpoint, its time.

The stage, the model, the mesh, the sharding, the loss, the guard and the optimizer are the trainer's own
(train/training.py, train/loop.py); only ranks and tensors are fake. Of a step of many passes the first and the last are run,
and the first one's events counted as often as it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from benchmarks.rehearsal_parts.fake_ranks import fake_ranks
from benchmarks.rehearsal_parts.step_trace import Event, StepTrace
from pipeline.loader import Batch
from train.checkpoint.state import share_bytes
from train.compute.ema import local
from train.compute.memory import Cost, StepMemory, cost_of
from train.compute.parallel import Ranks, shard_size
from train.compute.plan import Card, Plan, plan
from train.loop import step
from train.stages.pretraining import PretrainConfig, Pretraining
from train.training import Training


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What the run would be on."""

    nodes: int
    gpus: int
    """Of a node."""
    card: str
    """By the data sheet: H100, H200."""
    card_bytes: float

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    def __str__(self) -> str:
        return f"{self.nodes} x {self.gpus} {self.card}" if self.nodes > 1 else f"{self.gpus} x {self.card}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """How the state is shared."""

    shard: int
    """Ranks that share one copy."""
    reshard: bool
    """--compute.reshard-after-forward."""

    def __str__(self) -> str:
        return f"shard {self.shard}{', resharded' if self.reshard else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RehearsedStep:
    """What was found."""

    mesh: Mesh
    plan: Plan
    """The trainer's own choice for such cards."""
    cost: Cost
    events: list[Event]
    """Of the whole step on rank 0."""
    peak: int
    """Most bytes of tensors alive on rank 0, batch and state included."""
    local_parameters: int
    checkpoint: int
    """Bytes of this rank's share of a checkpoint."""
    checkpoint_whole: int
    """Bytes of all tensors of a checkpoint."""
    blocks: int

    @property
    def views(self) -> int:
        """Of a rank's step."""
        return self.plan.views * self.plan.passes

    @property
    def predicted(self) -> StepMemory:
        """By the trainer's closed form, with one batch on the device, as here."""
        memory = self.plan.memory
        return replace(memory, inputs=self.plan.views * self.cost.inputs)


def rehearse(config: PretrainConfig, cluster: Cluster, mesh: Mesh) -> RehearsedStep:
    """Raises ValueError for ranks that cannot share a step or a state."""
    given: Any = {"attention": "flash", "tokens": "reference", "compile": False}  # what a CPU can
    compute = replace(config.compute, shard=mesh.shard, reshard_after_forward=mesh.reshard, **given)
    config = replace(config, compute=compute)
    card = Card(cluster.card_bytes, cluster.card_bytes)
    chosen = plan(Pretraining(config), cluster.ranks, cluster.gpus, card)
    run = min(chosen.passes, 2)
    few = replace(config.views, views_per_step=cluster.ranks * chosen.views * run)
    stage = Pretraining(replace(config, compute=chosen.compute, views=few))
    cost = cost_of(stage)
    with fake_ranks(cluster.nodes, cluster.gpus) as ranks:
        training = Training(stage, ranks, resumed=True)
        share, whole = share_bytes(training), make_moments(training)
        batch = fake_batch(stage, chosen.views)
        trace = trace_step(training, ranks, batch)
        parameters = sum(local(parameter).numel() for parameter in training.parameters)
        del training, batch
    assert shard_size(mesh.shard, cluster.ranks, cluster.gpus) == mesh.shard
    return RehearsedStep(
        mesh=mesh,
        plan=chosen,
        cost=cost,
        events=repeated(trace.events, chosen.passes, run),
        peak=trace.peak,
        local_parameters=parameters,
        checkpoint=share,
        checkpoint_whole=whole,
        blocks=chosen.passes * len(cost.shapes),
    )


def make_moments(training: Training) -> int:
    """Those of AdamW, as its first step makes them, so that the next one can be looked at. Returns the bytes of all that a
    checkpoint has: weights, moments, and a count of steps each."""
    assert isinstance(training.optimizer, torch.optim.AdamW)
    for parameter in training.parameters:
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        training.optimizer.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **moments}
    states = chain.from_iterable(state.values() for state in training.optimizer.state.values())
    return sum(each.numel() * each.element_size() for each in (*training.model.parameters(), *states))


def trace_step(training: Training, ranks: Ranks, batch: Any) -> StepTrace:
    """Of the trainer's own step, the same batch in every pass. A mark, a "pass", stands before each."""
    batches = 0

    def next_batch() -> Any:
        nonlocal batches
        batches += 1
        trace.events.append(Event("pass"))
        return batch

    states = chain.from_iterable(state.values() for state in training.optimizer.state.values())
    held = [local(each) for each in (*training.model.parameters(), *states) if isinstance(each, Tensor)]
    held += [each for each in (batch.views, batch.visible, batch.decoded, batch.loss_weight) if each is not None]
    training.draws = lambda batch: None  # type: ignore[assignment,method-assign,return-value]  # masks are in the batch
    with StepTrace(ranks.local_world_size, held) as trace:
        step(training, 1, next_batch)
    return trace


def repeated(events: Sequence[Event], passes: int, run: int) -> list[Event]:
    """The events of a step of so many passes, of which the first and the last were `run`."""
    marks = [place for place, event in enumerate(events) if event.kind == "pass"]
    assert len(marks) == run
    if passes == run:
        return list(events)
    first, last = list(events[marks[0] : marks[1]]), list(events[marks[1] :])
    # the second pass may gather otherwise than the first, where weights stayed gathered
    return [*events[: marks[0]], *first * (passes - 1), *last]


def fake_batch(stage: Pretraining, views: int) -> Batch:
    """Of a forward pass; its shapes are the loader's."""
    model, tokens, size = stage.config.model, stage.config.sampling.tokens, stage.config.model.input_size
    return Batch(
        torch.empty(views, model.num_frames, size, size, 3, dtype=torch.uint8),
        torch.empty(views, tokens.visible, dtype=torch.int64),
        torch.empty(views, tokens.decoded, dtype=torch.int64),
        torch.empty(views, tokens.loss),
        epoch=0,
        step=0,
        positions=torch.empty(0),
        rows=torch.empty(0),
        weight=torch.empty(views),
    )
