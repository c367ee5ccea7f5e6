"""Build a dataset from one source, with all of its splits and labels: for fine-tuning, evaluation, or a look at it.

    tubecell build --ssv2 VIDEOS LISTS --out DATASET
    tubecell build --ucf101 VIDEOS LISTS --out DATASET
    tubecell build --k400 TRAIN LISTS --k400 VAL LISTS --out DATASET     # or one folder of both
    tubecell build --list own=train.csv --list own:val=val.csv --out DATASET     # VideoMAE lists
    tubecell build --folder own=TRAIN --folder own:val=VAL --labels-from-folder --out DATASET
    tubecell build --index 'own=/data/{000..999}.tar' --out DATASET   # existing tars, no copy

Several sources make a hybrid: see build_unlabeled_hybrid.py.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from dataset_builders.building.command import command


def main(argv: list[str] | None = None) -> int:
    return command(argv, description=__doc__, splits=("train", "val", "test"), one_source=True)


if __name__ == "__main__":
    sys.exit(main())
