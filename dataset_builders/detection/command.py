"""What the command for detection does besides building clips: boxes, from annotations, files of detections, or a detector."""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc

from dataset_builders.building.build import make_plan
from dataset_builders.building.jobs import BuildState, Hold
from dataset_builders.building.request import Build
from dataset_builders.detection.detector import PersonDetector, detect_people
from dataset_builders.detection.proposals import Detection, read_proposals
from dataset_builders.detection.tables import key_frames, write_tables
from dataset_builders.plan import Plan
from dataset_builders.sources.boxes import BoxCheck


class Boxes:
    """`building.command.More`."""

    def __init__(self) -> None:
        self._detector: PersonDetector | None = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument_group("annotations").add_argument
        add("--actions", metavar="FILE", help="action list (.pbtxt or .csv), if it is not among the annotations")
        add("--evaluated", metavar="FILE", help="action list of the classes that count in the mean, likewise")
        trimmed = "movie files hold the minutes 15 to 30 alone (videos_15min), and begin with second 900"
        add("--trimmed", action="store_true", default=None, help=trimmed)
        rate = "frames per second of windows, and of folders of images (30; of movies in pieces of a second 25)"
        add("--rate", type=float, metavar="FPS", help=rate)
        add = parser.add_argument_group(
            "people as a detector finds them, for testing (can be given later, by the same command)"
        ).add_argument
        proposals = "files of detections: .csv (movie,second,x1,y1,x2,y2,score), .json, .pkl (read by an allow-list)"
        add("--proposals", nargs="+", metavar="FILE", default=[], help=proposals)
        images = "COCO files that say which movie and second an image of a .json is"
        add("--images", nargs="+", metavar="FILE", default=[], help=images)
        detector = "in place of them, or besides: run a detector of torchvision on the key frames of validation and test"
        add("--detector", metavar="NAME", help=f"{detector}, such as fasterrcnn_resnet50_fpn_v2")
        add("--detector-weights", metavar="FILE", help="its weights; nothing is downloaded")
        add("--detector-device", metavar="DEVICE", help="where it runs (cuda, if there is one)")

    def check(self, args: argparse.Namespace) -> None:
        if bool(args.detector) != bool(args.detector_weights):
            raise ValueError("--detector and --detector-weights go together")
        if args.rate is not None and not 1 <= args.rate <= 240:
            raise ValueError(f"--rate {args.rate:g}: allowed are 1 to 240")
        if args.preset == "copy":
            raise ValueError("--preset copy: windows are cut out of movies; take one that encodes, such as h264-fast")
        for file in (*args.proposals, *args.images):
            if not Path(file).is_file():
                raise ValueError(f"--{'proposals' if file in args.proposals else 'images'} {file}: there is no such file")
        if args.detector and not args.plan:
            self._detector = PersonDetector(args.detector, Path(args.detector_weights), args.detector_device)

    def afterwards(self, build: Build, args: argparse.Namespace) -> int:
        plan, check = make_plan(build), BoxCheck()
        sources: list[Iterable[Detection]] = []
        if args.proposals:
            sources.append(read_proposals(args.proposals, check, args.images))
        if self._detector:
            sources.append(self._found(build, plan, self._detector))
        detections = itertools.chain.from_iterable(sources) if sources else None
        if written := write_tables(build, plan, detections, check.dropped):
            print("\n".join(written.lines()))
        return 0

    def _found(self, build: Build, plan: Plan, detector: PersonDetector) -> Iterable[Detection]:
        with BuildState(build.out, Hold.STARTER) as state:  # the lock is held by who writes the tables
            clips = key_frames(state, plan)
            tested = clips.filter(pc.not_equal(clips["split"], "train"))
            yield from detect_people(build.out, tested, detector, state.root)
