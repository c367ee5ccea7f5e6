"""Labels as numbers: the classes of a dataset in their order, and which of them clips have.

A manifest's column `label` holds the name of a class, or of a clip that shows several a JSON list of names.
"""

import json
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline.sampling.splits import clips_of_split
from pipeline.storage import files
from pipeline.storage.manifest import Manifest

MOST_CLASSES = 1 << 16  # more different labels are captions, which are no classes
KINETICS = ("k710", "k700", "k600", "k400")  # how the builder calls its maps, whatever the source's name is


class Labels:
    """`kind`: "none" (or more than MOST_CLASSES different ones), "single", or "multi" where some clip has a list of them;
    `names` (C,) of the classes, in order; `unknown` clips of the split have a label that a given map lacks (`example`)."""

    def __init__(self, manifest: Manifest, split: str, names: Sequence[str] | str | os.PathLike[str] | None = None) -> None:
        """`names` are the label map, or a JSON file with it; by default the dataset's own, see `label_map`. Reads one column.

        Raises ValueError for what is no label map.
        """
        column = manifest.column("label").combine_chunks()
        codes: np.ndarray = column.indices.fill_null(-1).to_numpy()
        texts = column.dictionary.to_pylist()
        several = [_listed(text) for text in texts]
        there = np.unique(codes[codes >= 0]).tolist()
        of_code = [[text] if listed is None else listed for text, listed in zip(texts, several, strict=True)]
        classes = {name for code in there for name in of_code[code]}
        self.kind: Literal["none", "single", "multi"] = "none"
        if 0 < len(classes) <= MOST_CLASSES:
            self.kind = "multi" if any(several[code] is not None for code in there) else "single"
        if names is None:
            self.names = label_map(manifest, classes) if self.kind != "none" else []
        else:
            self.names = read_label_map(names) if isinstance(names, str | os.PathLike) else _checked(list(names), "label_map")
        place = {name: index for index, name in enumerate(self.names)}
        self._codes = codes
        self._known = [[place[name] for name in named if name in place] for named in of_code]
        self._single = np.array([*(known[0] if known else -1 for known in self._known), -1], np.int64)  # the last: without one
        taken = clips_of_split(manifest, split)
        used, counts = np.unique(codes if taken is None else codes[taken], return_counts=True)
        self.unknown, self.example = 0, ""
        for code, number in zip(used.tolist(), counts.tolist(), strict=True) if self.kind != "none" else ():
            if lacking := [name for name in of_code[code] if name not in place] if code >= 0 else []:
                self.unknown, self.example = self.unknown + number, self.example or lacking[0]

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Rows (B,) of the manifest -> int64 (B,), -1 without a label or for one that the map lacks; "multi": bool (B, C)."""
        codes = self._codes[rows]
        if self.kind == "none":
            return np.full(len(rows), -1, np.int64)
        if self.kind == "single":
            return self._single[codes]
        found = np.zeros((len(rows), len(self.names)), np.bool_)
        for clip, code in enumerate(codes.tolist()):
            if code >= 0:
                found[clip, self._known[code]] = True
        return found


def label_map(manifest: Manifest, classes: set[str]) -> list[str]:
    """The classes of a dataset: first those of the official maps that its builder wrote, label_map_NAME.json, by the names of
    their sources and in the maps' order; then those that no map has, sorted by their bytes."""
    home = files.origin(manifest.root) or os.fspath(manifest.root)
    found = [f"{home}/label_map_{name}.json" for name in dict.fromkeys([*sorted(manifest.sources), *KINETICS])]
    official = [name for file in found if files.exists(file) for name in read_label_map(file)]
    return list(dict.fromkeys([*official, *sorted(classes, key=str.encode)]))


def read_label_map(file: str | os.PathLike[str]) -> list[str]:
    """Names of classes in order, of a JSON file or one behind a URL. Raises ValueError for anything else, and OSError."""
    try:
        return _checked(json.loads(files.read(file)), os.fspath(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(file)} is no label map: {error}") from error


def _checked(names: object, what: str) -> list[str]:
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{what} is no label map: a list of at least one class name is needed")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{what} is no label map: it names {twice!r} twice")
    return names


def _listed(text: str) -> list[str] | None:
    """The names in a JSON list; None for a name."""
    if not text.startswith("["):
        return None
    try:
        names = json.loads(text)
    except ValueError:
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
