"""Lists of files: those of the official VideoMAE code, so that its users can move over, and CSV files with a header.

What a line can look like is in list_formats.py. Paths are absolute or relative to the folder; without a folder, relative to
the list's own, and nothing but what the lists name is looked at. In pre-training lists two words in a path decide, as in the
official code: below `SomethingV2` frames are 12 a second and sampled at stride 2, below `AVA2.2` they are 30 a second.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as replaced

import pyarrow as pa

from dataset_builders.media.image_names import image_names, image_number
from dataset_builders.plan import Drop, SourcePlan, requests_table
from dataset_builders.sources.annotations import (
    SPLITS,
    AnyPath,
    DroppedEntry,
    Entry,
    Files,
    as_files,
    malformed,
    read_lines,
    settle,
    shown,
)
from dataset_builders.sources.frames import check_rate
from dataset_builders.sources.list_formats import COLUMNS, BadLine, Columns, Line, read_list
from dataset_builders.sources.listing import (
    VIDEOS,
    Listing,
    count_reasons,
    dropped_entries,
    dropped_files,
    existing_folder,
    list_videos,
    nothing_found,
    without_extension,
)
from pipeline.progress import Progress

SAMPLING = "stride:4"
BATCH = 256  # paths that a thread looks for at a time
OFFICIAL = {b"SomethingV2": (12.0, "stride:2"), b"AVA2.2": (30.0, SAMPLING)}  # word: frames per second, sampling


@dataclass(frozen=True, slots=True)
class Item:
    """A line of a list, and what it asks for."""

    entry: Entry
    line: Line
    root: str  # name of the folder that `path` is relative to
    path: bytes
    is_folder: bool
    rate: float | None  # frames per second of a folder of frames
    sampling: str
    first_frame: int | None = None  # place in the sorted folder
    num_images: int | None = None


def plan(
    name: str,
    *,
    folder: AnyPath | None = None,
    train: Files = None,
    val: Files = None,
    test: Files = None,
    columns: Columns | None = None,
    replace: tuple[str, str] | None = None,
    labels: AnyPath | None = None,
    rate: float | None = None,
    sampling: str | None = None,
) -> SourcePlan:
    """What the lists ask for and the disk has, in the order of the lists.

    With a `folder` everything lies in it, and the files in it that no list has are counted; "/" names no folder. Without one,
    absolute paths are relative to the root NAME, which is "/", and others to the root NAME:list, which is the first list's
    folder: so a list that lies beside its videos gives the same keys wherever both lie.

    `columns` says what the fields are; without it each list is looked at, and where two meanings are possible an error asks.
    `replace` puts a new beginning in the place of an old one in every path: ("/mnt/nas", "/data"). `labels` is a file with a
    class name for each number, a line each, from 0; without it the number is the name. `rate` is what folders of frames were
    extracted at, in frames per second. Without `sampling` it is the official code's: stride 4, and 2 for SomethingV2.

    Folders of frames are listed, to find the images that are meant; a video is not touched. Raises ValueError for a missing
    file or folder, unclear columns, or folders of frames whose rate is not known.
    """
    if rate is not None:
        check_rate(name, rate)
    if not (train or val or test):
        raise ValueError(f"source {name}: none of the lists train, val and test is given")
    if columns is not None and columns not in COLUMNS:
        raise ValueError(f"source {name}: columns {columns!r} are not known; allowed are {', '.join(map(repr, COLUMNS))}")
    bases = roots(name, folder=folder, train=train, val=val, test=test)
    classes = [line.strip() for line in read_lines(labels)] if labels is not None else None
    places = _Places(name, bases, beside=folder is None, replace=replace or ("", ""))
    dropped: list[DroppedEntry] = []
    listed: list[tuple[str, str, Line, tuple[str, bytes] | None]] = []
    for split, files in zip(SPLITS, (train, val, test), strict=True):
        for file in as_files(files):
            where, own = shown(file), _folder_of(file)
            for line in read_list(file, columns, classes):
                if isinstance(line, BadLine):
                    dropped.append(malformed(file, line.number, split, line.detail))
                else:
                    listed.append((where, line.split or split, line, places.find(own, line.path)))
    num_listed = len(listed) + len(dropped)
    wanted = {place[1] for *_, place in listed if place}
    listing = Listing([], 0)
    if not places.anywhere:
        listing = list_videos(bases[name], lambda parent, directory: os.path.join(parent, directory) in wanted)
    found = dict.fromkeys(((name, path) for path in listing.paths[: listing.num_files]), False)
    found |= dict.fromkeys(((name, path) for path in listing.paths[listing.num_files :]), True)
    # what no folder was listed for, or was entered by another name, a link to a directory, is looked for by its name
    found |= _look(bases, {place for *_, place in listed if place and place not in found})
    renamed = _with_extension(bases, {place for *_, place in listed if place and place not in found}, name, listing)
    found |= dict.fromkeys(renamed.values(), False)
    lines: dict[Entry, tuple[Line, tuple[str, bytes] | None]] = {}
    for where, split, line, place in listed:
        place = renamed.get(place, place) if place else None
        identity = (places.identity(place) if place else line.path) + ("" if line.start is None else f" {line.start}")
        lines[Entry(identity, split, line.label, where, line.number)] = line, place
    kept, repeated = settle(lines)
    items: list[Item] = []
    missing: list[DroppedEntry] = []

    def miss(entry: Entry, reason: Drop, problem: str) -> None:
        missing.append(DroppedEntry(entry.id, entry.split, reason, f"{entry.where} {problem}"))

    for entry in kept:
        line, place = lines[entry]
        if place is None:
            where = shown(bases[name])
            miss(entry, Drop.NO_FILE, f"{line.path!r} is not below {where}; `replace` can change how paths begin")
        elif (is_folder := found.get(place)) is None:
            miss(entry, Drop.NO_FILE, "lists it")
        elif not is_folder and (line.total or -1) > 0:
            miss(entry, Drop.MALFORMED, f"wants {line.total} images, but it is a file; a video has the total -1")
        elif is_folder and line.total == -1:
            told = "wants a video, but it is a folder; a folder of frames has the total of its images"
            miss(entry, Drop.MALFORMED, told)
        else:
            items.append(Item(entry, line, *place, is_folder, *_how(name, place[1], is_folder, line, rate, sampling)))
    items, unusable = _find_images(bases, items)
    dropped += repeated + missing + unusable
    own_columns = ("root", "path", "rate", "first_frame", "num_images", "sampling")
    requests = requests_table(
        {
            "source": name,
            **{column: [getattr(item, column) for item in items] for column in own_columns},
            "kind": ["frames" if item.is_folder else "video" for item in items],
            "split": [item.entry.split for item in items],
            "label": [item.entry.label for item in items],
            "extra": [item.line.extra for item in items],
            "seconds": [item.num_images / item.rate if item.num_images and item.rate else None for item in items],
        },
        len(items),
    )
    taken = {place[1] for _, place in lines.values() if place}
    unlisted = [path for path in listing.paths if path not in taken]
    tables = [
        dropped_entries(name, [replaced(entry, id=entry.id and shown(entry.id)) for entry in dropped]),
        dropped_files(name, unlisted, Drop.NOT_LISTED, "no list has it"),
    ]
    counts = {"listed": num_listed, "found": len(items), **count_reasons(tables)}
    if renamed:
        counts["files with another extension than listed, or one at all"] = len(renamed)
    notes = []
    if not items and kept:
        line, place = lines[kept[0]]
        root, path = place or (name, os.fsencode(line.path))
        looked_for = f"{shown(path)!r}, with any extension,"
        notes.append(nothing_found(name, bases[root], listing.paths, kept[0].where, looked_for))
        if dropped[0].reason != Drop.NO_FILE or place is None:
            notes[0] = f"{name}: nothing of what the lists have is usable; the first line: {dropped[0].detail}"
        if places.anywhere and any(place and place[0] != name for _, place in lines.values()):
            notes.append(f"{name}: relative paths are taken from the list's own folder; --list-root names another")
    elif not items and dropped:
        notes.append(f"{name}: its lists have nothing that can be read: {dropped[0].detail}")
    return SourcePlan(requests=requests, dropped=pa.concat_tables(tables), counts=counts, notes=tuple(notes))


def roots(
    name: str, *, folder: AnyPath | None = None, train: Files = None, val: Files = None, test: Files = None, **others: object
) -> dict[str, bytes]:
    """Where the paths of a plan's requests lie, by the names of these folders; `others` are the plan's, too."""
    if folder is not None:
        return {name: existing_folder(folder)}
    first = next((file for files in (train, val, test) for file in as_files(files)), b"")
    own = _folder_of(first)
    return {name: b"/", f"{name}:list": own} if own != b"/" else {name: b"/"}


def searched(name: str, folder: AnyPath | None) -> dict[str, bytes]:
    """The folder whose files are looked through, if one is."""
    given = {} if folder is None else {name: existing_folder(folder)}
    return {root: path for root, path in given.items() if not os.path.samefile(path, b"/")}


def _folder_of(file: AnyPath) -> bytes:
    """Of a list; a real one, so that its `..` is what the system takes it for."""
    return os.path.realpath(os.path.dirname(os.path.abspath(os.fsencode(file))))


class _Places:
    """(folder of a list, path in it) -> (root, path relative to that), and what tells the video from others."""

    def __init__(self, name: str, bases: Mapping[str, bytes], beside: bool, replace: tuple[str, str]) -> None:
        """`beside`: relative paths begin in the list's own folder."""
        self._name, self._bases, self._beside, self._replace = name, bases, beside, replace
        self.anywhere = os.path.samefile(bases[name], b"/")
        self._identities: dict[bytes, str] = {}
        self._real: dict[bytes, bytes] = {}  # the folders of videos

    def find(self, own: bytes, text: str) -> tuple[str, bytes] | None:
        """None in place of (root, path) for a path that does not lie in the folder that was given. A backslash is a slash,
        unless there is a file with it in its name."""
        old, new = self._replace
        given = os.fsencode(new + text.removeprefix(old) if text.startswith(old) else text)
        in_list = self._beside and not given.startswith(b"/")
        base = own if in_list else self._bases[self._name]
        if b"\\" in given and not os.path.lexists(os.path.join(base, given)):
            given = given.replace(b"\\", b"/")
        absolute = b"/" + os.path.normpath(os.path.join(base, given)).lstrip(b"/")  # of two leading slashes both would stay
        near = f"{self._name}:list"
        if in_list and near in self._bases:
            return near, os.path.relpath(absolute, self._bases[near])
        prefix = self._bases[self._name].rstrip(b"/") + b"/"
        return (self._name, absolute[len(prefix) :]) if absolute.startswith(prefix) and absolute != prefix else None

    def identity(self, place: tuple[str, bytes]) -> str:
        """A list may name a video by an absolute path and another by a relative one: then the first spelling counts."""
        root, path = place
        if not self.anywhere:
            return os.fsdecode(path)
        folder, name = os.path.split(os.path.normpath(os.path.join(self._bases[root], path)))
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return self._identities.setdefault(os.path.join(self._real[folder], name), os.fsdecode(path))


