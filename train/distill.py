#!/usr/bin/env python3
"""Distil a large classifier into a small one: the student learns what the teacher makes of the same views.

    tubecell distill tiny --teacher RUN --init RUN --data DATASET --out RUN
    torchrun --nproc-per-node 8 -m tubecell distill vit-b-k710 --teacher WEIGHTS --init WEIGHTS --data DATASET --out RUN

The teacher is a classifier: a run of `finetune`, or anybody's weights. The student begins with those of --init, of any layout:
see docs/released-weights.md. No label is needed. Interrupted, the same command goes on from the last checkpoint with the same
batches, on any number of GPUs. RUN holds what one of `finetune` does.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from train.entry import run
from train.recipes.distilling import RECIPES
from train.stages.distilling import Distilling


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    return run(Distilling, RECIPES, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
