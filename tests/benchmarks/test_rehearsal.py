"""The rehearsal: its models by known answers, its trace by the trainer's closed forms and by real ranks."""

import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks.rehearsal_parts.fake_ranks import fake_ranks
from benchmarks.rehearsal_parts.links import Links
from benchmarks.rehearsal_parts.options import Options
from benchmarks.rehearsal_parts.predictions import predict_step, scaling
from benchmarks.rehearsal_parts.rehearsed_step import Cluster, Mesh, make_moments, rehearse
from benchmarks.rehearsal_parts.restarts import Faults, best_interval, ettr, ettr_by_hand
from benchmarks.rehearsal_parts.step_trace import Event, collectives
from benchmarks.rehearsal_parts.timeline import Device, step_time
from tests.benchmarks import gloo_steps
from train.checkpoint.state import state_of
from train.stages.pretraining import Pretraining
from train.training import Training

LINKS = Links(intra_gbs=100, inter_gbs=10, intra_us=0, inter_us=0)
DEVICE = Device(tflops=1000, mfu=0.5, hbm_gbs=28, host_ms=0)
SECOND = 500e12  # FLOPs that the device does in one


@pytest.mark.parametrize(
    ("kind", "ranks", "nodes", "seconds"),
    [
        ("all-gather", 1, 1, 0.0),
        ("all-gather", 8, 1, 0.07),  # 7/8 of 8 GB at 100 GB/s
        ("reduce-scatter", 8, 1, 0.07),
        ("all-reduce", 8, 1, 0.14),  # both
        ("all-gather", 16, 2, 0.075),  # within the node: 15/16; half of it from the other node, at 80 GB/s, takes 0.05
        ("all-gather", 512, 64, 8 * 63 / 64 / 80),  # nearly all from other nodes
        ("all-reduce", 64, 64, 2 * 8 * 63 / 64 / 10),  # one rank a node: its own adapter
    ],
)
def test_a_collective_takes_its_bytes_by_the_slower_link(kind: str, ranks: int, nodes: int, seconds: float) -> None:
    assert LINKS.seconds(Event(kind, 8e9, ranks, nodes)) == pytest.approx(seconds)  # type: ignore[arg-type]


def test_hops_take_their_time_and_a_tree_has_fewer() -> None:
    links = replace(LINKS, intra_us=2, inter_us=5)
    assert links.seconds(Event("all-gather", 0, 16, 2)) == pytest.approx(1e-6 * (5 + 14 * 2))
    assert links.seconds(Event("all-reduce", 0, 64, 64)) == pytest.approx(2e-6 * 6 * 5)
    with pytest.raises(ValueError, match="--inter-gbs 0 must be over 0"):
        Links(inter_gbs=0)


def gather(seconds: float) -> Event:
    return Event("all-gather", seconds * 100e9 * 8 / 7, 8, 1)


def scatter(seconds: float) -> Event:
    return Event("reduce-scatter", seconds * 100e9 * 8 / 7, 8, 1)


def took(*events: Event, blocks: int = 0, local_parameters: int = 0, device: Device = DEVICE) -> tuple[float, float]:
    """Seconds of a step, and those of them in which a collective is waited for."""
    time = step_time(events, LINKS, device, blocks=blocks, local_parameters=local_parameters)
    return pytest.approx(time.total), pytest.approx(time.exposed)


def work(seconds: float) -> Event:
    return Event("compute", seconds * SECOND)


def test_what_overlaps() -> None:
    out = Event("gathered")
    assert took(work(2)) == (2, 0)
    assert took(gather(1), out, work(2)) == (3, 1)  # the first is waited for
    assert took(gather(1), out, work(2), gather(1.5), out, work(2)) == (5, 1)  # the second comes while the first block computes
    assert took(gather(1), out, work(2), gather(3), out, work(2)) == (6, 2)  # and a long one leaves its rest
    assert took(work(1), scatter(0.5), work(1), scatter(0.5)) == (2.5, 0.5)  # the last one has nothing to hide behind
    assert took(work(1), scatter(3), work(1), scatter(1)) == (5, 3)  # a block waits for the gradients of the one before
    replicas = Event("all-reduce", 0.5 * 10e9, 2, 2)  # half a second
    assert took(work(1), scatter(0.5), replicas, work(2), scatter(0.5), replicas) == (4, 1)
    assert took(work(1), replace(replicas, waited=True), work(1)) == (2.5, 0.5)


def test_the_optimizer_reads_and_writes_and_the_host_queues() -> None:
    assert took(work(1), local_parameters=500_000_000) == (1.5, 0)
    assert took(work(1), blocks=1000, device=replace(DEVICE, host_ms=3)) == (3, 0)


def test_the_useful_share_is_what_chance_says() -> None:
    """A life has 1 / (exp(c / M) - 1) whole cycles in the mean."""
    faults = Faults(mtbf=3600, notice=30, restart=0, save_stall=2, write=0)
    for every in (60, 600, 3600):
        exact = every / math.expm1((every + 2) / 3600) / (3600 + 30)
        assert ettr(faults, every) == pytest.approx(exact, rel=5e-3)
    assert ettr(replace(faults, mtbf=1e12), 60, useful=1e7) == pytest.approx(60 / 62)
    assert ettr(faults, 60) == ettr(faults, 60) != ettr(faults, 60, seed=1)


