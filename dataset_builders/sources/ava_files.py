"""The annotation files of AVA and AVA-Kinetics: boxes with what the people in them do, classes, seconds to leave out.

`ava_train_v2.2.csv`, `ava_val_v2.2.csv`: a row for each box and action, `movie,second,x1,y1,x2,y2,action,person`; rows of one
second with the same box are one person. `kinetics_train_v1.0.csv` and its like have no person, and rows `id,second` alone for
seconds in which nobody is. `ava_val_excluded_timestamps_v2.2.csv`: `movie,second`. Action lists are text protocol buffers,
`label { name: "stand" label_id: 12 }` or `item { name: "stand" id: 12 }`, or CSV, `12,stand`.
"""

import math
from dataclasses import dataclass, field

from dataset_builders.plan import Drop
from dataset_builders.sources.annotations import (
    AnyPath,
    DroppedEntry,
    Files,
    as_files,
    is_text,
    malformed,
    read_text,
    shown,
)
from dataset_builders.sources.boxes import LATEST, BoxCheck, Sides, numbers
from dataset_builders.sources.rows import read_rows
from pipeline.storage.action_list import parse_actions
from pipeline.storage.key_frames import NONE, Action, stamp

ROW = "movie,second,x1,y1,x2,y2,action,person"

Image = tuple[str, float]
"""A movie and a second of it."""


@dataclass(slots=True)
class Person:
    """In one image."""

    box: Sides
    number: int
    actions: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Annotated:
    """What the files of one split say: the people in each image, in the order of the files."""

    people: dict[Image, list[Person]] = field(default_factory=dict)
    where: dict[Image, str] = field(default_factory=dict)
    """The line that names an image first."""


def image_name(image: Image) -> str:
    """As the official code calls an image: "-5KQ66BBWC4,0902"."""
    movie, second = image
    return f"{movie},{stamp(second)}"


def image_of(name: str) -> Image:
    """The other way round."""
    movie, _, second = name.rpartition(",")
    return movie, float(second)


def read_annotations(files: Files, split: str, actions: dict[int, str], check: BoxCheck) -> Annotated:
    """The people in the files of a split. What is wrong with rows is said in `check.dropped`, row by row."""
    found, persons = Annotated(), dict[tuple[Image, tuple[str, ...]], Person | None]()
    for file in as_files(files):
        for line, text, (movie, *values) in read_rows(file):
            values = values if any(values[1:]) else values[:1]  # of a second without people some have empty columns
            given = numbers(values[:6]) if is_text(movie) and "/" not in movie and len(values) in (1, 6, 7) else None
            if given is None or not 0 <= given[0] < LATEST:
                if not (line == 1 and numbers(values[:1]) is None):  # a header is none
                    check.dropped.append(malformed(file, line, split, f"{text!r} is no row {ROW}"))
                continue
            image = movie, given[0]
            if image not in found.people:
                found.people[image], found.where[image] = [], f"{shown(file)}:{line}"
            if len(values) == 1:
                continue
            (number,) = numbers(["".join(values[6:]) or str(NONE)]) or [math.nan]
            if given[5] not in actions or not (abs(number) < 2**31 and number.is_integer()):
                named = f"action {values[5]} is not in the action list of {len(actions)}"
                detail = named if given[5] not in actions else f"person {values[6]} is no number of one"
                check.dropped.append(malformed(file, line, split, detail, image_name(image)))
                continue
            key = image, tuple(values[1:5])
            if key not in persons:
                box = check.taken((given[1], given[2], given[3], given[4]), file, line, split, image_name(image))
                persons[key] = Person(box, int(number)) if box else None
                if person := persons[key]:
                    found.people[image].append(person)
            if person := persons[key]:
                person.actions.add(int(given[5]))
    return found


def read_actions(file: AnyPath, evaluated: AnyPath | None = None) -> tuple[Action, ...]:
    """The classes of an action list, in the order of their ids; those of `evaluated`, a second one, count in the benchmark's
    mean, by default all. Raises ValueError for what is no action list."""
    names = parse_actions(read_text(file), shown(file))
    counts = parse_actions(read_text(evaluated), shown(evaluated)) if evaluated is not None else names
    if strange := sorted(set(counts) - set(names)):
        raise ValueError(f"{shown(evaluated or file)}: action {strange[0]} is not in {shown(file)}")
    return tuple(Action(number, name, number in counts) for number, name in sorted(names.items()))


def read_excluded(files: Files, check: BoxCheck) -> dict[Image, str]:
    """Images that official lists leave out -> the line that says so."""
    found: dict[Image, str] = {}
    for file in as_files(files):
        for line, text, (movie, *values) in read_rows(file):
            if movie and len(values) == 1 and (second := numbers(values)) and 0 <= second[0] < LATEST:
                found[movie, second[0]] = f"{shown(file)}:{line}"
            else:
                check.dropped.append(malformed(file, line, "val", f"{text!r} is no row movie,second"))
    return found


def left_out(annotated: Annotated, excluded: dict[Image, str], split: str) -> list[DroppedEntry]:
    """Takes the excluded images out of those that are annotated."""
    gone = [image for image in annotated.people if image in excluded]
    for image in gone:
        del annotated.people[image]
    return [DroppedEntry(image_name(image), split, Drop.EXCLUDED, f"{excluded[image]} leaves it out") for image in gone]
