#!/usr/bin/env python3
"""Train a localizer, ActionFormer, on features: what happens when in videos; `localize evaluate RUN` judges one on any split.

    tubecell extract-features VIDEOS --init vit_g_k710_ft.pth --out FEATURES --preset thumos14
    tubecell localize thumos14 --features FEATURES --annotations thumos14.json --out RUN --evaluate-every 500
    torchrun --nproc-per-node 2 -m tubecell localize fineaction --features FEATURES --annotations JSON --out RUN \\
        --judge.external-scores SCORES.json --evaluate-every 1000
    tubecell localize own --features FEATURES --annotations JSON --out RUN --model.input-dim 768 --init actionformer.pth.tar
    tubecell localize evaluate RUN --split test --out RESULT
    tubecell localize evaluate actionformer.pth.tar --recipe thumos14-i3d --features FEATURES --annotations JSON --out RESULT

Annotations are JSON in ActivityNet's layout. RUN/localization has what was found on --evaluate-split last: predictions.json
(ActivityNet's layout), evaluation.html with each class at each overlap, and time lines. Videos without features, actions
outside of their video and the like are left out, named and counted. Interrupted, the same command goes on from the last
checkpoint with the same batches, on any number of GPUs.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from train.entry import run
from train.localization import evaluation
from train.recipes.localizing import RECIPES
from train.stages.localizing import Localizing


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["evaluate"]:
        return evaluation.main(arguments[1:], RECIPES)
    return run(Localizing, RECIPES, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
