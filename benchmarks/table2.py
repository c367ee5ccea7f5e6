#!/usr/bin/env python3
"""Dual masking against encoder-only masking: VideoMAE V2's Table 2 on this machine, beside the paper's figures.

    tubecell table2                         ViT-B on a CPU; ViT-B and ViT-g on a GPU
    tubecell table2 --models vit-b vit-g --no-time --json table2.json

FLOPs are multiply-accumulates of a view's forward pass: as the paper counts them, and as executed here, where only visible
patches are embedded and only tokens of the loss predicted. Activations are the bytes that a view's forward pass keeps for the
backward pass, in bf16, taken from autograd itself, on a CPU. The paper does not say how its "Mems" were taken; official code
keeps every attention matrix, which SDPA does not. Time is a training step's, both maskings in turns; the paper's is of 1200
epochs on 64 A100.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import gc
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch

from benchmarks.activation_memory import activations_of
from benchmarks.parts.program import WithTurns, program
from benchmarks.parts.results import Result, check_numbers, describe_machine
from benchmarks.parts.step_work import step_work, tokens_of
from benchmarks.parts.stopwatch import Part, Stopwatch, ratios
from model.config import MODELS
from model.flops import executed_gmac, paper_gmac
from train.compute.parallel import Ranks, started
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A row of the paper's Table 2."""

    gmac: float
    megabytes: float
    hours: float


# (model, dual): ViT-B on Something-Something V2, ViT-g on UnlabeledHybrid; 356 h is the paper's own estimate from 5 epochs
PAPER = {
    ("vit-b", False): Published(gmac=35.48, megabytes=631, hours=28.4),
    ("vit-b", True): Published(gmac=25.87, megabytes=328, hours=15.9),
    ("vit-g", False): Published(gmac=263.93, megabytes=1753, hours=356),
    ("vit-g", True): Published(gmac=241.61, megabytes=1050, hours=241),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithTurns):
    """What is measured, and for how long."""

    models: tuple[Literal["vit-b", "vit-g"], ...] = ()
    """Of the paper's table; by default ViT-B on a CPU, both on a GPU."""
    time: bool = True
    """Measure the steps' time as well."""
    views: int | None = None
    """Views of a step; by default 8 on a CPU and 32 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes a GPU if there is one."""
    precision: Literal["bf16", "fp32"] | None = None
    """Of the timed steps; by default fp32 on a CPU and bf16 on a GPU."""


@program(Options)
def main(options: Options) -> list[Result]:
    check_numbers(options, "views", "rounds")
    with started(options.device) as ranks:
        print(describe_machine(), flush=True)
        results = []
        for name in options.models or (("vit-b", "vit-g") if ranks.device.type == "cuda" else ("vit-b",)):
            results += measure_costs(name)
            if options.time:
                results += measure_time(name, options, ranks)
    return results


def measure_costs(name: str) -> list[Result]:
    """A model's two rows, printed as they come."""
    config, results = MODELS[name], []
    for dual in (False, True):
        masking, paper, tokens = "dual" if dual else "encoder-only", PAPER[name, dual], tokens_of(config, dual)
        counted = paper_gmac(config, tokens.visible, tokens.decoded)
        executed = executed_gmac(config, tokens.visible, tokens.decoded, tokens.loss)
        kept = activations_of(config, tokens, PRECISIONS["bf16"]).kept_bytes / 1e6
        results += [
            Result(f"table2/{name}/{masking}/gmac", counted, "GMAC", paper.gmac),
            Result(f"table2/{name}/{masking}/executed_gmac", executed, "GMAC", paper.gmac),
            Result(f"table2/{name}/{masking}/activations", kept, "MB", paper.megabytes),
        ]
        print(
            f"{name}, {masking:<12}  FLOPs {counted:6.2f} G (paper {paper.gmac:.2f}), executed {executed:6.2f}"
            f"   activations {kept:6.1f} MB a view (paper {paper.megabytes:.0f})",
            flush=True,
        )
    return results


def measure_time(name: str, options: Options, ranks: Ranks) -> list[Result]:
    """Steps with both maskings, in turns."""
    on_gpu = ranks.device.type == "cuda"
    views = options.views or (32 if on_gpu else 8)
    precision = options.precision or ("bf16" if on_gpu else "fp32")
    compute = ComputeConfig(precision=precision, activation_checkpointing="none")
    if on_gpu:
        torch._dynamo.reset()  # as in step_contest.py
    encoder_only, dual = (
        Part(title, title, 1, step_work(MODELS[name], views, compute, ranks, dual=title == "dual"))
        for title in ("encoder-only", "dual")
    )
    Stopwatch(options.seconds, ranks.device).rounds([encoder_only, dual], options.rounds)
    gains = ratios(dual, encoder_only, in_views=True)
    published = PAPER[name, False].hours / PAPER[name, True].hours
    for part in (encoder_only, dual):
        hours = PAPER[name, part is dual].hours
        print(f"{name}, {part.title:<12}  {part.views:.2f} views/s ± {part.spread:.0%}, {precision} (paper {hours:g} h)")
    print(f"{name}, dual masking is {median(gains):.2f} times as fast (paper {published:.2f})", flush=True)
    results = [part.result("views/s", f"table2/{name}/{part.name}/views_per_second") for part in (encoder_only, dual)]
    del encoder_only, dual
    gc.collect()  # the next model may need the memory
    return [*results, Result(f"table2/{name}/speedup", median(gains), "x", published)]


if __name__ == "__main__":
    sys.exit(main())
