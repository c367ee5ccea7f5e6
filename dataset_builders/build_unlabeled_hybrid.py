"""Build UnlabeledHybrid, the 1.35 million clips that VideoMAE V2 is pre-trained on, from what of it you have, or any videos.

    tubecell build-unlabeled-hybrid --folder NAME=PATH [--folder NAME=PATH ...] --out DATASET
    tubecell build-unlabeled-hybrid --k700 VIDEOS LISTS --ssv2 VIDEOS LISTS ... --out DATASET --plan
    tubecell build-unlabeled-hybrid --config BUILD.toml

Of labelled sources the training lists are taken. Every file ends in DATASET/manifest.parquet, in DATASET/rejects.parquet with
the reason, or in DATASET/dropped.parquet if it was not asked for. The build can be stopped at any moment and started again
with the same command. Started on a finished dataset it adds what is new, and what could not be read before (see --retry), as a
new version, and otherwise does nothing.
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
    return command(argv, description=__doc__, splits=("train",))


if __name__ == "__main__":
    sys.exit(main())
