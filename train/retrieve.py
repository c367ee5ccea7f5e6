#!/usr/bin/env python3
"""Train videos and texts to find each other, on a pre-trained or fine-tuned encoder and a text tower of transformers;
`retrieve evaluate RUN` tells how well they do, on any split and dataset.

    tubecell retrieve tiny --text TOWER --data DATASET --init WEIGHTS --out RUN
    torchrun --nproc-per-node 8 -m tubecell retrieve vit-b-own --text TOWER --data DATASET --init WEIGHTS --out RUN
    tubecell retrieve evaluate RUN --data DATASET --split test --out RESULT

TOWER is a local folder with a tokenizer and a model of transformers, as `save_pretrained` writes them: BERT and its kin, CLIP's
text model, T5's encoder. RUN/text_tower keeps the tokenizer and the sizes, so that TOWER may move once the run has a
checkpoint. DATASET has captions: it is built of a CSV list with a column `caption`, or of --msrvtt, --msvd or --webvid.
--evaluate-every 500 tells R@1, R@5, R@10, ranks and mAP of both directions on --evaluate-split, and RUN/retrieval.html shows
what texts found. Interrupted, the same command goes on from the last checkpoint with the same batches, on any number of GPUs.
RUN holds what one of `pretrain` does besides.
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
from train.retrieval import evaluation
from train.stages.retrieving import Retrieving


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["evaluate"]:
        return evaluation.main(arguments[1:], RECIPES)
    return run(Retrieving, RECIPES, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