def _with_extension(
    bases: Mapping[str, bytes], missing: set[tuple[str, bytes]], name: str, listing: Listing
) -> dict[tuple[str, bytes], tuple[str, bytes]]:
    """Places that are not there -> the videos that have another extension, or one at all, beside them; an id, a name without a
    folder, is found anywhere in the listed folder. Of several the first counts, in the order of their bytes."""
    of_folder: dict[tuple[str, bytes], list[bytes]] = {}
    for root, path in sorted(missing):
        of_folder.setdefault((root, os.path.dirname(path)), []).append(os.path.basename(path))
    anywhere: dict[bytes, bytes] = {}
    for path in listing.paths[: listing.num_files] if missing else ():
        if path.lower().endswith(VIDEOS):
            anywhere.setdefault(os.path.splitext(os.path.basename(path))[0], path)
    found = {}
    for (root, folder), names in of_folder.items():
        with suppress(OSError):
            beside = sorted(file for file in os.listdir(os.path.join(bases[root], folder)) if file.lower().endswith(VIDEOS))
            by_stem = {os.path.splitext(file)[0]: os.path.join(folder, file) for file in reversed(beside)}
            if root == name and not folder:
                by_stem = anywhere | by_stem
            for file in names:
                if other := by_stem.get(file) or by_stem.get(os.fsencode(without_extension(os.fsdecode(file)))):
                    found[root, os.path.join(folder, file)] = root, other
    return found


