"""Part 6 of the GPU suite: it learns there, too; and a run that is stopped and resumed ends with the same bits, or why not."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: deterministic algorithms ask for it

import gc
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.clips import QUICKSTART, ClipSet, kept_dataset
from benchmarks.parts.step_work import pretraining, random_batch
from benchmarks.parts.stopwatch import Stopwatch
from model.config import MODELS
from pipeline.loader import Batch
from train.compute.parallel import started
from train.config import ComputeConfig
from train.training import Training
from train.watch.json_lines import read_lines

STEPS = 20  # of the runs that are compared; a checkpoint in their middle
SPARE = 25.0  # seconds that are kept for drawing


def quickstart(bench: Bench) -> None:
    """What `quickstart.py` trains and draws; on its clips, if the kit has them."""
    dataset = quickstart_dataset(bench)
    steps = bench.size([], ["--steps", "2", "--views.views-per-step", "4", "--log-every", "1"])
    train_and_draw(bench, "quickstart", ["tiny", *steps], dataset)


def vit_s(bench: Bench) -> None:
    """ViT-S on the kit's real clips, for as long as there is, at most five minutes."""
    if bench.dry:
        raise AbsentError("a dry walk trains on the quickstart's clips only")
    wanted = ClipSet("h264-fast", 352, 256, 32, 8, 300)
    if bench.kit is None or not (bench.kit / "clips" / wanted.name).is_dir():
        raise AbsentError("there are no real clips: give --kit, made with --prepare KIT --videos FOLDER")
    dataset = kept_dataset(bench, "vit-s-dataset", wanted, 256)
    views, trial = 256, bench.work / "vit-s-trial"
    recipe = ["vit-s-hybrid", "--views.views-per-step", f"{views}", "--compute.views-per-forward", f"{views}"]
    pretrain([*recipe, "--steps", "20", "--log-every", "5"], dataset, trial)
    rate = read_lines(trial / "metrics.jsonl")[-1]["views_per_second"]
    steps = max(20, int(rate * min(300.0, bench.left() - SPARE) / views))
    train_and_draw(bench, "vit-s", [*recipe, "--steps", f"{steps}", "--log-every", f"{max(1, steps // 60)}"], dataset)


def train_and_draw(bench: Bench, name: str, arguments: list[str], dataset: Path) -> None:
    """A run by its command line, its loss, and the picture of what it reconstructs."""
    from train import visualize  # matplotlib

    run = bench.work / name
    began = time.perf_counter()
    pretrain(arguments, dataset, run)
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["loss"] is not None]
    first, last, curve = lines[0], lines[-1], [(line["step"], line["loss"]) for line in lines][::5]
    bench.figure(f"{name}/seconds", time.perf_counter() - began, "s", steps=last["step"])
    bench.figure(f"{name}/views", last["views_per_second"], "views/s", data_wait=last["data_wait"])
    bench.figure(f"{name}/first_loss", first["loss"], "", step=first["step"])
    bench.figure(f"{name}/last_loss", last["loss"], "", first["loss"], curve=curve)
    if visualize.main([str(run), "--clips", "4"]):
        raise RuntimeError("`tubecell visualize` could not draw; its reason is in the log")
    shutil.copy(run / "reconstruction.png", bench.out / "reconstruction.png")


def resume(bench: Bench) -> None:
    """A run, and its twin, taken up again from the checkpoint in the middle: the weights they end with."""
    dataset = quickstart_dataset(bench)
    steps = bench.size(STEPS, 2)
    arguments = ["tiny", "--steps", str(steps), "--save-every", str(steps // 2), "--log-every", "1", "--keep-last", "2"]
    arguments += bench.size([], ["--views.views-per-step", "4"])
    whole, resumed = bench.work / "resume-whole", bench.work / "resume-resumed"
    pretrain(arguments, dataset, whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(max((resumed / "checkpoints").glob("step-*")))
    for name in ("complete", "model.safetensors"):
        (resumed / name).unlink()
    pretrain(arguments, dataset, resumed)
    share, worst, furthest = compare(whole, resumed)
    losses = [[line["loss"] for line in read_lines(run / "metrics.jsonl")] for run in (whole, resumed)]
    equal = losses[0] == losses[1]
    detail = {"largest_difference": furthest, "of": worst, "steps": steps, "losses_equal": equal}
    bench.figure("resume/bit_exact", share, "of tensors", **detail)


def compare(one: Path, other: Path) -> tuple[float, str, float]:
    """-> (share of the weights' tensors that are equal to the last bit, name of the one that differs most, by how much)."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    differences = {name: float((tensor - second[name]).abs().max()) for name, tensor in first.items()}
    worst = max(differences, key=lambda name: differences[name])
    return sum(value == 0 for value in differences.values()) / len(differences), worst, differences[worst]


def determinism(bench: Bench) -> None:
    """Whether the same forward and backward pass gives the same gradients twice; if not, of which parameters, and whether
    torch's deterministic algorithms mend it, at what cost."""
    config = MODELS[bench.size("vit-b", "tiny")]
    views = bench.size(32, 2)
    compute = ComputeConfig(precision=bench.size("bf16", "fp32"), views_per_forward=views, compile=False)
    batch = random_batch(config, views, 0.5, bench.device)
    with started(bench.device.type) as ranks:
        seconds, watch = {}, Stopwatch(0.0, bench.device)
        training = Training(pretraining(config, compute), ranks)
        for name, settled in (("gradients", False), ("deterministic_gradients", True)):
            torch.use_deterministic_algorithms(settled)
            try:
                first = gradients(training, batch)
                began = watch.now()
                second = gradients(training, batch)
                seconds[name] = watch.now() - began
            finally:
                torch.use_deterministic_algorithms(False)
            differing = [each for each, value in first.items() if not torch.equal(value, second[each])]
            share = 1 - len(differing) / len(first)
            bench.figure(f"determinism/{name}", share, "of parameters", differing=differing[:12], how_many=len(differing))
        cost, usual = seconds["deterministic_gradients"], seconds["gradients"]
        bench.figure("determinism/cost", cost, "s", usual, of="forward and backward")
        del training
        gc.collect()


def gradients(training: Training, batch: Batch) -> dict[str, torch.Tensor]:
    """Of one backward pass, by parameter."""
    model = training.model
    model.zero_grad(set_to_none=True)
    training.stage.loss(model, batch, training.draws(batch))[0].backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient.full_tensor().clone() for name, gradient in found.items() if isinstance(gradient, DTensor)}


def pretrain(arguments: list[str], dataset: Path, run: Path) -> None:
    """`train/pretrain.py`, in this process: torch is imported and kernels are compiled once. Raises AbsentError if it cannot
    be imported."""
    try:
        from train import pretrain as entry
    except ImportError as error:
        raise AbsentError(f"pretrain does not start: {error}") from error
    if status := entry.main([*arguments, "--data", str(dataset), "--out", str(run)]):
        raise RuntimeError(f"tubecell pretrain {' '.join(arguments)} ended with status {status}; its reason is in the log")
    gc.collect()


def quickstart_dataset(bench: Bench) -> Path:
    """Of as many clips as the quickstart's."""
    clips = bench.size(QUICKSTART, ClipSet("h264-fast", 160, 128, 32, 2, 20))
    return kept_dataset(bench, "quickstart-dataset", clips, bench.size(QUICKSTART.clips, 8))
