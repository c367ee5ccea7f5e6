"""Build a dataset for spatial action detection: a window of 64 frames around each annotated second, with boxes and actions.

    tubecell build-detection --ava MOVIES ANNOTATIONS --proposals DETECTIONS.csv --out DATASET      # AVA 2.2
    tubecell build-detection --ava-kinetics CLIPS ANNOTATIONS --out DATASET     # or both in one command
    tubecell build-detection --ava MOVIES ANNOTATIONS --detector fasterrcnn_resnet50_fpn_v2 \\
        --detector-weights WEIGHTS.pth --out DATASET

MOVIES: whole movies (ID.mkv), their minutes 15 to 30 (--trimmed), folders of images (ID/*.jpg, from second 900 on), or folders
of files of a second each (ID/902.mp4). ANNOTATIONS: a folder with the official files: ava_train_v2.2.csv, ava_val_v2.2.csv,
excluded timestamps, and ava_action_list_v2.2.pbtxt; for AVA-Kinetics kinetics_train_v1.0.csv and its like.

Beside the manifest lie key_frames.parquet, boxes.parquet and actions.json. What was not taken is named, with the reason, in
DATASET/rejects.parquet or DATASET/dropped.parquet: seconds outside of a movie, movies that are not there, empty boxes, boxes
outside of the frame. The build can be stopped and started again; other --proposals need no clip to be encoded again.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from dataset_builders.building.command import command
from dataset_builders.detection.command import Boxes
from dataset_builders.sources.kinds import DETECTION


def main(argv: list[str] | None = None) -> int:
    return command(argv, description=__doc__, splits=("train", "val", "test"), kinds=DETECTION, more=Boxes())


if __name__ == "__main__":
    sys.exit(main())
