"""What is the same again on the suite's device: a run that was stopped and resumed, and the gradients of one batch."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: `be_deterministic` may come later here

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.end_to_end import dataset_of
from benchmarks.parts.step_work import pretraining, random_batch
from model.config import MODELS
from pipeline.loader import Batch
from train.compute.device import be_deterministic
from train.compute.device_speed import seconds_of
from train.compute.parallel import started
from train.config import ComputeConfig
from train.training import Training
from train.watch.json_lines import read_lines

STEPS = 20  # of the runs that are compared; a checkpoint in their middle


def resume(bench: Bench) -> None:
    """A run, and its twin, taken up again from the checkpoint in the middle: the weights they end with."""
    steps, views = bench.size(STEPS, 2), bench.size("64", "4")
    how = ["--views.views-per-step", views, "--compute.views-per-forward", views, "--compute.activation-checkpointing", "none"]
    apart = resumed_run(["tiny", *how, "--compute.deterministic", "--data", str(dataset_of(bench))], steps, bench.work)
    name, furthest = next(iter(apart.items()), ("none", 0.0))
    bench.figure("resume", len(apart), "tensors and lines that differ", steps=steps, furthest=furthest, of=name)


def resumed_run(arguments: list[str], steps: int, folder: Path) -> dict[str, float]:
    """Run `train/pretrain.py` in this process, and again from its checkpoint in the middle -> the largest differences of what
    is not equal to the last bit: weights, and `loss` of the log; the furthest first. Raises RuntimeError if it does not run."""
    whole, resumed = folder / "resume-whole", folder / "resume-resumed"
    arguments = [*arguments, "--steps", str(steps), "--save-every", str(steps // 2), "--log-every", "1", "--keep-last", "2"]
    _pretrain(arguments, whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(max((resumed / "checkpoints").glob("step-*")))
    for name in ("complete", "model.safetensors"):
        (resumed / name).unlink()
    _pretrain(arguments, resumed)
    first, second = (load_file(run / "model.safetensors") for run in (whole, resumed))
    apart = {name: float((tensor - second[name]).abs().max()) for name, tensor in first.items()}
    losses = [[line["loss"] or 0.0 for line in read_lines(run / "metrics.jsonl")] for run in (whole, resumed)]
    apart["loss"] = max(abs(one - other) for one, other in zip(*losses, strict=True))
    return {name: value for name, value in sorted(apart.items(), key=lambda item: -item[1]) if value}


def _pretrain(arguments: list[str], run: Path) -> None:
    from train import pretrain

    if status := pretrain.main([*arguments, "--out", str(run)]):
        raise RuntimeError(f"tubecell pretrain {' '.join(arguments)} ended with status {status}; its reason is in the log")
    gc.collect()


def gradients(bench: Bench) -> None:
    """Of how many parameters the gradients differ between two passes over the same batch, as a step is, and with torch's
    deterministic algorithms; what those cost."""
    config, views = MODELS[bench.size("vit-b", "tiny")], bench.size(64, 2)
    compute = ComputeConfig(
        precision=bench.size("bf16", "fp32"),
        views_per_forward=views,
        activation_checkpointing="none",
        compile=False,
    )
    batch, seconds = random_batch(config, views, 0.5, bench.device), list[float]()
    with started(bench.device.type) as ranks:
        for name in ("gradients", "deterministic gradients"):
            with deterministic(name != "gradients"):
                training = Training(pretraining(config, compute), ranks)
                apart = differing_gradients(training, batch)
                seconds.append(seconds_of(partial(backward, training, batch), bench.device, least=3))
            bench.figure(name, len(apart), "parameters whose gradients differ", names=apart[:8])
            del training
            gc.collect()
        bench.figure("cost", 1e3 * seconds[1], "ms", 1e3 * seconds[0], of="forward and backward pass, eager")


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """As with `--compute.deterministic`, or as without; afterwards without."""
    if wanted:
        be_deterministic()
    else:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def differing_gradients(training: Training, batch: Batch) -> list[str]:
    """Names of the parameters whose gradients differ in any bit between two passes over the same batch."""
    first, second = (backward(training, batch) for _ in range(2))
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def backward(training: Training, batch: Batch) -> dict[str, torch.Tensor]:
    """Gradients of one forward and backward pass, by parameter."""
    model = training.model
    model.zero_grad(set_to_none=True)
    training.stage.loss(model, batch, training.draws(batch))[0].backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient.full_tensor().clone() for name, gradient in found.items() if isinstance(gradient, DTensor)}
