"""The trainer as a user meets it. What happens when it is killed, or stumbles, is in test_faults.py."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train.run.run
from model.videomae import VideoMAE
from tests.train.trainers import SMALL, command, lines, losses, run, start
from train.command_line import from_command_line
from train.compute.parallel import Ranks
from train.recipes.pretraining import RECIPES
from train.run.folder import RunFolder

STEPS = ("--steps", "20")


@pytest.fixture
def copy(straight: Path, tmp_path: Path) -> Path:
    """Of the straight run's folder."""
    return shutil.copytree(straight, tmp_path / "copy")


def refused(dataset: Path, out: Path, *options: str) -> str:
    """What is said instead of training, in one line and with status 2."""
    trainer = start(dataset, out, *options)
    assert trainer.wait() == [2], trainer.text()
    assert len(trainer.text().strip().splitlines()) == 1, trainer.text()
    return trainer.text()


def test_the_command_leaves_what_it_says(dataset: Path, straight: Path, tmp_path: Path) -> None:
    """And the forks of the other tests learn the same as the command, to the last bit."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(dataset, tmp_path / "run", *STEPS), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "done: 20 steps" in done.stdout
    assert losses(tmp_path / "run") == losses(straight)
    for out in (tmp_path / "run", straight):
        assert losses(out)[20] < losses(out)[1]
        assert json.loads((out / "complete").read_text())["steps"] == 20
        (first,) = json.loads((out / "environment.json").read_text())
        assert first["packages"]["torch"] == version("torch")
        assert first["decoder"].startswith("libav: libav takes 12 clips (the batch is wanted on a CPU); crops: ")
        assert list((out / "tensorboard").iterdir())
        weights = load_file(out / "model.safetensors")
        config = from_command_line(RECIPES, SMALL)
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in VideoMAE(config.model).state_dict().items()}
        assert {name: tensor.shape for name, tensor in weights.items()} == expected


def test_a_start_says_where_its_time_went(straight: Path) -> None:
    (first,) = json.loads((straight / "environment.json").read_text())
    assert set(first["startup"]) == {
        *("imports", "process group", "dataset", "model", "checkpoint", "meters", "first batch", "first step")
    }
    assert all(seconds >= 0 for seconds in first["startup"].values())


def test_a_finished_run_says_so_and_may_be_made_longer(dataset: Path, copy: Path) -> None:
    assert "is done: 20 steps" in run(dataset, copy, *STEPS)
    assert "changed since the last start: --steps 20 -> 22" in run(dataset, copy, "--steps", "22")
    assert list(losses(copy)) == list(range(1, 23))
    assert json.loads((copy / "complete").read_text())["steps"] == 22


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        pytest.param(("--compute.views-per-forward", "2"), 1e-5, marks=pytest.mark.slow),
        (("--compute.activation-checkpointing", "full"), 1e-6),
        (("--compute.precision", "bf16"), 2e-2),
        pytest.param(("--compute.precision", "fp16"), 5e-3, marks=pytest.mark.slow),
    ],
)
def test_how_a_step_is_computed_changes_rounding_only(
    options: tuple[str, str], bound: float, dataset: Path, straight: Path, tmp_path: Path
) -> None:
    """bf16 has 8 bits of mantissa, fp16 has 11."""
    text = run(dataset, tmp_path / "run", *STEPS, *options)
    assert ("in 4 forward passes" in text) == (options[0] == "--compute.views-per-forward")
    for step, loss in losses(straight).items():
        assert losses(tmp_path / "run")[step] == pytest.approx(loss, rel=bound)
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["skipped"] == 0


def test_what_cannot_go_on_in_a_folder_is_refused_and_changes_nothing(dataset: Path, straight: Path) -> None:
    before = contents(straight)
    assert "--seed 0 -> 3" in refused(dataset, straight, *STEPS, "--seed", "3")
    assert "20 steps already, more than the 3" in refused(dataset, straight, "--steps", "3")
    assert "DALI" in refused(dataset, straight, "--steps", "25", "--loader.decoder", "dali")
    assert "--profile 3" in start(dataset, straight, "--steps", "25", "--profile", "3").said(2)
    assert contents(straight) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_optimizer_flags_may_change_on_the_way(dataset: Path, copy: Path, tmp_path: Path) -> None:
    other = shutil.copytree(copy, tmp_path / "other")
    text = run(dataset, copy, "--steps", "23", "--optim.weight-decay", "0.5")
    assert "--optim.weight-decay 0.05 -> 0.5" in text
    run(dataset, other, "--steps", "23")
    mine, theirs = (load_file(out / "model.safetensors") for out in (copy, other))
    assert any(not torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_run_that_goes_on_wins_over_a_file(dataset: Path, copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("steps = 40\nseed = 3\nlog_every = 1\n[optim]\nweight_decay = 0.5\nbase_lr = 0.024\n")
    text = run(dataset, copy, "--config", str(file))
    assert f"--config {file} has seed 3, but the run goes on with 0; another --out begins a run with that" in text
    assert "has steps 40, but the run goes on with 20; --steps 40 changes it" in text
    assert "has optim.weight_decay 0.5, but the run goes on with 0.05; --optim.weight-decay 0.5 changes it" in text
    assert "base_lr" not in text and "log_every" not in text and "is done: 20 steps" in text
    text = run(dataset, copy, "--config", str(file), "--steps", "21", "--optim.weight-decay", "0.5")
    assert "--optim.weight-decay 0.05 -> 0.5" in text and "done: 21 steps" in text
    assert "--seed 0 -> 3" in refused(dataset, copy, "--config", str(file), "--steps", "21", "--seed", "3")


def test_clips_that_fail_are_in_the_log_even_if_they_end_the_run(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    for shard in (tmp_path / "dataset" / "shards").glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:2000])
    trainer = start(tmp_path / "dataset", tmp_path / "run", "--steps", "5")
    assert trainer.wait() == [1]
    assert "17 clips failed" in trainer.text()
    assert "Traceback" not in trainer.text()
    failed = lines(tmp_path / "run" / "failures.jsonl")
    assert len(failed) == 17
    assert {line["reason"] for line in failed} == {"read"}


def test_errors_are_one_line(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "lower --views.views-per-step to at most 24" in refused(dataset, out, "--views.views-per-step", "64")
    assert "is no dataset" in refused(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    if not torch.cuda.is_available():
        assert "no CUDA device" in refused(dataset, out, "--compute.device", "cuda")
    assert "DALI" in refused(dataset, out, "--loader.decoder", "dali")
    assert not out.exists()  # nothing is left of a start that came to nothing
    assert "either says how long" in refused(dataset, out, "--steps", "5", "--epochs", "2")
    assert not out.exists()
    out.mkdir()
    assert "lower --views.views-per-step to at most 24" in refused(dataset, out, "--views.views-per-step", "64")
    assert not list(out.iterdir())


def test_a_dataset_is_no_place_for_a_new_run(dataset: Path, straight: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(dataset, tmp_path / "dataset")
    (tmp_path / "link").symlink_to(mine)
    before = sorted(mine.rglob("*"))
    assert f"lies in {mine}, which is a dataset" in refused(mine, tmp_path / "link" / "run", *STEPS)
    assert [file for file in sorted(mine.rglob("*")) if file.suffix != ".log"] == before
    began = shutil.copytree(straight, mine / "run")  # as commands of old took it
    assert "is done: 20 steps" in run(mine, began, *STEPS)


def test_a_learning_rate_that_is_too_high_is_skipped_and_ends_the_run(dataset: Path, tmp_path: Path) -> None:
    options = ("--optim.base-lr", "1e30", "--optim.max-skipped", "4", "--optim.warmup-share", "0.05", "--log-every", "7")
    trainer = start(dataset, tmp_path / "run", *STEPS, *options)
    assert trainer.wait() == [1]
    said = trainer.text()
    assert "steps 3 to 7 (epoch 2) were skipped" in said or "steps 2 to 7 (epoch 2) were skipped" in said, said
    assert "The last good checkpoint is none. Lower --optim.base-lr" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_start_that_comes_to_nothing_takes_no_other_run_with_it(dataset: Path, tmp_path: Path) -> None:
    """Two runs are begun at once in a folder that was not there."""
    config = replace(from_command_line(RECIPES, SMALL), data=str(dataset), out=tmp_path / "runs" / "a")
    alone = Ranks(0, 1, 1, torch.device("cpu"))
    folder = RunFolder("pretrain", config, alone)
    other = tmp_path / "runs" / "b" / "checkpoints"
    other.mkdir(parents=True)
    folder.close()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b"] and other.exists()
    RunFolder("pretrain", replace(config, out=tmp_path / "deep" / "down"), alone).close()
    assert not (tmp_path / "deep").exists()


class AnotherNode:
    """Whose cache of torch.compile is empty; says after the first step what was found in it."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def __call__(self, rank: int) -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.cache)
        save = train.run.run.save_compiled

        def told(out: Path) -> None:
            save(out)
            counts = torch._dynamo.utils.counters["inductor"]
            print(f"compiled {counts['fxgraph_cache_miss']}, loaded {counts['fxgraph_cache_hit']}")

        train.run.run.save_compiled = told  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_compiled_goes_with_the_run_to_another_node(dataset: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "run", ("--compute.compile", "--steps")
    said = run(dataset, out, *options, "1", fault=AnotherNode(tmp_path / "first"))
    made = re.search(r"compiled (\d+), loaded 0", said)
    assert made and int(made[1]) >= 4, said  # encoder's and decoder's blocks, forward and backward
    said = run(dataset, out, *options, "2", fault=AnotherNode(tmp_path / "second"))
    assert f"compiled 0, loaded {made[1]}" in said
