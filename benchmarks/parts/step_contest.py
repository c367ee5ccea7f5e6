"""An optimizer step of a stage beside the same step of HF transformers, and beside the device's own matrix products: what
`model_step.py` and `finetune_step.py` are."""

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import torch

from benchmarks.parts.hf_step import HfProcess, Peer, missing_transformers
from benchmarks.parts.path_parts import ModelWork
from benchmarks.parts.program import WithTurns
from benchmarks.parts.results import Result, about_cpu, check_numbers, describe_machine, disturbance
from benchmarks.parts.step_work import GemmWork
from benchmarks.parts.stopwatch import Part, Stopwatch, Work, ratios
from model.config import MODELS, AttentionKernel, ModelConfig
from train.compute.device_speed import peak_flops
from train.compute.parallel import Ranks, started
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOptions(WithTurns):
    """What is measured, and for how long."""

    model: str = "vit-b"
    """One of the named models."""
    views: int | None = None
    """Views of a step; by default as many as the text above says."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes a GPU if there is one."""
    peer: bool = True
    """Compare with HF transformers, where it is installed."""
    bf16: bool = False
    """Measure bf16 also on a CPU that has no instructions for it."""
    precision: Precision | None = None
    """Only this one; by default fp32, and bf16 where the device has instructions for it."""
    compile: bool | None = None
    """Compile the blocks; by default on a GPU only."""
    activation_checkpointing: str = "none"
    """Blocks whose forward pass runs again, as train/pretrain.py takes it."""
    attention: AttentionKernel = "auto"
    """Whose kernels attention takes on a GPU."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What differs between stages."""

    name: str
    """That figures begin with."""
    views: tuple[int, int]
    """Of a step by default, on a CPU and on a GPU."""
    work: Callable[[ModelConfig, int, ComputeConfig, Ranks], ModelWork]
    """Sizes, views, how -> our step, built and warm."""
    peer: Peer
    tflop: Callable[[ModelConfig, int], float]
    """Executed of a step."""
    product: Callable[[ModelConfig, int], tuple[int, int, int]]
    """(rows, inner, columns) of its largest linear layer."""


@dataclass(slots=True)
class Measured:
    """The parts of one precision."""

    precision: Precision
    step: Part
    gemm: Part
    step_tflop: float  # of one view
    gemm_tflop: float  # of one product
    peak: float | None  # FLOP/s of the data sheet
    peer: Part | None = None

    @property
    def of_gemm(self) -> Result:
        """TFLOP/s beside the matrix product's."""
        factor = self.step_tflop / self.gemm_tflop
        rounds = [factor * ratio for ratio in ratios(self.step, self.gemm, in_views=False)]
        return Result("vs_gemm", self.step.views * self.step_tflop, "TFLOP/s", self.gemm.clips * self.gemm_tflop, rounds)

    def results(self, name: str) -> list[Result]:
        """Views/s, beside the peer's; `of_gemm`; and on a GPU of a known data sheet the share of that, which is the MFU."""
        name, tflops = f"{name}/{self.precision}", self.step.views * self.step_tflop
        peer = [self.step.result("views/s", f"{name}/vs_hf", self.peer)] if self.peer else []
        mfu = [Result(f"{name}/mfu", tflops, "TFLOP/s", self.peak / 1e12)] if self.peak else []
        return [self.step.result("views/s", name), *peer, replace(self.of_gemm, name=f"{name}/vs_gemm"), *mfu]


def hold(contest: Contest, options: StepOptions) -> list[Result]:
    """All precisions, one after the other. Raises ValueError, with the flag, for what cannot be."""
    check(options)
    results = []
    with started(options.device) as ranks:
        views = options.views or contest.views[ranks.device.type == "cuda"]
        precisions, skipped = wanted_precisions(options, ranks.device)
        print(f"{describe_machine()}\n{options.model}, {views} views a step", flush=True)
        if options.peer and (reason := missing_transformers()):
            skipped.append(f"HF transformers: {reason}")
        for precision in precisions:
            with ExitStack() as closing:
                measured = measure_precision(contest, options, views, precision, ranks, closing)
            results += measured.results(f"{contest.name}/{options.model}")
            print(table(measured), flush=True)
            del measured
            gc.collect()
    for reason in skipped:
        print(f"skipped: {reason}")
    return results


def check(options: StepOptions) -> None:
    """Raises ValueError, with the flag, for what cannot be."""
    if options.model not in MODELS:
        raise ValueError(f"there is no model {options.model!r}; the models are {', '.join(MODELS)}")
    check_numbers(options, "views", "rounds")


def wanted_precisions(options: StepOptions, device: torch.device) -> tuple[list[Precision], list[str]]:
    """Which to measure, and why another is not."""
    if options.precision:
        return [options.precision], []
    if device.type == "cuda" or options.bf16 or cpu_has_bf16():
        return ["fp32", "bf16"], []
    return ["fp32"], ["bf16: this CPU has no instructions for it (avx512_bf16, amx_bf16); --bf16 measures it all the same"]


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices itself, by the flags it names."""
    return "bf16" in about_cpu("flags", "Features")


def measure_precision(
    contest: Contest, options: StepOptions, views: int, precision: Precision, ranks: Ranks, closing: ExitStack
) -> Measured:
    """All contestants of one precision, in turns."""
    config = MODELS[options.model]
    compute = ComputeConfig(
        precision=precision,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
        attention=options.attention,
    )
    if ranks.device.type == "cuda":
        torch._dynamo.reset()  # every model and number of views is a graph of the same block, of which it compiles a few
    gemm = GemmWork(contest.product(config, views), precision, ranks.device)
    measured = Measured(
        precision,
        Part("step", f"step, {precision}", 1, contest.work(config, views, compute, ranks)),
        Part("gemm", f"matrix product, {precision}", 1, gemm),
        contest.tflop(config, views) / views,
        gemm.flops / 1e12,
        peak_flops(ranks.device, PRECISIONS[precision]),
    )
    if options.peer and not missing_transformers():
        peer: Work
        if ranks.device.type == "cpu":
            peer = HfProcess(contest.peer, config, views, precision)
            closing.callback(peer.close)
        else:
            peer = contest.peer(config, views, precision, ranks.device)
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
