#!/usr/bin/env python3
"""Train an action detector on annotated key frames, on a pre-trained or fine-tuned encoder.

    tubecell detect tiny --data DATASET --init RUN --out RUN
    torchrun --nproc-per-node 8 -m tubecell detect vit-b-ava --data AVA --init WEIGHTS --out RUN --evaluate-every 1000

DATASET is one of `tubecell build-detection`; its boxes of people are annotated in training, and detected in evaluations.
WEIGHTS are those of a run of `pretrain`, `finetune` or `detect`, or anybody's: see docs/released-weights.md. Interrupted, the
same command goes on from the last checkpoint with the same batches, on any number of GPUs. `tubecell score-detections RUN`
tests what came out.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from train.entry import run
from train.recipes.detecting import RECIPES
from train.stages.detecting import Detecting


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    return run(Detecting, RECIPES, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
