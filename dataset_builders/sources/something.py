"""Something-Something V2 and V1: crowd workers acting out templates such as "Putting [something] onto [something]".

Annotation files, by their extension:

- V2, `something-something-v2-{train,validation,test}.json`: `[{"id": "74225", "label": "spinning cube that ...", "template":
  "Spinning [something] that ...", "placeholders": ["cube"]}, ...]`, in the test file only the id. The class is the template
  without its brackets: so `something-something-v2-labels.json` spells it, `{"Approaching something ...": "0", ...}`. In lists
  whose entries have no template, as others write them, the label is the class.
- V1, `something-something-v1-{train,validation,test}.csv`: `id;label`, in the test file only the id; the labels file has a
  class a line. V2's `test-answers.csv` looks the same, and can be given for the test file.

V2 comes as `ID.webm`, V1 as folders `ID/00001.jpg ...`; V2 is often unpacked into folders `ID/img_00001.jpg ...` too.

The papers sample every second frame of 12 a second (V2 appendix C.1): both versions have that rate, and the official code's
list files are of frames extracted at it (it says to use 4 at 24). So what is written is the interval, 2/12 s: at 12 frames a
second it takes the very frames of stride 2 (tested), and copies that were converted to 24 or 30 keep their speed of motion.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from dataset_builders.plan import SourcePlan
from dataset_builders.sources.annotations import (
    SPLITS,
    AnyPath,
    DroppedEntry,
    Entry,
    Files,
    as_files,
    is_text,
    malformed,
    read_json,
    read_lines,
    settle,
    shown,
)
from dataset_builders.sources.listing import existing_folder, plan_entries, without_extension
from dataset_builders.sources.rows import read_rows
from pipeline.storage.columns import as_extra

RATE = 12.0
SAMPLING = "seconds:0.166666"  # 2/12 s, rounded down: at 0.166667 a view would be 32.0001 frames long and miss the last start


def plan(
    name: str,
    *,
    folder: AnyPath,
    train: Files = None,
    val: Files = None,
    test: Files = None,
    labels: AnyPath | None = None,
    splits: Collection[str] = SPLITS,
    rate: float = RATE,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """The videos of the lists in `folder`, with class names.

    UnlabeledHybrid takes the training split (168,913 of V2; Table 8: 169k): `splits=("train",)`, where the other lists, if
    given, only tell their files from unknown ones and keep leaks out. `labels` checks the class names and is written as
    label_map_NAME.json, class names in the official order. `rate` is what folders of frames were extracted at, in frames
    per second. Raises ValueError if a file or the folder is missing, or an annotation file has another format.
    """
    if not 0 < rate < 1000:
        raise ValueError(f"source {name}: rate {rate:g} of the frames must be above 0 and below 1000 frames per second")
    if not (train or val or test):
        raise ValueError(f"source {name}: none of the annotation files train, val and test is given")
    root = existing_folder(folder)
    classes = _read_labels(labels) if labels is not None else None
    known = frozenset(classes or ())
    lines: list[Entry | DroppedEntry] = []
    for split, files in zip(SPLITS, (train, val, test), strict=True):
        for file in as_files(files):
            for line, video, label, extra in _read(file):
                video = without_extension(video) if is_text(video) else video
                if not is_text(video) or "/" in video:
                    lines.append(malformed(file, line, split, f"{video!r} is no id of a video"))
                elif label is not None and (not is_text(label) or (labels is not None and label not in known)):
                    what = f"{label!r} is no class" + (f" of {shown(labels)}" if labels is not None else "")
                    lines.append(malformed(file, line, split, what, video))
                else:
                    lines.append(Entry(video, split, label, shown(file), line, extra))
    entries, dropped = settle(lines)
    planned = plan_entries(
        name,
        root,
        entries,
        dropped,
        splits=splits,
        columns={"sampling": sampling},
        by_kind={"rate": (float(rate), None)},
        files={f"label_map_{name}.json": classes} if classes is not None else None,
    )

    bare = [entry for entry in entries if entry.label is None and entry.split in splits and entry.split != "test"]
    if not bare:
        return planned
    note = f"{name}: {len(bare):,} entries of train and val have no class, such as {bare[0].where}; their clips get none"
    counts = {**planned.counts, "entries of train and val without a class": len(bare)}
    return replace(planned, counts=counts, notes=(*planned.notes, note))


def _read(file: AnyPath) -> Iterator[tuple[int, Any, Any, str | None]]:
    """(line, id, class name or None, the sentence that was acted and its objects) of each entry; for JSON, the entry's number
    takes the line's place."""
    if not shown(file).lower().endswith(".json"):
        for number, _, (video, *label) in read_rows(file, most=2):
            yield number, video, "".join(label) or None, None
        return
    entries = read_json(file)
    if not isinstance(entries, list):
        raise ValueError(f'{shown(file)}: is no list of videos; train, val and test files have the form [{{"id": ...}}, ...]')
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            yield number, None, None, None
            continue
        name, template = entry.get("id"), entry.get("template") or entry.get("label")
        if isinstance(template, str):
            template = template.replace("[", "").replace("]", "")
        extra = as_extra({of: entry.get(of) for of in ("label", "placeholders")}) if entry.get("template") else None
        yield number, str(name) if isinstance(name, int) else name, template, extra


def _read_labels(file: AnyPath) -> list[str]:
    """Class names in the order of their indices: a JSON object of name and index, or a line each."""
    if not shown(file).lower().endswith(".json"):
        return [line.strip() for line in read_lines(file) if line.strip()]
    indices = read_json(file)
    try:
        names = sorted(indices, key=lambda label: int(indices[label]))
        if [int(indices[label]) for label in names] == list(range(len(names))):
            return names
    except (TypeError, ValueError):
        pass
    raise ValueError(f'{shown(file)}: is no file of labels; it has the form {{"Closing something": "0", ...}}, numbered from 0')
