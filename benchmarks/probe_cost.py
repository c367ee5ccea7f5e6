#!/usr/bin/env python3
"""What twenty settings of a probe cost beside one: in executed FLOPs, and in time.

    tubecell probe-cost                                    ViT-B, 4 views a step on a CPU, 32 on a GPU
    tubecell probe-cost --probes linear attentive --json probe.json

Both are steps of the trainer, of one learning rate and of five with four weight decays: the frozen encoder, forward and
backward of the heads, the optimizer. FLOPs are what torch counts of the same on meta: they need no memory. Time is that of
the cores where there is no GPU, so that other programs hardly matter. `attentive-4` has three blocks of self-attention before
the last one. It is timed only on a GPU, or with --time-all: twenty of ViT-B are 560 million parameters.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from dataclasses import dataclass, replace
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy

from benchmarks.parts.flop_counter import flop_counter
from benchmarks.parts.path_parts import ModelWork
from benchmarks.parts.program import WithTurns, program
from benchmarks.parts.results import Result, check_numbers, describe_machine
from benchmarks.parts.step_work import labelled_batch
from benchmarks.parts.stopwatch import Part, Stopwatch
from model.config import MODELS, Implementation, ModelConfig
from model.initialization import initial_value
from model.video_encoder import VideoEncoder
from model.weights import metadata_of
from pipeline.loader import Batch
from pipeline.sampling import PlainViews
from train.checkpoint.weights import save_weights
from train.compute.parallel import Ranks, started
from train.config import ComputeConfig
from train.recipes.probing import LRS, WEIGHT_DECAYS, adamw
from train.stages.probing import ProbeConfig, Probing, sgd

Probe = Literal["linear", "attentive", "attentive-4"]
CLASSES = 400
VIEWS = (4, 32)  # of a step, on a CPU and on a GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithTurns):
    """What is measured, and for how long."""

    model: str = "vit-b"
    """One of the named models."""
    probes: tuple[Probe, ...] = ("linear", "attentive", "attentive-4")
    """Which."""
    views: int | None = None
    """Views of a step; by default as many as the text above says."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder, and of blocks of self-attention."""
    time_all: bool = False
    """Also attentive-4 on a CPU."""


@program(Options)
def main(options: Options) -> list[Result]:
    if options.model not in MODELS:
        raise ValueError(f"there is no model {options.model!r}; the models are {', '.join(MODELS)}")
    check_numbers(options, "views", "rounds")
    results: list[Result] = []
    with TemporaryDirectory() as folder, started(options.device, flag="--device") as ranks:
        on_gpu = ranks.device.type == "cuda"
        views = options.views or VIEWS[on_gpu]
        init = Path(folder) / "encoder.safetensors"
        print(
            f"{describe_machine()}\n{options.model}, {views} views a step, {CLASSES} classes, {options.precision}", flush=True
        )
        for probe in options.probes:
            one, twenty = (config_of(probe, number, views, options) for number in (1, 20))
            flops = [step_flops(config) / 1e12 for config in (one, twenty)]
            results.append(Result(f"probe/{probe}/20_vs_1/flops", flops[1], "TFLOP/view", flops[0]))
            print(f"{probe:<12} {flops[1] / flops[0]:6.3f} x the FLOPs of one: {flops[1]:.3f} TFLOP a view", flush=True)
            if probe == "attentive-4" and not (on_gpu or options.time_all):
                continue
            if not init.exists():
                write_encoder(init, one.model)
            results.append(timed(probe, [replace(each, init=str(init)) for each in (one, twenty)], options, ranks))
    return results


def timed(probe: Probe, configs: list[ProbeConfig], options: Options, ranks: Ranks) -> Result:
    """Seconds of a view, on a CPU of its cores, of which other programs may have some."""
    stages = [Probing(config) for config in configs]
    work = [ModelWork(stage, batch_of(stage, ranks), ranks) for stage in stages]
    one, twenty = (Part(probe, f"{probe}, {len(each.config.heads)}", 1, of) for each, of in zip(stages, work, strict=True))
    Stopwatch(options.seconds, ranks.device).rounds([one, twenty], options.rounds)
    on_gpu = ranks.device.type == "cuda"
    costs = [
        [(1.0 if on_gpu else cores) / rate for cores, rate in zip(part.cores, part.rates, strict=True)]
        for part in (one, twenty)
    ]
    rounds = [more / less for less, more in zip(*costs, strict=True)]
    unit = "s/view" if on_gpu else "CPU s/view"
    found = Result(f"probe/{probe}/20_vs_1", median(costs[1]), unit, median(costs[0]), rounds)
    print(
        f"{'':<12} {found.ratio:6.3f} x the time of one ({min(rounds):.3f} to {max(rounds):.3f}): {found.value:.3f} {unit}",
        flush=True,
    )
    return found


def config_of(probe: Probe, number: int, views: int, options: Options) -> ProbeConfig:
    """With so many settings, on views of a clip each."""
    return ProbeConfig(
        model=MODELS[options.model],
        probe="linear" if probe == "linear" else "attentive",
        probe_depth=4 if probe == "attentive-4" else 1,
        lrs=LRS if number > 1 else (),
        weight_decays=WEIGHT_DECAYS if number > 1 else (),
        views=PlainViews(views_per_step=views, views_per_clip=1),
        optim=sgd(1e-3) if probe == "linear" else adamw(),
        compute=ComputeConfig(precision=options.precision, views_per_forward=views, device=options.device),
        expected_classes=CLASSES,
    )


def step_flops(config: ProbeConfig) -> int:
    """Of a view, as torch counts them on meta: the encoder's forward pass, forward and backward of the heads."""
    sizes, heads = config.model, len(config.heads)
    with torch.device("meta"), flop_counter() as counter:
        encoder, model = VideoEncoder(sizes), Probing(config).model(Implementation())
        encoder.global_pool = "avg" if config.probe == "linear" else ""
        with torch.no_grad():
            features = encoder(torch.empty(1, sizes.num_frames, sizes.input_size, sizes.input_size, 3, dtype=torch.uint8))
        logits = model(features).unflatten(1, (heads, -1)).flatten(0, 1)
        cross_entropy(logits, torch.zeros(heads, dtype=torch.int64)).backward()
    return counter.get_total_flops()


def write_encoder(file: Path, config: ModelConfig) -> None:
    """Initial values."""
    encoder = VideoEncoder(config)
    for name, parameter in encoder.named_parameters():
        parameter.data.copy_(initial_value(name, tuple(parameter.shape), 0, config.patch_values))
    save_weights(file, dict(encoder.named_parameters()), metadata_of(config))


def batch_of(stage: Probing, ranks: Ranks) -> Batch:
    """Of random pixels."""
    like: Any = SimpleNamespace(config=stage.config, num_classes=CLASSES)
    return labelled_batch(like, ranks.device)


if __name__ == "__main__":
    sys.exit(main())
