"""UCF101: 13,320 videos of 101 classes, in three official splits ("UCF101TrainTestSplits-RecognitionTask").

Annotation files: `classInd.txt` with lines `1 ApplyEyeMakeup`; `trainlist01.txt` with lines
`ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`; `testlist01.txt`, the same without the number. Lines end with CR LF. Videos
have 25 frames a second, and are found by name with any extension, or as folders `v_ApplyEyeMakeup_g08_c01/` of frames.
"""

import os

from dataset_builders.plan import Drop, SourcePlan
from dataset_builders.sources.annotations import AnyPath, DroppedEntry, Entry, is_text, read_lines, settle, shown
from dataset_builders.sources.frames import check_rate
from dataset_builders.sources.listing import existing_folder, list_videos, plan_entries

RATE = 25.0
SAMPLING = "stride:4"


def plan(
    name: str,
    *,
    folder: AnyPath,
    annotations: AnyPath,
    number: int = 1,
    rate: float = RATE,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """Official split `number` (1, 2 or 3) of the videos in `folder`: its training list as "train", its test list as "test".

    `annotations` is the folder of the lists, `rate` what folders of frames were extracted at. Class names are written as
    label_map_NAME.json, in the order of classInd.txt. Raises ValueError if a file or folder is missing, or classInd.txt is
    not numbered from 1.
    """
    check_rate(name, rate)
    if number not in (1, 2, 3):
        raise ValueError(f"source {name}: split {number} of UCF101 does not exist; allowed are 1, 2 and 3")
    root, lists = existing_folder(folder), existing_folder(annotations)
    classes = _read_classes(os.path.join(lists, b"classInd.txt"))
    entries: list[Entry] = []
    malformed: list[DroppedEntry] = []
    for split, kind in (("train", b"trainlist"), ("test", b"testlist")):
        file = os.path.join(lists, b"%s%02d.txt" % (kind, number))
        for line, text in enumerate(read_lines(file), start=1):
            path, _, index = text.strip().partition(" ")
            label, _, video = path.partition("/")
            stem = os.path.splitext(video)[0]
            right = index.strip() == str(classes.index(label) + 1) if label in classes and split == "train" else not index
            if label in classes and is_text(stem) and "/" not in stem and right:
                entries.append(Entry(stem, split, label, shown(file), line))
            elif path:
                wanted = "CLASS/NAME.avi" + (" NUMBER, with class and number as in classInd.txt" if split == "train" else "")
                detail = f"{shown(file)}:{line}: {text!r} is not {wanted}"
                malformed.append(DroppedEntry(None, split, Drop.MALFORMED, detail))
    entries, dropped = settle(entries)
    names = {os.fsencode(entry.id) for entry in entries}
    return plan_entries(
        name,
        list_videos(root, lambda parent, directory: directory in names),
        entries,
        [*malformed, *dropped],
        splits=("train", "test"),
        columns={"sampling": sampling},
        frames_columns={"rate": float(rate)},
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
