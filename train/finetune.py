#!/usr/bin/env python3
"""Fine-tune a classifier on labelled clips, on a pre-trained encoder.

    tubecell finetune tiny --data DATASET --init RUN --out RUN
    torchrun --nproc-per-node 8 -m tubecell finetune vit-b-own --data DATASET --init WEIGHTS --out RUN --evaluate-every 500

The classes are the dataset's. WEIGHTS are those of a run of `pretrain` or `finetune`, or anybody's: see
docs/released-weights.md. Interrupted, the same command goes on from the last checkpoint with the same batches, on any number of
GPUs. RUN holds what one of `pretrain` does, and label_map.json.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from train.entry import run
from train.recipes.finetuning import RECIPES
from train.stages.finetuning import Finetuning


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    return run(Finetuning, RECIPES, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
