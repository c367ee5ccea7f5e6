#!/usr/bin/env python3
"""Train linear or attentive classifiers on the features of a frozen, pre-trained encoder.

    tubecell probe tiny --data DATASET --init RUN --out RUN --evaluate-every 100
    torchrun --nproc-per-node 8 -m tubecell probe vit-b-ssv2 --data DATASET --init WEIGHTS --out RUN --evaluate-every 500
    tubecell probe vit-b-own --data DATASET --init WEIGHTS --out RUN --lrs 0.1 0.3 1 --weight-decays 0 1e-4 --evaluate-every 100
    tubecell probe vit-b-own-attentive --probe-depth 4 --data DATASET --init WEIGHTS --out RUN --evaluate-every 100

Each learning rate with each weight decay is a head; the encoder runs once for all of them. A linear head is given the mean of a
view's tokens; an attentive one all tokens, at which a learned query looks (V-JEPA 2's evaluation). RUN/evaluations.jsonl
tells how good each is, and which is best: that one, with the encoder, is RUN/model.safetensors, a classifier like any other.
The classes are the dataset's. WEIGHTS are those of a run, or anybody's, of any layout. Interrupted, the same command goes on
from the last checkpoint with the same batches, on any number of GPUs.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from train.entry import run
from train.recipes.probing import RECIPES
from train.stages.probing import Probing


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    return run(Probing, RECIPES, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
