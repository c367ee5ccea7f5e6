#!/usr/bin/env python3
"""How good detections of actions are: mean average precision at an IoU of 0.5, by class, in the style of ActivityNet's script
or another public code's.

    tubecell score-detections RUN_OR_WEIGHTS --data DATASET --split val
    torchrun --nproc-per-node 8 train/score_detections.py RUN_OR_WEIGHTS --data DATASET --split val
    tubecell score-detections FOUND.csv --data DATASET --split val
    tubecell score-detections FOUND.csv --truth ava_val_v2.2.csv --actions ava_action_list_v2.2_for_activitynet_2019.pbtxt

What a run was trained and evaluated with stands in for --frames, --sampling, --at-least and --sides where they are not given.
A detector sees each whole key frame once, and scores the boxes of people that a detector has found (or, --boxes truth, that are
annotated: no paper's figure). FOUND.csv has a row movie,second,x0,y0,x1,y1,action,score for each box and action, as they are
sent in. The three --style s give three figures on the same file; each says whose it is.

Views are normalised as in pre-training. Public weights of VideoMAE's code for AVA were trained on other pixels, less (122.77,
115.95, 102.98) and divided by 57.375: their figure here is not that code's.

OUT gets evaluation.json, evaluation.html (classes, and frames with the boxes drawn in) and, of a detector, detections.csv and
detections.parquet. Killed, the same command goes on where it was. Clips that cannot be decoded are named, and are in no figure.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import os
from collections.abc import Sequence

from pipeline.console import check_printed, exit_status
from pipeline.loader import LoaderError
from pipeline.sampling.view_boxes import SURE
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from train.compute.parallel import started
from train.demos import weights as released
from train.detection.mean_precision import DEFAULT, STYLES
from train.detection.scored_file import score_file
from train.detection.scored_model import score_model

FILES = (".csv", ".txt")


@exit_status(LoaderError, name="score-detections")
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    released.add_options(parser, positional=True)
    parser.add_argument("--data", metavar="DATASET", help="folder or URL, of `tubecell build-detection`")
    parser.add_argument("--split", default="val", help="whose key frames: one, several as val,test, or all (default: val)")
    parser.add_argument("--truth", type=on_disk, nargs="+", metavar="CSV", help="annotations, instead of a dataset's")
    parser.add_argument("--actions", type=on_disk, metavar="PBTXT", help="with --truth: the classes that count")
    parser.add_argument("--excluded", type=on_disk, nargs="*", default=[], metavar="CSV", help="with --truth: seconds left out")
    parser.add_argument("--style", choices=STYLES, default=DEFAULT, help="whose rules (default: %(default)s)")
    parser.add_argument("--boxes", choices=("detection", "truth"), default="detection", help="which a detector looks at")
    parser.add_argument("--at-least", type=float, metavar="S", help=f"score of a detection (default: the run's, or {SURE})")
    parser.add_argument(
        "--sides",
        type=int,
        nargs=2,
        metavar=("SHORT", "LONG"),
        help="of a frame as it is seen, in pixels (default: the run's, or 256 464 of weights for 224, others in proportion)",
    )
    parser.add_argument(
        "--frames",
        choices=("key_frame_videomae", "key_frame"),
        help="where a view's frames lie, as in `tubecell detect --frames` (default: the run's, or key_frame_videomae)",
    )
    parser.add_argument("--sampling", help="distance of frames, as stride:4 (default: the run's, or as the dataset was built)")
    parser.add_argument("--out", type=on_disk, metavar="FOLDER", help="default: evaluations/WHAT-SPLIT")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes of a rank (default: found while it works)")
    options = parser.parse_args(arguments)
    if (options.data is None) == (options.truth is None):
        raise ValueError("--data DATASET or --truth CSV is needed, one of them: what is true")
    if options.data is not None and (options.actions or options.excluded):
        flag = "--actions" if options.actions else "--excluded"
        raise ValueError(f"{flag} goes with --truth: a dataset has its own classes, and no excluded seconds; leave it")
    if options.truth and not options.actions:
        raise ValueError("--truth: --actions PBTXT is needed, the list of the classes that count")
    if options.at_least is not None and not 0 <= options.at_least <= 1:
        raise ValueError(f"--at-least {options.at_least} must be 0 to 1")
    of_file = options.weights.endswith(FILES)
    if options.truth and not of_file:
        raise ValueError(f"{options.weights}: only a file of detections (.csv) can be scored without --data DATASET")
    if options.out is None:
        name = "-".join(filter(None, (os.path.basename(os.path.normpath(options.weights)), options.key)))
        split = "" if options.truth else f"-{options.split.replace(',', '+')}"
        options.out = Path("evaluations") / f"{name}{split}"
    refuse_dataset("--out", options.out)
    if of_file:
        score_file(options)
    else:
        with started(options.device, flag="--device") as ranks:
            score_model(options, ranks)
    check_printed()


if __name__ == "__main__":
    sys.exit(main())
