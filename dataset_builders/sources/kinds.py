"""A source of a build: its name, its kind, and the settings that its `plan` takes. From TOML or from flags.

A kind is a module with a function `plan(name, *, folder=..., ...) -> SourcePlan`; its keyword arguments are the settings that
are allowed, so the error for another one can list them.
"""

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

from dataset_builders.plan import SourcePlan, together
from dataset_builders.sources import (
    ava,
    captions,
    folder,
    frames,
    indexed_tars,
    instagram,
    key_frames,
    kinetics,
    lists,
    something,
    ucf101,
    webvid,
)
from dataset_builders.sources.annotations import SPLITS, AnyPath, Files
from dataset_builders.sources.kinetics_files import Version, kinetics_roots
from pipeline.storage.output_folder import lies_in
from pipeline.storage.remote import is_url

KINDS: dict[str, Callable[..., SourcePlan]] = {
    "ava": ava.plan,
    "folder": folder.plan,
    "frames": frames.plan,
    "hmdb51": ucf101.plan_hmdb51,
    "index": indexed_tars.plan,
    "instagram": instagram.plan,
    "kinetics": kinetics.plan,
    "lists": lists.plan,
    "msrvtt": captions.plan_msrvtt,
    "msvd": captions.plan_msvd,
    "something": something.plan,
    "ucf101": ucf101.plan_ucf101,
    "webvid": webvid.plan,
    "ava-boxes": key_frames.plan_ava,
    "ava-kinetics": key_frames.plan_kinetics,
}
DETECTION = ("ava-boxes", "ava-kinetics")  # kinds of key frames with boxes, which build_detection.py builds
PATHS = (AnyPath, AnyPath | None, Files)  # what parameters that are paths are annotated with
VERSIONS = ("400", "600", "700")  # of Kinetics: each has its own lists and folder
# kinds that have no lists to say which split a file is in, and what they look at: another folder may be given for each split
PLACES = {"folder": "folder", "frames": "folder", "index": "pattern"}
ACTIONS = {
    "actions": (
        "ava_action_list_v2.2.pbtxt",
        "ava_action_list_v2.[0-9].pbtxt",
        "ava_action_list*.pbtxt",
        "ava_action_list*.csv",
    ),
    "evaluated": ("ava_action_list*activitynet_2019.pbtxt", "ava_action_list*activitynet*.pbtxt"),
}
# where the official files are, below a folder that is given as `lists`; the first pattern that finds any counts
OFFICIAL: dict[str, dict[str, tuple[str, ...]]] = {
    "ava": {"train": ("ava_train_v2*.csv",), "file_names": ("ava_file_names_trainval*.txt",)},
    "ava-boxes": {
        "train": ("ava_train_v2.2.csv", "ava_train_v2*.csv"),
        "val": ("ava_val_v2.2.csv", "ava_val_v2*.csv"),
        "excluded": ("ava_*_excluded_timestamps_v2.2.csv", "ava_*_excluded_timestamps*.csv"),
        **ACTIONS,
    },
    "ava-kinetics": {
        "train": ("kinetics_train_v1*.csv",),
        "val": ("kinetics_val_v1*.csv",),
        "test": ("kinetics_test_v1*.csv",),
        **ACTIONS,
    },
    "hmdb51": {"annotations": (".",)},
    "msrvtt": {
        "annotations": ("*videodatainfo*.json", "*.json"),
        "train": ("*train*9k*.csv", "*train*.csv"),
        "val": ("*val*.csv",),
        "test": ("*JSFUSION*test*.csv", "*test*.csv"),
    },
    "msvd": {
        "annotations": ("*escriptions.txt", "*corpus*.csv"),
        "train": ("*train*.txt",),
        "val": ("*val*.txt",),
        "test": ("*test*.txt",),
    },
    "something": {
        "train": ("*train.json", "*train*.json", "*train*.csv"),
        "val": ("*validation.json", "*validation*.json", "*validation*.csv"),
        "test": ("*test.json", "*test*.json", "*test*.csv"),
        "labels": ("*labels.json", "*labels*.json", "*labels*.csv"),
    },
    "ucf101": {"annotations": (".",)},
    "webvid": {"train": ("*train*.csv",), "val": ("*val*.csv",)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source of a build."""

    name: str
    kind: str
    settings: Mapping[str, Any]  # keyword arguments of the kind's `plan`
    others: Mapping[str, Any] = field(default_factory=dict)  # of the kinds in PLACES: the places of other splits

    def plan(self) -> SourcePlan:
        """Read its annotations, list its folders. Raises ValueError for what cannot be read."""
        plan = KINDS[self.kind]
        if not self.others:
            return plan(self.name, **self.settings)
        place = PLACES[self.kind]
        parts = {self.name: plan(self.name, **self.settings)} if place in self.settings else {}
        for split, other in self.others.items():
            parts[f"{self.name}:{split}"] = plan(self.name, **{**self.settings, place: other, "split": split})
        return together(parts)

    def roots(self) -> dict[str, bytes]:
        """Where the folders lie that the paths of its requests are relative to, by their names."""
        if self.kind == "kinetics":
            return kinetics_roots(self.settings["versions"])
        if self.kind == "lists":
            return lists.roots(self.name, **self.settings)
        place = PLACES.get(self.kind, "folder")
        places = {self.name: self.settings[place]} if place in self.settings else {}
        places |= {f"{self.name}:{split}": other for split, other in self.others.items()}
        if self.kind == "index":
            return {root: indexed_tars.root(pattern) for root, pattern in places.items()}
        return {root: os.path.abspath(os.fsencode(folder)) for root, folder in places.items()}

    def searched(self) -> dict[str, bytes]:
        """Those of its `roots` that are looked through, whatever the annotations name."""
        if self.kind == "index":
            return {}
        if self.kind == "lists":
            return lists.searched(self.name, self.settings.get("folder"))
        return self.roots()

    def agreed(self) -> dict[str, Any]:
        """Kind and settings that must not change between builds of one dataset: all but where things lie."""
        plain = {name: value for name, value in self.settings.items() if not _is_path(self.kind, name) and name != "versions"}
        return {"kind": self.kind, **plain}


def make_source(name: str, kind: str, table: Mapping[str, Any], base: Path, splits: Collection[str], where: str) -> Source:
    """A table of settings (TOML's types) -> Source; paths in it are relative to `base`, `where` is for errors.

    `lists` may stand for the annotation files: the official ones are found below that folder. `splits` is the default of kinds
    that have them. Raises ValueError for a kind or setting that does not exist, is missing or has a wrong type.
    """
    if kind not in KINDS:
        raise ValueError(f"{where}: kind {kind!r} is not known; allowed are {', '.join(KINDS)}")
    settings = dict(table)
    if kind == "kinetics":
        settings = _kinetics(settings, base, where)
    elif lists_folder := settings.pop("lists", None):
        settings = _official_lists(kind, _resolve(lists_folder, base), where) | settings
    others = _other_splits(kind, settings, where) if kind in PLACES else {}
    parameters = _parameters(kind)
    allowed = [key for key in parameters if key != "name"]
    if unknown := sorted(set(settings) - set(allowed)):
        allowed = [*allowed, *SPLITS] if kind in PLACES else allowed
        allowed = [*allowed, "lists"] if kind in OFFICIAL else allowed
        allowed = [*VERSIONS, *(key for key in allowed if key != "versions")] if kind == "kinetics" else allowed
        raise ValueError(f"{where}: {', '.join(unknown)} is not known to kind {kind!r}; allowed are {', '.join(allowed)}")
    if "splits" in parameters and "splits" not in settings:
        settings["splits"] = tuple(splits)
    missing = [key for key in allowed if parameters[key].default is inspect.Parameter.empty and key not in settings]
    if missing and not (others and missing == [PLACES[kind]]):
        raise ValueError(f"{where}: kind {kind!r} needs {', '.join(missing)}")
    if type(seed := settings.get("seed", 0)) is not int:
        raise ValueError(f"{where}: seed {seed!r} must be a whole number")
    for table, key, value in [(settings, *item) for item in settings.items()] + [(others, *item) for item in others.items()]:
        if table is others or (_is_path(kind, key) and value is not None):
            table[key] = _resolve(value, base)
            if kind != "index" and isinstance(value, str | bytes | os.PathLike) and is_url(os.fsdecode(value)):
                told = f"{where}: {key} {os.fsdecode(value)!r} is a URL, and only tars are read from one (--index)"
                raise ValueError(f"{told}; mount the bucket, or copy the files")
        elif isinstance(value, list):
            table[key] = tuple(value)
    if others and kind != "index":
        folders = [*others.values(), *([settings[PLACES[kind]]] if PLACES[kind] in settings else [])]
        for inner, outer in permutations(folders, 2):
            if lies_in(inner, outer):
                told = f"{where}: {inner} lies in {outer}, and its files would be asked for twice"
                raise ValueError(f"{told}; give folders apart")
    return Source(name=name, kind=kind, settings=settings, others=others)


def _other_splits(kind: str, settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Take the places of single splits out of the settings; that of `train` is what the kind itself is given."""
    place = PLACES[kind]
    others = {split: settings.pop(split) for split in SPLITS if split in settings}
    if "train" in others and settings.get("split", "train") == "train":
        if place in settings:
            raise ValueError(f"{where}: {place} and train are both for the split train; another {place} is another source")
        settings[place] = others.pop("train")
    return others


def _kinetics(settings: dict[str, Any], base: Path, where: str) -> dict[str, Any]:
    versions = {}
    for version in VERSIONS:
        if (entry := settings.pop(version, None)) is None:
            continue
        if not isinstance(entry, Mapping) or set(entry) - {"folder", "lists", "classes"} or "lists" not in entry:
            wanted = "{folder = 'VIDEOS', lists = 'FILE OR FOLDER', classes = 'FILE'}, the last one optional"
            raise ValueError(f"{where}: {version} is {entry!r}; wanted is {wanted}, and several folders or lists as a list")
        paths = {key: _resolve(value, base) for key, value in entry.items()}
        lists = paths.pop("lists")
        versions[int(version)] = Version(annotations=[lists] if isinstance(lists, str) else lists, **paths)
    if not versions:
        raise ValueError(f"{where}: kind 'kinetics' needs at least one of {', '.join(VERSIONS)}")
    return {**settings, "versions": versions}


def _official_lists(kind: str, folder: str, where: str) -> dict[str, Any]:
    if kind not in OFFICIAL:
        return {"lists": folder}  # refused with the settings that are allowed
    if not os.path.isdir(folder):
        names = [name for name in OFFICIAL[kind] if name != "labels"]
        return {names[0]: folder}
    found = {}
    for setting, patterns in OFFICIAL[kind].items():
        for pattern in patterns:
            files = [folder] if pattern == "." else sorted(str(file) for file in Path(folder).glob(pattern))
            if files:
                found[setting] = files[0] if len(files) == 1 else files
                break
    if not found:
        wanted = ", ".join(pattern for patterns in OFFICIAL[kind].values() for pattern in patterns)
        raise ValueError(f"{where}: {folder} holds none of the lists of {kind} ({wanted})")
    return found


def _parameters(kind: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(KINDS[kind]).parameters


def _is_path(kind: str, key: str) -> bool:
    return key in _parameters(kind) and _parameters(kind)[key].annotation in PATHS


def _resolve(value: Any, base: Path) -> Any:
    """Relative to `base`; a list of paths one by one. Of text, so that braces and bytes that are not UTF-8 stay."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(_resolve(one, base) for one in value)
    text = os.fsdecode(value)
    return text if is_url(text) else os.path.join(os.fspath(base), os.path.expanduser(text))
