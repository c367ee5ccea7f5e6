"""Build LabeledHybrid: Kinetics-710, the union of Kinetics-400, 600 and 700 (VideoMAE V2, section 3.3 and appendix C).

    tubecell build-labeled-hybrid --k400 VIDEOS LISTS --k600 VIDEOS LISTS --k700 VIDEOS LISTS --out DATASET

LISTS is an official CSV or JSON file, or a folder of them; VIDEOS may lack files. Training and validation lists are merged by
YouTube id, classes grouped into 710, and ids that are in both kinds of lists leave training (--leaks). The maps of classes
710 -> 400, 600, 700 are written beside the manifest. --plan shows all of it without touching a video.
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
    return command(argv, description=__doc__, splits=("train", "val"), kinds=("kinetics",))


if __name__ == "__main__":
    sys.exit(main())
