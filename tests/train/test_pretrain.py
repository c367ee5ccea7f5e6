"""The trainer as a user meets it: real processes, killed and started again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from model.initialization import initial_value
from model.videomae import VideoMAE
from train import recipes, visualize
from train.optimizer import build_optimizer, set_lr
from train.parallel import build_model, started
from train.pretrain import guarded_step

ROOT = Path(__file__).resolve().parents[2]
# two layers on 32 px; 4 clips a step of the 12 in the dataset
SMALL = [
    "tiny",
    *("--views.views-per-step", "8", "--views.threads", "1", "--log-every", "1"),
    *("--model.input-size", "32", "--model.num-frames", "8"),
    *("--model.encoder-dim", "32", "--model.encoder-depth", "2", "--model.encoder-heads", "2"),
    *("--model.decoder-dim", "16", "--model.decoder-depth", "1", "--model.decoder-heads", "2"),
]


def command(dataset: Path, out: Path, *options: str, ranks: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    script = str(ROOT / "train" / "pretrain.py")
    return [sys.executable, *launcher, script, *SMALL, "--data", str(dataset), "--out", str(out), *options]


def run(dataset: Path, out: Path, *options: str, ranks: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(dataset, out, *options, ranks=ranks), capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture(scope="module")
def straight(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps without a break."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(dataset, out, "--steps", "20")
    return out


def test_a_run_leaves_what_it_says(straight: Path) -> None:
    assert len(losses(straight)) == 20
    assert losses(straight)[20] < losses(straight)[1]
    assert json.loads((straight / "complete").read_text())["steps"] == 20
    start = json.loads((straight / "environment.json").read_text())[0]
    assert start["packages"]["torch"] == version("torch")
    assert start["decoder"] == "libav: libav takes 12 clips (the batch is wanted on a CPU)"
    assert list((straight / "tensorboard").iterdir())
    weights = load_file(straight / "model.safetensors")
    config = recipes.from_command_line(SMALL)
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in VideoMAE(config.model).state_dict().items()}
    assert {name: tensor.shape for name, tensor in weights.items()} == expected


def test_pictures_of_a_run(straight: Path) -> None:
    assert visualize.main([str(straight), "--clips", "3", "--frames", "4"]) == 0
    for name in ("loss.png", "reconstruction.png"):
        with Image.open(straight / name) as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 10


def test_a_finished_run_says_so(dataset: Path, straight: Path) -> None:
    assert "is done: 20 steps" in run(dataset, straight, "--steps", "20").stdout


def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(dataset: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--steps", "20", "--save-every", "3")
    at = random.randrange(5, 17)
    process = subprocess.Popen(
        command(dataset, out, *options), env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= at:
            break
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (out / "complete").exists(), "the run ended before it could be killed"
    (out / "checkpoints" / ".writing-left-behind").mkdir()
    assert "going on from step" in run(dataset, out, *options).stdout
    assert losses(out) == losses(straight), f"killed after step {at}"
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (out, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000018", "step-00000020"]


def test_sigterm_saves_and_leaves_with_success(dataset: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(dataset, out, "--steps", "20"), env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 4/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait() == 0
    process.stdout.close()
    assert "stopped by SIGTERM after step" in rest
    run(dataset, out, "--steps", "20")
    assert losses(out) == losses(straight)


def test_two_ranks_go_on_as_one(dataset: Path, straight: Path, tmp_path: Path) -> None:
    """The same batches, so the same losses but for the order of summation; and both start from the same weights."""
    out = tmp_path / "run"
    run(dataset, out, "--steps", "20", "--save-every", "8", "--keep-last", "3", ranks=2)
    (out / "complete").unlink()
    for step in (16, 20):
        shutil.rmtree(out / "checkpoints" / f"step-{step:08d}")
    two = losses(out)
    assert "going on from step 8" in run(dataset, out, "--steps", "20").stdout
    for step, loss in losses(straight).items():
        assert two[step] == pytest.approx(loss, rel=1e-5)
        assert losses(out)[step] == pytest.approx(loss, rel=1e-5)


def test_accumulation_is_the_same_step(dataset: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = run(dataset, out, "--steps", "20", "--compute.views-per-forward", "2").stdout
    assert "in 4 forward passes" in text
    for step, loss in losses(straight).items():
        assert losses(out)[step] == pytest.approx(loss, rel=1e-5)


def test_bf16_and_activation_checkpointing(dataset: Path, straight: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "a", "--steps", "20", "--compute.activation-checkpointing")
    for step, loss in losses(straight).items():
        assert losses(tmp_path / "a")[step] == pytest.approx(loss, rel=1e-6)
    run(dataset, tmp_path / "b", "--steps", "20", "--compute.precision", "bf16")
    for step, loss in losses(straight).items():
        assert losses(tmp_path / "b")[step] == pytest.approx(loss, rel=2e-2)


def test_another_configuration_in_the_same_folder_is_refused(dataset: Path, straight: Path) -> None:
    done = run(dataset, straight, "--steps", "20", "--seed", "3", check=False)
    assert done.returncode == 2
    assert "--seed 0 -> 3" in done.stderr
    assert "Traceback" not in done.stderr
    longer = run(dataset, straight, "--steps", "21").stdout
    assert "changed since the last start: --steps 20 -> 21" in longer


def test_optimizer_flags_may_change_on_the_way(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "a", "--steps", "4")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    text = run(dataset, tmp_path / "a", "--steps", "8", "--optim.weight-decay", "0.5").stdout
    assert "--optim.weight-decay 0.05 -> 0.5" in text
    run(dataset, tmp_path / "b", "--steps", "8")
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert any(not torch.equal(mine[name], theirs[name]) for name in theirs)


def test_fewer_steps_than_done_are_refused(dataset: Path, straight: Path) -> None:
    done = run(dataset, straight, "--steps", "3", check=False)
    assert done.returncode == 2
    assert "steps already, more than the 3" in done.stderr
    assert json.loads((straight / "complete").read_text())["steps"] >= 20


def test_clips_that_fail_are_in_the_log_even_if_they_end_the_run(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    for shard in (tmp_path / "dataset" / "shards").glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:2000])
    done = run(tmp_path / "dataset", tmp_path / "run", "--steps", "5", check=False)
    assert done.returncode == 1
    assert "17 clips failed" in done.stderr
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert len(lines) == 17
    assert {line["reason"] for line in lines} == {"read"}


def test_errors_are_one_line(dataset: Path, tmp_path: Path) -> None:
    for options, words in (
        (("--views.views-per-step", "64"), "lower views_per_step to at most 24"),
        (("--data", str(tmp_path)), "is no dataset"),
        (("--compute.device", "cuda"), "no CUDA device") if not torch.cuda.is_available() else ((), ""),
    ):
        if options:
            done = run(dataset, tmp_path / "out", *options, check=False)
            assert done.returncode == 2, done.stdout + done.stderr
            assert words in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_steps_with_a_gradient_that_is_not_finite_are_skipped_and_end_the_run(dataset: Path, tmp_path: Path) -> None:
    options = ("--optim.base-lr", "1e30", "--optim.max-skipped", "4", "--steps", "20", "--optim.warmup-share", "0.05")
    done = run(dataset, tmp_path / "run", *options, check=False)
    assert done.returncode == 1
    assert "not finite in the last 4 steps" in done.stderr
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped"] == 4
    assert lines[-1]["loss"] is None


@pytest.mark.parametrize(("poison", "in_loss"), [(float("nan"), False), (float("inf"), False), (float("inf"), True)])
def test_a_skipped_step_changes_nothing(poison: float, in_loss: bool) -> None:
    config = recipes.from_command_line(SMALL)
    with started("cpu") as ranks:
        model = build_model(config.model, config.compute, 0, ranks)
        optimizer = build_optimizer(model.named_parameters(), weight_decay=0.05, betas=(0.9, 0.95))
        set_lr(optimizer, 1e-2)
        parameters = list(model.parameters())
        states = []
        for value in (1.0, poison, 1.0):
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 1.0 if in_loss else value)
            norm, bad = guarded_step(optimizer, parameters, clip_grad=0.5, loss=torch.tensor(value if in_loss else 1.0))
            moments = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq", "step")]
            tensors = [t.full_tensor() if isinstance(t, DTensor) else t for t in [*parameters, *moments]]
            states.append([t.clone() for t in tensors])
            assert bool(bad) == (value != 1.0)
            assert bool(torch.isfinite(norm)) == (value == 1.0 or in_loss)
        assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))
        del model, optimizer, parameters, tensors, moments, parameter


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_initial_weights_are_bit_equal_for_any_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    script = tmp_path / "weights.py"
    script.write_text(
        "import sys, torch\n"
        "from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict\n"
        "from train import recipes\n"
        "from train.parallel import build_model, started\n"
        f"config = recipes.from_command_line({SMALL!r})\n"
        "with started('cpu') as ranks:\n"
        "    model = build_model(config.model, config.compute, 5, ranks)\n"
        "    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))\n"
        "    if ranks.rank == 0:\n"
        "        torch.save(state, sys.argv[1])\n"
        "    del model\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, script, tmp_path / "w.pt"], check=True, env=environment, capture_output=True)
    weights = torch.load(tmp_path / "w.pt", weights_only=True)
    for name, tensor in weights.items():
        assert torch.equal(tensor, initial_value(name, tuple(tensor.shape), 5, patch_values=384)), name
    assert len(weights) == len(VideoMAE(recipes.from_command_line(SMALL).model).state_dict())
