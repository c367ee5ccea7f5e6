#!/usr/bin/env python3
"""Train videos and texts to find each other, on a pre-trained or fine-tuned encoder and a text tower of transformers.

    tubecell retrieve tiny --text TOWER --data DATASET --init RUN --out RUN
    torchrun --nproc-per-node 8 -m tubecell retrieve vit-b-own --text TOWER --data DATASET --init WEIGHTS --out RUN

TOWER is a local folder with a tokenizer and a model, as `save_pretrained` writes them. DATASET has captions: it is built of
a CSV list with a column `caption`, or of --msrvtt, --msvd or --webvid. --evaluate-every 500 tells R@1, R@5, R@10, ranks and mAP
of both directions on --evaluate-split, and RUN/retrieval.html shows what texts found. Interrupted, the same command goes on
from the last checkpoint with the same batches, on any number of GPUs. RUN holds what one of `pretrain` does besides.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from train.entry import run
from train.recipes.retrieving import RECIPES
from train.stages.retrieving import Retrieving


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    return run(Retrieving, RECIPES, __doc__ or "", arguments)


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.errors import record

    sys.exit(record(main)())
