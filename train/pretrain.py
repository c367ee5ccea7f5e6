#!/usr/bin/env python3
"""Pre-train a dual-masked autoencoder on a dataset of clips.

    tubecell pretrain tiny --data DATASET --out RUN
    torchrun --nproc-per-node 8 -m tubecell pretrain vit-g-hybrid --data DATASET --out RUN
    tubecell pretrain vit-g-hybrid --dry-run

Interrupted, the same command goes on from the last checkpoint with the same batches, on any number of GPUs. RUN holds
config.json, environment.json, metrics.jsonl, skipped.jsonl, failures.jsonl, tensorboard/, checkpoints/ and, at the end,
model.safetensors (official parameter names), card.md (what they are) and `complete`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from train.entry import run
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import Pretraining


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    return run(Pretraining, RECIPES, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