def _look(bases: Mapping[str, bytes], places: set[tuple[str, bytes]]) -> dict[tuple[str, bytes], bool]:
    """Whether each place that is there is a folder; those that are not are left out. 16 at a time, as network file systems
    wait; in batches, as handing a path to a thread takes ten times what a local disk takes."""
    ordered = sorted(places)

    def look(batch: list[tuple[str, bytes]]) -> dict[tuple[str, bytes], bool]:
        found = {}
        for root, path in batch:
            whole = os.path.join(bases[root], path)
            if os.path.isfile(whole):
                found[root, path] = False
            elif os.path.isdir(whole):
                found[root, path] = True
        return found

    batches = [ordered[first : first + BATCH] for first in range(0, len(ordered), BATCH)]
    with ThreadPoolExecutor(16) as pool:
        return {place: is_folder for found in pool.map(look, batches) for place, is_folder in found.items()}


def _how(
    name: str, path: bytes, is_folder: bool, line: Line, rate: float | None, sampling: str | None
) -> tuple[float | None, str]:
    """(frames per second of a folder of frames, sampling); raises ValueError if the rate is not known."""
    if line.total is not None and line.label is None:  # a pre-training list
        for word, (official_rate, official_sampling) in OFFICIAL.items():
            if word in path:
                return (rate or official_rate) if is_folder else None, sampling or official_sampling
    if is_folder and rate is None:
        raise ValueError(
            f"source {name}: {shown(path)} is a folder of frames, and no file says how many a second they were extracted at; "
            "give `rate`, in frames per second"
        )
    return rate if is_folder else None, sampling or SAMPLING


