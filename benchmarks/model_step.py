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

from benchmarks.parts.hf_step import HfPretraining
from benchmarks.parts.program import program
from benchmarks.parts.results import Result
from benchmarks.parts.step_contest import Contest, StepOptions, hold
from benchmarks.parts.step_work import largest_product, step_flops, step_work

CONTEST = Contest(
    "step",
    views=(8, 64),
    work=step_work,
    peer=HfPretraining,
    tflop=lambda config, views: step_flops(config, views, dual=True) / 1e12,
    product=lambda config, views: largest_product(config, views, dual=True),
)


@program(StepOptions)
def main(options: StepOptions) -> list[Result]:
    return hold(CONTEST, options)


if __name__ == "__main__":
    sys.exit(main())
