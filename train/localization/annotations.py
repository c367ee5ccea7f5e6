"""Annotations of actions in time, in the layout of ActivityNet, which THUMOS14, FineAction and EPIC-Kitchens have for
ActionFormer, too:

{"database": {"video_test_0000004": {"subset": "Test", "duration": 33.17, "fps": 30.0, "annotations": [
    {"label": "CricketBowling", "segment": [0.2, 1.1], "label_id": 5}, ...]}, ...}}

Duration and fps may be missing where the features know them. What no truth can be made of is left out, named and counted.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAME = 1e-3  # seconds: an action that differs less at both ends from one of its class is the same
SHOWN = 3  # of a kind of fault


@dataclass(frozen=True, slots=True)
class Action:
    """Seconds."""

    begin: float
    end: float
    label: str


@dataclass(frozen=True, slots=True)
class AnnotatedVideo:
    """One of the database."""

    name: str
    split: str
    """Its subset, in small letters; "" without one."""
    duration: float | None
    """Seconds."""
    fps: float | None
    actions: Sequence[Action]


@dataclass(slots=True)
class Faults:
    """What was left out, or is not as one would expect, by kind; a line each for people."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        self.found.setdefault(kind, []).append(where)

    def lines(self) -> list[str]:
        said = []
        for kind, places in self.found.items():
            more = f" and {len(places) - SHOWN:,} others" if len(places) > SHOWN else ""
            said.append(f"{len(places):,} {kind}: {', '.join(places[:SHOWN])}{more}")
        return said


@dataclass(frozen=True, slots=True)
class Annotations:
    """Of a file."""

    place: str
    videos: Mapping[str, AnnotatedVideo]
    classes: Sequence[str]
    """By their label_id, if every action has one; else sorted."""
    faults: Faults


def read_annotations(file: Path) -> Annotations:
    """Raises ValueError for what is no such file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--annotations {file} cannot be read as JSON: {error}") from None
    database = values.get("database") if isinstance(values, dict) else None
    if not isinstance(database, dict) or not database:
        raise ValueError(
            f'--annotations {file} is no list of actions in time: it must have "database": {{VIDEO: {{"subset": ..., '
            '"annotations": [{"segment": [BEGIN, END], "label": NAME}]}}'
        )
    faults, videos, numbers = Faults(), dict[str, AnnotatedVideo](), dict[str, set[Any]]()
    for name, entry in database.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("annotations", []), list):
            faults.add("videos are no entries with annotations, and left out", str(name))
            continue
        for key in ("duration", "fps"):
            if entry.get(key) is not None and not (number(entry[key]) or 0) > 0:
                faults.add(
                    f"videos have a {key} that is no number over 0, and counts as missing", f"{name} {short(entry[key])}"
                )
                entry[key] = None
        duration, fps = (number(entry.get(key)) for key in ("duration", "fps"))
        actions = list[Action]()
        for given in entry.get("annotations", []):
            if (action := action_of(given)) is None:
                faults.add("actions have no label with a begin before its end, and are left out", f"{name} {short(given)}")
            elif any(same(action, other) for other in actions):
                faults.add("actions are there twice, and count once", f"{name} {short(given)}")
            elif action.begin >= (duration or math.inf) or action.end <= 0:
                faults.add("actions lie outside of their video, and are left out", f"{name} {short(given)} of {duration} s")
            else:
                actions.append(action)
                found = given.get("label_id")
                numbers.setdefault(action.label, set()).add(found if isinstance(found, int | None) else str(found))
        split = str(entry.get("subset") or "").lower()
        videos[name] = AnnotatedVideo(name, split, duration, fps, actions)
    if not numbers:
        raise ValueError(f"--annotations {file} has {len(database):,} videos and not one action; without truth there is no mAP")
    return Annotations(str(file), videos, classes_of(numbers, faults), faults)


def action_of(given: Any) -> Action | None:
    """None for what is none."""
    segment = given.get("segment") if isinstance(given, dict) else None
    if not isinstance(segment, list) or len(segment) != 2 or given.get("label") in (None, ""):
        return None
    begin, end = (number(each) for each in segment)
    return None if begin is None or end is None or begin >= end else Action(begin, end, str(given["label"]))


def number(value: Any) -> float | None:
    """A finite one, which may be written as text."""
    try:
        found = float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def same(action: Action, other: Action) -> bool:
    return action.label == other.label and abs(action.begin - other.begin) <= SAME and abs(action.end - other.end) <= SAME


def classes_of(numbers: Mapping[str, set[Any]], faults: Faults) -> list[str]:
    """{name: its label_ids} -> the classes in order."""
    ids = [next(iter(found)) for found in numbers.values() if len(found) == 1]
    if len(ids) == len(set(ids)) == len(numbers) and all(isinstance(each, int) for each in ids):
        return sorted(numbers, key=lambda name: next(iter(numbers[name])))
    if any(found != {None} for found in numbers.values()):
        faults.add("classes have no label_id of their own, so that all are sorted by name", ", ".join(sorted(numbers)[:SHOWN]))
    return sorted(numbers, key=str.encode)


def short(given: Any) -> str:
    if isinstance(given, dict):
        given = f"{given.get('label')} {given.get('segment')}"
    return str(given)[:60]
