"""HMDB51: 6,766 videos of 51 classes, in three official splits ("testTrainMulti_7030_splits").

Annotation files: `CLASS_test_split1.txt` for each class, with lines `NAME.avi 1 ` (and a space at the end): 1 is training, 2
test, 0 is in neither. The class is in the file's name; the order of classes is alphabetical. Videos have 30 frames a second,
and are found by name with any extension, or as folders `NAME/` of frames.
"""

import os
import re

from dataset_builders.plan import Drop, SourcePlan
from dataset_builders.sources.annotations import AnyPath, DroppedEntry, Entry, is_text, read_lines, settle, shown
from dataset_builders.sources.frames import check_rate
from dataset_builders.sources.listing import existing_folder, list_videos, plan_entries

RATE = 30.0
SAMPLING = "stride:2"
SPLITS = {"0": "unused", "1": "train", "2": "test"}


def plan(
    name: str,
    *,
    folder: AnyPath,
    annotations: AnyPath,
    number: int = 1,
    rate: float = RATE,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """Official split `number` (1, 2 or 3) of the videos in `folder`; those that it does not use are counted and left out.

    `annotations` is the folder of the lists, `rate` what folders of frames were extracted at. The official fine-tuning samples
    every second frame, unlike UCF101's. Class names are written as label_map_NAME.json. Raises ValueError if a folder is
    missing, or has no list of that split.
    """
    check_rate(name, rate)
    if number not in (1, 2, 3):
        raise ValueError(f"source {name}: split {number} of HMDB51 does not exist; allowed are 1, 2 and 3")
    root, lists = existing_folder(folder), existing_folder(annotations)
    ending = f"_test_split{number}.txt"
    files = [file for file in map(os.fsdecode, os.listdir(lists)) if file.endswith(ending) and is_text(file)]
    classes = sorted(file.removesuffix(ending) for file in files)  # not of the files: climb comes before climb_stairs
    if not classes:
        raise ValueError(f"source {name}: there is no file CLASS{ending} in {shown(annotations)}")
    entries: list[Entry] = []
    malformed: list[DroppedEntry] = []
    for label in classes:
        path = os.path.join(lists, os.fsencode(label + ending))
        for line, text in enumerate(read_lines(path), start=1):
            found = re.fullmatch(r"(.+)\.[A-Za-z0-9]{1,4} +([012])", text.strip())
            if found and is_text(found[1]) and "/" not in found[1]:
                entries.append(Entry(found[1], SPLITS[found[2]], label, shown(path), line))
            elif text.strip():
                detail = f"{shown(path)}:{line}: {text!r} is not 'NAME.avi 0', 1 (training) or 2 (test)"
                malformed.append(DroppedEntry(None, "train", Drop.MALFORMED, detail))
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
