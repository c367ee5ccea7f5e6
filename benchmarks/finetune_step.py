#!/usr/bin/env python3
"""How fast a fine-tuning step is: beside HF transformers' classifier, and beside the device's own matrix products.

    tubecell finetune-step                                 ViT-B, 2 views on a CPU, 32 on a GPU
    tubecell finetune-step --bf16 --json finetune.json

A step is the trainer's own, with all that fine-tuning does: uint8 views are mirrored, normalised, erased and mixed with a
partner; stochastic depth, forward, backward, gradient clipping, fused AdamW; each view is of a clip of its own. The peer,
VideoMAEForVideoClassification, gets its clips ready, as floats, and integer labels, and draws nothing. All take turns; see
model_step.py.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from benchmarks.parts.hf_step import HfClassification
from benchmarks.parts.program import program
from benchmarks.parts.results import Result
from benchmarks.parts.step_contest import Contest, StepOptions, hold
from benchmarks.parts.step_work import finetune_work, finetuning
from train.compute.memory import cost_of

CONTEST = Contest(
    "finetune",
    views=(2, 32),
    work=finetune_work,
    peer=HfClassification,
    tflop=lambda config, views: cost_of(finetuning(config, views=views)).flops * views / 1e12,
    product=lambda config, views: (views * config.num_tokens, config.encoder_dim, config.encoder_mlp_dim),
)


@program(StepOptions)
def main(options: StepOptions) -> list[Result]:
    return hold(CONTEST, options)


if __name__ == "__main__":
    sys.exit(main())
