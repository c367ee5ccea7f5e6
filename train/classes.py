"""The classes that a stage tells apart: whether a dataset has them, and which rows of an earlier head are theirs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.weights import Weights
from pipeline.labels import Labels, read_label_map
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.settings import flag
from pipeline.storage import files
from pipeline.storage.manifest import Manifest

K710 = 710  # classes of Kinetics-400, -600 and -700 together, whose official weights name none


@dataclass(frozen=True, slots=True)
class Head:
    """What of an earlier classifier's head goes into another one."""

    fits: bool
    said: str
    """For people."""
    rows: Sequence[int] | None = None
    """Of each class its row there; None where they are the same."""


def check_classes(labels: Labels, manifest: Manifest, split: str) -> tuple[np.ndarray, list[str]]:
    """Which classes the clips of a split have, int64, ascending, and what is to be said of the others.

    Raises ValueError if there is nothing to tell apart, or clips have several classes each.
    """
    where = f"split {split!r} of {manifest.place}"
    if labels.kind == "none":
        raise ValueError(f"{manifest.place} has no classes: build it with labels, such as --labels-from-folder")
    if labels.kind == "multi":
        raise ValueError(f"{manifest.place} has clips with a list of labels: fine-tuning takes one a clip; build it with one")
    found = labels.of(rows_of_split(manifest, checked_split(split)))
    seen = np.unique(found[found >= 0])
    if len(seen) < 2:
        told = f"all of class {labels.names[seen[0]]!r}" if len(seen) else "without a label"
        raise ValueError(f"the clips of {where} are {told}: at least two classes are needed to tell apart")
    lacking = int((found < 0).sum())
    notices = [f"{lacking:,} of {len(found):,} clips of {where} have no label: nothing is learned from them"] if lacking else []
    return seen, notices


def labelled_rows(labels: Labels, manifest: Manifest, split: str, seen: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Rows of a split to evaluate on, those with a label, and what is to be said of the others and of labels that were not
    `seen` in training.

    Raises ValueError if there is none.
    """
    rows = rows_of_split(manifest, checked_split(split))
    found = labels.of(rows)
    known, where, notices = found >= 0, f"split {split!r} of {manifest.place}", []
    if not known.any():
        raise ValueError(f"{flag('evaluate_split')}: no clip of {where} has a label; give another split")
    if lacking := int((~known).sum()):
        notices.append(f"{lacking:,} of {len(rows):,} clips of {where} have no label: they are not evaluated")
    if (new := known & ~np.isin(found, seen)).any():
        example = labels.names[found[new][0]]
        notices.append(
            f"{int(new.sum()):,} of {len(rows):,} clips of {where} have a label that no clip of the training has, such as "
            f"{example!r}: they count as wrong"
        )
    return rows[known], notices


def head_of(weights: Weights, names: Sequence[str] | None, num_classes: int, manifest: Manifest | None) -> Head:
    """What a classifier of so many classes takes of the head of `weights`, by the names of the classes, where both have them.

    The 710 classes of official weights have the names of the dataset's label_map_k710.json, or those of its classes are where
    its label_710toN.json says, as in the official code. Raises ValueError for such a file that is none.
    """
    theirs, theirs_named = weights.num_classes, weights.labels
    home = (files.origin(manifest.root) or str(manifest.root)) if manifest else ""
    by = "by name"
    if theirs_named is None and theirs == K710 and names is not None:
        if files.exists(file := f"{home}/label_map_k710.json"):
            theirs_named, by = read_label_map(file), "by the names in label_map_k710.json"
        elif files.exists(file := f"{home}/label_710to{num_classes}.json"):
            return Head(True, f"head: of its 710 classes those of {file.rpartition('/')[2]}", read_places(file, num_classes))
    if theirs_named is not None and names is not None:
        place = {name: number for number, name in enumerate(theirs_named)}
        if missing := [name for name in names if name not in place]:
            lacking = f"{len(missing)} of the {num_classes} classes are none of its {theirs}, such as {missing[0]!r}"
            return Head(False, f"head: begins anew: {lacking}")
        rows = [place[name] for name in names]
        if rows == list(range(theirs)):
            return Head(True, f"head: its {theirs} classes are the dataset's")
        return Head(True, f"head: {num_classes} of its {theirs} classes, {by}", rows)
    if theirs == num_classes:
        return Head(True, f"head: its {theirs} classes, which have no names, are taken to be the dataset's in their order")
    hint = "; with label_map_k710.json in the dataset they would be found by name" if theirs == K710 else ""
    return Head(False, f"head: begins anew: it has {theirs} classes without names, the dataset {num_classes}{hint}")


def read_places(file: str, num_classes: int) -> list[int]:
    """A label_710toN.json. Raises ValueError for anything but so many numbers below 710."""
    try:
        found = json.loads(files.read(file))
    except ValueError as error:
        raise ValueError(f"{file} is no list of places: {error}") from error
    if not (isinstance(found, list) and len(found) == num_classes and all(number in range(K710) for number in found)):
        raise ValueError(f"{file} must be a list of {num_classes} whole numbers below {K710}")
    return found