def test_rare_failures_cost_what_is_reckoned_by_hand() -> None:
    faults = Faults(mtbf=100 * 3600, notice=60, restart=90, save_stall=0.5, write=20)
    for every in (300, 1800):
        assert ettr(faults, every) == pytest.approx(ettr_by_hand(faults, every), abs=5e-4)
    best = best_interval(faults)
    assert best == pytest.approx(600)
    assert ettr(faults, best) >= max(ettr(faults, best * factor) for factor in (0.2, 5))


def test_failures_in_a_restart_begin_it_anew() -> None:
    """With a mean of 100 s, 200 s without a failure come once in e² times; each failed try takes its notice, too."""
    faults = Faults(mtbf=100, notice=10, restart=200, save_stall=0, write=0)
    tries = math.exp(2) - 1
    mean_failed = 100 - 200 / tries  # seconds of a try that fails
    life = 10 / math.expm1(0.1)
    assert ettr(faults, 10, useful=1e6) == pytest.approx(life / (100 + 10 + 200 + tries * (10 + mean_failed)), rel=0.03)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="--card H300: known are H100, H200, A100"):
        Options(card="H300")
    with pytest.raises(ValueError, match="--mfu 0 must be over 0"):
        Options(mfu=0)
    with pytest.raises(ValueError, match="must be over 0"):
        Faults(mtbf=0, notice=0, restart=0, save_stall=0, write=0)


def cluster(nodes: int, gpus: int) -> Cluster:
    return Cluster(nodes=nodes, gpus=gpus, card="H100", card_bytes=80e9)


@pytest.mark.parametrize("views", [2, 16])
def test_ranks_that_are_not_there_take_the_trainers_step(views: int) -> None:
    """On 4 nodes of 2: weights travel within nodes, gradients of a shard between them; memory is within what is planned."""
    mesh = Mesh(shard=2, reshard=True)
    settings = gloo_steps.config(mesh)
    compute = replace(settings.compute, precision="bf16", views_per_forward=views)
    settings = replace(settings, views=replace(settings.views, views_per_step=8 * views), compute=compute)
    found = rehearse(settings, cluster(4, 2), mesh)
    groups = {(each.kind, each.ranks, each.nodes) for each in found.events if each.amount > 1000 and each.kind != "compute"}
    assert groups == {("all-gather", 2, 1), ("reduce-scatter", 2, 1), ("all-reduce", 4, 4)}
    counts = Counter(each.kind for each in found.events if each.amount > 1000)
    gathered = len(found.cost.shapes) * 2 + 3  # each block twice, the roots once
    assert (counts["all-gather"], counts["reduce-scatter"], counts["all-reduce"]) == (gathered, 9, 9)
    flops = sum(each.amount for each in found.events if each.kind == "compute")
    assert flops == pytest.approx(found.views * found.cost.flops, rel=0.02)
    assert found.local_parameters == pytest.approx(found.cost.sizes.whole / 2, rel=0.01)
    assert found.checkpoint_whole == 12 * found.cost.sizes.whole + 4 * len(found.cost.sizes.shapes)
    # of few views state is most, and the closed form adds up what is not there at once
    assert (0.9 if views > 2 else 0.7) < found.peak / found.predicted.total < 1.1
    whole = scaling(found, cluster(4, 2), LINKS, DEVICE, 8 * views)[-1]
    assert whole["views/s"] == pytest.approx(8 * views / predict_step(found, LINKS, DEVICE).total)


def test_a_checkpoint_has_the_bytes_that_are_told() -> None:
    """By the trainer's own state dict."""
    mesh = Mesh(shard=2, reshard=False)
    with fake_ranks(1, 2) as ranks:
        training = Training(Pretraining(gloo_steps.config(mesh)), ranks, resumed=True)
        told = make_moments(training)
        tensors = [leaf for leaf in tree_leaves(state_of(training)) if isinstance(leaf, torch.Tensor)]
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == told


@pytest.mark.slow
def test_fake_ranks_send_what_real_ones_send(tmp_path: Path) -> None:
    """Four processes with gloo, and torch's own counter: the same collectives, byte for byte, and the same peak of memory."""
    command = [sys.executable, gloo_steps.__file__, str(tmp_path), "4"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for (mesh, passes), real in zip(gloo_steps.MESHES, torch.load(tmp_path / "4.pt", weights_only=True), strict=True):
        fake = rehearse(gloo_steps.config(mesh, passes), cluster(1, 4), mesh)
        assert fake.plan.passes == passes
        assert dict(collectives(fake.events)) == real["collectives"]
        assert sum(real["counts"].values()) == sum(real["collectives"].values())
        assert fake.peak == pytest.approx(real["peak"], rel=0.005), mesh
