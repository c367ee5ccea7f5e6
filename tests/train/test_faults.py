"""What can go wrong with a run, made to happen: the last bits, the logs and the exit codes afterwards.

NaN in one rank's batch       skipped on all ranks, with that rank's clips named; saved only afterwards
NaN in one parameter          the run stops after N steps, names them, their clips and the last good checkpoint
exception on one rank         the others end; torchrun starts again, and its last words are that exception
kill -9 of one rank           torchrun starts again, from the last checkpoint
kill -9 of all, anywhere      the same weights to the last bit
SIGTERM to all, or to one     the ranks agree on a step, save it and leave with success
SIGUSR1 to torchrun           passed on with --signals-to-handle; the same
fewer ranks in mid-epoch      the same clips, the same losses but for the order of summation

The same with torchrun's command line, and more kills, is benchmarks/fault_matrix.py.
"""

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.parts.trainer_faults import Fault
from pipeline.loader import ClipLoader
from pipeline.sampling.order import order_of
from pipeline.storage.manifest import Manifest
from tests.train.trainers import SMALL, lines, losses, run, start, steps, torchrun
from train.checkpoint import state as checkpoints
from train.command_line import from_command_line
from train.compute import parallel
from train.recipes.pretraining import RECIPES

STEPS = ("--steps", "20")


def saved(out: Path) -> list[int]:
    """Steps of the checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def clips_of(dataset: Path, step: int, rank: int, world_size: int) -> list[str]:
    """Keys, by the order alone."""
    manifest, recipe = Manifest(dataset), from_command_line(RECIPES, SMALL).sampling
    order = order_of(manifest, recipe)
    epoch, of_epoch = divmod(step - 1, order.steps_per_epoch)
    rows = order.rows(epoch, order.rank_positions(of_epoch, rank, world_size))
    return [manifest.clip(row).key for row in rows.tolist()]


def test_nan_in_one_ranks_batch_is_skipped_by_all_and_its_clips_are_named(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fault = Fault("nan in a batch", (4, 5, 9), rank=1)
    run(dataset, out, "--steps", "10", "--save-every", "4", "--keep-last", "9", "--log-every", "3", ranks=2, fault=fault)
    skipped = lines(out / "skipped.jsonl")
    assert [(line["step"], line["epoch"], line["reason"], line["ranks"]) for line in skipped] == [
        (4, 1, "loss not finite", [1]),
        (5, 1, "loss not finite", [1]),
        (9, 2, "loss not finite", [1]),
    ]
    for line in skipped:
        assert line["clips"] == clips_of(dataset, line["step"], 1, 2)
    log = lines(out / "metrics.jsonl")
    assert [(line["step"], line["skipped"]) for line in log] == [(3, 0), (6, 2), (9, 3), (10, 3)]
    assert all(line["loss"] is not None for line in log)
    assert saved(out) == [6, 8, 10], "4 is due while steps are skipped; the next good one is saved instead"
    assert checkpoints.read_progress(out / "checkpoints" / "step-00000010").guard["skipped"] == 3


@pytest.mark.slow
def test_nan_in_a_parameter_ends_the_run_and_is_not_saved(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--save-every", "1", "--optim.max-skipped", "4")
    trainer = start(dataset, out, *STEPS, *options, ranks=2, fault=Fault("nan in a parameter", (6,), rank=1))
    assert trainer.wait() == [1, 1]
    said = trainer.text()
    assert "steps 7 to 10 (epoch 3) were skipped: loss not finite" in said
    assert f"The last good checkpoint is {out / 'checkpoints' / 'step-00000005'}." in said
    assert "Traceback" not in said
    assert clips_of(dataset, 7, 0, 2)[0] in said and str(out / "skipped.jsonl") in said
    assert saved(out) == [4, 5], "step 6 was taken, but its weights are not sound"
    assert lines(out / "metrics.jsonl")[-1]["skipped"] == 3 and lines(out / "metrics.jsonl")[-1]["loss"] is None
    assert "going on from step 5" in run(dataset, out, *STEPS)
    assert not lines(out / "skipped.jsonl")


class WaitsForOthers(Fault):
    """A rank fails where leaving the group waits for the others, as NCCL's does, and the loader does not close."""

    def __call__(self, rank: int) -> None:
        super().__call__(rank)

        def wait(*_: object) -> None:
            print(f"rank {rank} waits", flush=True)
            time.sleep(1000)

        if rank == self.rank:
            parallel.dist.destroy_process_group = wait  # type: ignore[assignment]
            ClipLoader.close = wait  # type: ignore[method-assign]
            parallel.CLOSING = 1.0


