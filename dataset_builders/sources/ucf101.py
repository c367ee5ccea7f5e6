"""UCF101 and HMDB51: videos of short actions, in three official splits.

UCF101, 13,320 videos of 101 classes ("UCF101TrainTestSplits-RecognitionTask"): `classInd.txt` with lines `1 ApplyEyeMakeup`;
`trainlist01.txt` with lines `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`; `testlist01.txt`, the same without the number.
Lines end with CR LF. 25 frames a second.

HMDB51, 6,766 videos of 51 classes ("testTrainMulti_7030_splits"): `CLASS_test_split1.txt` for each class, with lines
`NAME.avi 1 ` (and a space at the end): 1 is training, 2 test, 0 is in neither. Classes are in alphabetical order. 30 frames a
second; the official fine-tuning samples every second frame, where it takes every fourth of UCF101.

Videos are found by name with any extension, or as folders `NAME/` of frames.
"""

import os
from collections.abc import Iterable

from dataset_builders.plan import SourcePlan
from dataset_builders.sources.annotations import AnyPath, DroppedEntry, Entry, is_text, malformed, read_lines, settle, shown
from dataset_builders.sources.frames import check_rate
from dataset_builders.sources.listing import existing_folder, plan_entries
from dataset_builders.sources.rows import path_and_number

HMDB51_SPLITS: dict[int | None, str] = {0: "unused", 1: "train", 2: "test"}


def plan_ucf101(
    name: str, *, folder: AnyPath, annotations: AnyPath, number: int = 1, rate: float = 25.0, sampling: str = "stride:4"
) -> SourcePlan:
    """Official split `number` (1, 2 or 3) of the videos in `folder`: its training list as "train", its test list as "test".

    `annotations` is the folder of the lists, `rate` what folders of frames were extracted at. Class names are written as
    label_map_NAME.json, in the order of classInd.txt. Raises ValueError if a file or folder is missing, or classInd.txt is
    not numbered from 1.
    """
    _check(name, "UCF101", number, rate)
    lists = existing_folder(annotations)
    classes = _read_classes(os.path.join(lists, b"classInd.txt"))
    entries: list[Entry | DroppedEntry] = []
    for split, kind in (("train", b"trainlist"), ("test", b"testlist")):
        file = os.path.join(lists, b"%s%02d.txt" % (kind, number))
        for line, text in enumerate(read_lines(file), start=1):
            path, index = path_and_number(text)
            label, _, video = path.partition("/")
            stem = os.path.splitext(video)[0]
            right = index == (classes.index(label) + 1 if label in classes and split == "train" else None)
            if label in classes and is_text(stem) and "/" not in stem and right:
                entries.append(Entry(stem, split, label, shown(file), line))
            elif path:
                wanted = "CLASS/NAME.avi" + (" NUMBER, with class and number as in classInd.txt" if split == "train" else "")
                entries.append(malformed(file, line, split, f"{text!r} is not {wanted}"))
    return _plan(name, folder, entries, classes, rate, sampling)


def plan_hmdb51(
    name: str, *, folder: AnyPath, annotations: AnyPath, number: int = 1, rate: float = 30.0, sampling: str = "stride:2"
) -> SourcePlan:
    """Official split `number` (1, 2 or 3) of the videos in `folder`; those that it does not use are counted and left out.

    As `plan_ucf101`. Raises ValueError if a folder is missing, or has no list of that split.
    """
    _check(name, "HMDB51", number, rate)
    lists = existing_folder(annotations)
    ending = f"_test_split{number}.txt"
    files = [file for file in map(os.fsdecode, os.listdir(lists)) if file.endswith(ending) and is_text(file)]
    classes = sorted(file.removesuffix(ending) for file in files)  # not of the files: climb comes before climb_stairs
    if not classes:
        raise ValueError(f"source {name}: there is no file CLASS{ending} in {shown(annotations)}")
    entries: list[Entry | DroppedEntry] = []
    for label in classes:
        path = os.path.join(lists, os.fsencode(label + ending))
        for line, text in enumerate(read_lines(path), start=1):
            video, part = path_and_number(text)
            stem, extension = os.path.splitext(video)
            if part in HMDB51_SPLITS and extension and is_text(stem) and "/" not in stem:
                entries.append(Entry(stem, HMDB51_SPLITS[part], label, shown(path), line))
            elif text.strip():
                entries.append(malformed(path, line, "train", f"{text!r} is not 'NAME.avi 0', 1 (training) or 2 (test)"))
    return _plan(name, folder, entries, classes, rate, sampling)


def _check(name: str, dataset: str, number: int, rate: float) -> None:
    check_rate(name, rate)
    if number not in (1, 2, 3):
        raise ValueError(f"source {name}: split {number} of {dataset} does not exist; allowed are 1, 2 and 3")


def _plan(
    name: str, folder: AnyPath, lines: Iterable[Entry | DroppedEntry], classes: list[str], rate: float, sampling: str
) -> SourcePlan:
    """`lines` of the lists, those that are malformed as dropped ones."""
    root = existing_folder(folder)
    entries, dropped = settle(lines)
    return plan_entries(
        name,
        root,
        entries,
        dropped,
        splits=("train", "test"),
        columns={"sampling": sampling},
        by_kind={"rate": (float(rate), None)},
        files={f"label_map_{name}.json": classes},
    )


def _read_classes(file: AnyPath) -> list[str]:
    """Class names in the order of their numbers."""
    pairs = [line.split() for line in read_lines(file) if line.strip()]
    if not pairs or [pair[0] for pair in pairs] != [str(number) for number in range(1, len(pairs) + 1)]:
        raise ValueError(f"{shown(file)}: the lines must be '1 ApplyEyeMakeup' and so on, numbered from 1 without gaps")
    if any(len(pair) != 2 for pair in pairs):
        wrong = next(pair for pair in pairs if len(pair) != 2)
        raise ValueError(f"{shown(file)}: line {wrong[0]} must have a number and a class, not {wrong}")
    return [pair[1] for pair in pairs]
