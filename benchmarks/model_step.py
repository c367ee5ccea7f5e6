#!/usr/bin/env python3
"""How fast a pre-training step is: beside HF transformers' VideoMAE, and beside the device's own matrix products.

    tubecell model-step                                    ViT-B, 8 views on a CPU, 64 on a GPU
    tubecell model-step --json step.json
    tubecell model-step --device cuda --model vit-g --views 64 --no-peer

A step is the trainer's own: uint8 views are gathered, normalised and made into targets, forward, backward, gradient
clipping, fused AdamW; one forward pass, dual masking. All take turns, round after round; figures are the rounds' medians, and
ratios the medians of the rounds' ratios. On a CPU the peer has a process of its own. Without bf16 instructions on the CPU bf16
is skipped, unless --bf16 asks for it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import gc
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import torch

from benchmarks.parts.hf_step import HfProcess, HfWork, missing_transformers
from benchmarks.parts.program import WithTurns, program
from benchmarks.parts.results import Result, about_cpu, check_numbers, describe_machine, disturbance
from benchmarks.parts.step_work import GemmWork, largest_product, step_flops, step_work
from benchmarks.parts.stopwatch import Part, Stopwatch, ratios
from model.config import MODELS
from train.compute.parallel import Ranks, started
from train.config import ComputeConfig

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithTurns):
    """What is measured, and for how long."""

    model: str = "vit-b"
    """One of the named models."""
    views: int | None = None
    """Views of a step; by default 8 on a CPU and 64 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes a GPU if there is one."""
    peer: bool = True
    """Compare with HF transformers, where it is installed."""
    bf16: bool = False
    """Measure bf16 also on a CPU that has no instructions for it."""
    compile: bool | None = None
    """Compile the blocks; by default on a GPU only."""


@dataclass(slots=True)
class Measured:
    """The parts of one precision."""

    precision: Precision
    step: Part
    gemm: Part
    step_tflop: float  # of one view
    gemm_tflop: float  # of one product
    peer: Part | None = None

    @property
    def of_gemm(self) -> Result:
        """TFLOP/s beside the matrix product's."""
        factor = self.step_tflop / self.gemm_tflop
        rounds = [factor * ratio for ratio in ratios(self.step, self.gemm, in_views=False)]
        return Result("vs_gemm", self.step.views * self.step_tflop, "TFLOP/s", self.gemm.clips * self.gemm_tflop, rounds)

    def results(self, model: str) -> list[Result]:
        """Views/s beside the peer's, and `of_gemm`."""
        name = f"step/{model}/{self.precision}"
        peer = [self.step.result("views/s", f"{name}/vs_hf", self.peer)] if self.peer else []
        return [self.step.result("views/s", name), *peer, replace(self.of_gemm, name=f"{name}/vs_gemm")]


@program(Options)
def main(options: Options) -> list[Result]:
    check(options)
    results = []
    with started(options.device) as ranks:
        views = options.views or (64 if ranks.device.type == "cuda" else 8)
        precisions, skipped = wanted_precisions(options, ranks.device)
        print(f"{describe_machine()}\n{options.model}, {views} views a step", flush=True)
        if options.peer and (reason := missing_transformers()):
            skipped.append(f"HF transformers: {reason}")
        for precision in precisions:
            with ExitStack() as closing:
                measured = measure_precision(options, views, precision, ranks, closing)
            results += measured.results(options.model)
            print(table(measured), flush=True)
            del measured
            gc.collect()
    for reason in skipped:
        print(f"skipped: {reason}")
    return results


def check(options: Options) -> None:
    """Raises ValueError, with the flag, for what cannot be."""
    if options.model not in MODELS:
        raise ValueError(f"there is no model {options.model!r}; the models are {', '.join(MODELS)}")
    check_numbers(options, "views", "rounds")


def wanted_precisions(options: Options, device: torch.device) -> tuple[list[Precision], list[str]]:
    """Which to measure, and why another is not."""
    if device.type == "cuda" or options.bf16 or cpu_has_bf16():
        return ["fp32", "bf16"], []
    return ["fp32"], ["bf16: this CPU has no instructions for it (avx512_bf16, amx_bf16); --bf16 measures it all the same"]


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices itself, by the flags it names."""
    return "bf16" in about_cpu("flags", "Features")


def measure_precision(options: Options, views: int, precision: Precision, ranks: Ranks, closing: ExitStack) -> Measured:
    """All contestants of one precision, in turns."""
    config = MODELS[options.model]
    compute = ComputeConfig(precision=precision, compile=options.compile)
    gemm = GemmWork(largest_product(config, views, dual=True), precision, ranks.device)
    measured = Measured(
        precision,
        Part("step", f"step, {precision}", 1, step_work(config, views, compute, ranks)),
        Part("gemm", f"matrix product, {precision}", 1, gemm),
        step_flops(config, views, dual=True) / views / 1e12,
        gemm.flops / 1e12,
    )
    if options.peer and not missing_transformers():
        on_cpu = ranks.device.type == "cpu"
        peer = HfProcess(config, views, precision) if on_cpu else HfWork(config, views, precision, ranks.device)
        if isinstance(peer, HfProcess):
            closing.callback(peer.close)
        measured.peer = Part("hf", f"HF transformers, {precision}", 1, peer)
    parts = filter(None, (measured.step, measured.gemm, measured.peer))
    Stopwatch(options.seconds, ranks.device).rounds(list(parts), options.rounds)
    return measured


def table(measured: Measured) -> str:
    """A line a contestant."""
    step, gemm, peer, of_gemm = measured.step, measured.gemm, measured.peer, measured.of_gemm
    lines = [f"{step.title:<28} {step.views:9.2f} views/s ± {step.spread:4.0%}   {of_gemm.value:7.2f} TFLOP/s executed"]
    if peer:
        lines.append(f"{peer.title:<28} {peer.views:9.2f} views/s ± {peer.spread:4.0%}   ours {step.views / peer.views:.2f} x")
    rate = of_gemm.baseline or 0.0
    share = f"the step does {of_gemm.value / rate:.0%} of it"
    lines.append(f"{gemm.title:<28} {rate:9.2f} TFLOP/s ± {gemm.spread:4.0%}   {share}")
    return "\n".join(lines + disturbance(max(step.neighbours)))


if __name__ == "__main__":
    sys.exit(main())