def test_a_rank_that_fails_alone_says_so_first_and_waits_for_nobody(dataset: Path, tmp_path: Path) -> None:
    """Without torchrun: gloo notices, and ends the other. Each exit code is a failure."""
    trainer = start(dataset, tmp_path / "run", *STEPS, ranks=2, fault=WaitsForOthers("exception", (3,), rank=1))
    began = time.monotonic()
    assert 0 not in trainer.wait()
    assert time.monotonic() - began < 100  # gloo's own time-out is 30 minutes
    said = trainer.text()
    assert 0 < said.find("RuntimeError: made to fail in step 3") < said.find("rank 1 waits") < said.find("Timeout")


@pytest.mark.slow
def test_torchrun_starts_again_after_an_exception_and_a_kill_and_passes_a_signal_on(
    dataset: Path, straight: Path, tmp_path: Path
) -> None:
    """Three starts of one torchrun: one rank raises; then one is killed; then SIGUSR1 ends both, and one rank goes on alone."""
    out = tmp_path / "run"
    faults = (Fault("exception", (5,), rank=1), Fault("kill -9", (12,), rank=0, restart=1))
    agent = torchrun(dataset, out, *STEPS, "--save-every", "4", ranks=2, max_restarts=2, faults=faults)
    agent.until(14).send(signal.SIGUSR1)
    assert agent.wait() != [0], "as torchrun does after a signal"
    said = agent.text()
    assert "made to fail in step 5" in said
    assert "going on from step 4 of 20" in said and "going on from step 8 of 20" in said
    assert "stopped by SIGUSR1 after step" in said
    starts = json.loads((out / "environment.json").read_text())
    assert len(starts) == 3
    run(dataset, out, *STEPS)
    for step, loss in losses(straight).items():
        assert losses(out)[step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_the_last_words_of_torchrun_are_the_first_exception(dataset: Path, tmp_path: Path) -> None:
    agent = torchrun(dataset, tmp_path / "run", *STEPS, ranks=2, max_restarts=0, faults=(Fault("exception", (2,), rank=1),))
    assert agent.wait() == [1]
    summary = agent.text().partition("Root Cause (first observed failure)")[2]
    assert "rank      : 1" in summary and "made to fail in step 2" in summary


@pytest.mark.slow
def test_killed_anywhere_gives_the_same_weights_to_the_last_bit(dataset: Path, straight: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "run", (*STEPS, "--save-every", "3")
    draw = random.Random()
    kills = []
    for _ in range(3):
        trainer = start(dataset, out, *options)
        if draw.random() < 0.3:
            time.sleep(draw.uniform(0, 2))  # while it starts
        else:
            at = max(steps(out)[-1:], default=0) + draw.randrange(1, 6)
            trainer.until(min(at, 19))
            time.sleep(draw.uniform(0, 0.1))
        kills.append(steps(out)[-1:])
        trainer.send(signal.SIGKILL)
        trainer.wait()
    (out / "checkpoints" / ".writing-left-behind").mkdir(parents=True)
    run(dataset, out, *options)
    assert losses(out) == losses(straight), f"killed after steps {kills}"
    theirs = weights(straight)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(out).items())
    assert not list((out / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("shards", [("4", "2", "1"), ("2", "1", "1")], ids=["sharded", "replicas of two shards, replicas, one"])
def test_ranks_may_become_fewer_in_mid_epoch(dataset: Path, straight: Path, tmp_path: Path, shards: tuple[str, ...]) -> None:
    """4 -> 2 -> 1, on another mesh each time, stopped by signals to all or to one of them, which the others join."""
    out = tmp_path / "run"
    for shard, ranks, until, number, to in zip(
        shards, (4, 2), (4, 8), (signal.SIGTERM, signal.SIGUSR1), ((), (1,)), strict=False
    ):
        trainer = start(dataset, out, *STEPS, "--compute.shard", shard, ranks=ranks).until(until).send(number, *to)
        assert trainer.wait() == [0] * ranks, trainer.text()
        assert f"stopped by {number.name if not to else ''}" in trainer.text()
        assert saved(out)[-1] == steps(out)[-1] < 20
    run(dataset, out, *STEPS, "--compute.shard", shards[-1])
    starts = json.loads((out / "environment.json").read_text())
    assert [each["world_size"] for each in starts] == [4, 2, 1]
    for step, loss in losses(straight).items():
        assert losses(out)[step] == pytest.approx(loss, rel=1e-5)
    theirs = weights(straight)
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)


def test_ranks_that_cannot_share_a_step_are_told_how_many_can(dataset: Path, tmp_path: Path) -> None:
    trainer = start(dataset, tmp_path / "run", *STEPS, ranks=3)
    assert trainer.wait() == [2, 2, 2]
    assert "4 clips a step cannot be shared by 3 ranks; possible world sizes: 1, 2, 4" in trainer.text()
    lanes = ("--views.shuffle", "window", "--views.lanes", "6")
    trainer = start(dataset, tmp_path / "run", *STEPS, *lanes, ranks=4)
    assert trainer.wait() == [2, 2, 2, 2]
    assert "4 clips a step of 6 lanes cannot be shared by 4 ranks; possible world sizes: 1, 2" in trainer.text()