def _find_images(bases: Mapping[str, bytes], items: list[Item]) -> tuple[list[Item], list[DroppedEntry]]:
    """Put places in the sorted folder for the numbers in image names; what is not all there is dropped.

    Each folder is read once, 16 at a time, because on a network file system reading waits.
    """
    of_folder: dict[bytes, list[int]] = {}
    for place, item in enumerate(items):
        if item.is_folder:
            of_folder.setdefault(os.path.join(bases[item.root], item.path), []).append(place)

    def find(folder: bytes) -> list[tuple[int, Item | str]]:
        try:
            numbers = [image_number(image) for image in image_names(os.listdir(folder))]
        except OSError as error:
            return [(place, f"cannot be read: {error.strerror}") for place in of_folder[folder]]
        place_of = {number: place for place, number in reversed([*enumerate(numbers)])}
        return [(place, _locate(items[place], numbers, place_of)) for place in of_folder[folder]]

    found: list[Item | str] = list(items)
    with ThreadPoolExecutor(16) as pool:
        for results in Progress(pool.map(find, of_folder), total=len(of_folder), unit="folder", desc="looking"):
            for place, result in results:
                found[place] = result
    dropped = [
        DroppedEntry(item.entry.id, item.entry.split, Drop.NO_FILE, f"{item.entry.where}: {result}")
        for item, result in zip(items, found, strict=True)
        if isinstance(result, str)
    ]
    return [item for item in found if isinstance(item, Item)], dropped


def _locate(item: Item, numbers: list[int | None], place_of: dict[int | None, int]) -> Item | str:
    """An item and the numbers of its folder's images -> the item with places, or what is missing."""
    start, total = item.line.start, item.line.total
    if not numbers:
        return "the folder holds no images"
    if start is None:
        if total is not None and total > len(numbers):
            return f"{total} images are wanted, the folder holds {len(numbers)}"
        return replaced(item, first_frame=0, num_images=total or len(numbers))
    assert total is not None
    first = place_of.get(start, len(numbers))
    if numbers[first : first + total] != [*range(start, start + total)]:
        there = sum(number in place_of for number in range(start, start + total))
        return f"the images {start} to {start + total - 1} are wanted, and {there} of these {total} are there"
    return replaced(item, first_frame=first, num_images=total)
