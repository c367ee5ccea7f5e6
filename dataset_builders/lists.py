"""Lists of files: those of the official VideoMAE code, so that its users can move over, and CSV files with a header.

What a line can look like is in list_formats.py. Paths are absolute or relative to the folder. In pre-training lists two words
in a path decide, as in the official code: below `SomethingV2` frames are 12 a second and sampled at stride 2, below `AVA2.2`
they are 30 a second.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import replace as replaced

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from dataset_builders.annotations import (
    SPLITS,
    AnyPath,
    DroppedEntry,
    Entry,
    Files,
    as_files,
    read_lines,
    settle,
    shown,
)
from dataset_builders.frames import check_rate
from dataset_builders.image_names import image_names, image_number
from dataset_builders.list_formats import COLUMNS, BadLine, Columns, Line, read_list
from dataset_builders.listing import count_reasons, dropped_entries, dropped_files, existing_folder, list_videos
from dataset_builders.plan import Drop, SourcePlan, requests_table

SAMPLING = "stride:4"
OFFICIAL = {b"SomethingV2": (12.0, "stride:2"), b"AVA2.2": (30.0, SAMPLING)}  # word: frames per second, sampling


@dataclass(frozen=True, slots=True)
class Item:
    """A line of a list, and what it asks for."""

    entry: Entry
    line: Line
    path: bytes  # relative to the folder
    is_folder: bool
    rate: float | None  # frames per second of a folder of frames
    sampling: str
    first_frame: int | None = None  # place in the sorted folder
    num_images: int | None = None


def plan(
    name: str,
    *,
    folder: AnyPath,
    train: Files = None,
    val: Files = None,
    test: Files = None,
    columns: Columns | None = None,
    replace: tuple[str, str] | None = None,
    labels: AnyPath | None = None,
    rate: float | None = None,
    sampling: str | None = None,
) -> SourcePlan:
    """What the lists ask for and `folder` has, in the order of the lists.

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
    root = existing_folder(folder)
    classes = [line.strip() for line in read_lines(labels)] if labels is not None else None
    lines: dict[Entry, tuple[Line, bytes | None]] = {}
    dropped: list[DroppedEntry] = []
    for split, files in zip(SPLITS, (train, val, test), strict=True):
        for file in as_files(files):
            where = shown(file)
            for line in read_list(file, columns, classes):
                if isinstance(line, BadLine):
                    detail = f"{where}:{line.number}: {line.detail}"
                    dropped.append(DroppedEntry(None, split, Drop.MALFORMED, detail))
                    continue
                path = _relative(root, line.path, replace)
                identity = line.path if path is None else os.fsdecode(path)
                identity += "" if line.start is None else f" {line.start}"
                lines[Entry(identity, line.split or split, line.label, where, line.number)] = line, path
    num_listed = len(lines) + len(dropped)
    kept, repeated = settle(lines)
    wanted = {path for _, path in lines.values()}
    listing = list_videos(root, lambda parent, directory: os.path.join(parent, directory) in wanted)
    videos, folders = set(listing.paths[: listing.num_files]), set(listing.paths[listing.num_files :])
    items: list[Item] = []
    missing: list[DroppedEntry] = []
    for entry in kept:
        line, path = lines[entry]
        if path is None:
            problem = f"{line.path!r} is not below {shown(root)}; `replace` can change how paths begin"
            missing.append(DroppedEntry(entry.id, entry.split, Drop.NO_FILE, f"{entry.where} {problem}"))
            continue
        # a link to a directory that was entered by another name is on the disk, but not in the listing
        is_file = path in videos or (path not in folders and os.path.isfile(os.path.join(root, path)))
        is_folder = path in folders or (not is_file and os.path.isdir(os.path.join(root, path)))
        if not is_file and not is_folder:
            missing.append(DroppedEntry(entry.id, entry.split, Drop.NO_FILE, f"{entry.where} lists it"))
        elif is_file and (line.total or -1) > 0:
            problem = f"wants {line.total} images, but it is a file; a video has the total -1"
            missing.append(DroppedEntry(entry.id, entry.split, Drop.MALFORMED, f"{entry.where} {problem}"))
        elif is_folder and line.total == -1:
            problem = "wants a video, but it is a folder; a folder of frames has the total of its images"
            missing.append(DroppedEntry(entry.id, entry.split, Drop.MALFORMED, f"{entry.where} {problem}"))
        else:
            items.append(Item(entry, line, path, is_folder, *_how(name, path, is_folder, line, rate, sampling)))
    items, unusable = _find_images(root, items)
    dropped += repeated + missing + unusable
    requests = requests_table(
        {
            "source": name,
            "root": name,
            "path": [item.path for item in items],
            "kind": ["frames" if item.is_folder else "video" for item in items],
            "split": [item.entry.split for item in items],
            "label": [item.entry.label for item in items],
            "seconds": [item.num_images / item.rate if item.num_images and item.rate else None for item in items],
            "rate": [item.rate for item in items],
            "first_frame": [item.first_frame for item in items],
            "num_images": [item.num_images for item in items],
            "sampling": [item.sampling for item in items],
        },
        len(items),
    )
    unlisted = np.array([place for place, path in enumerate(listing.paths) if path not in wanted], np.int64)
    tables = [
        dropped_entries(name, [replaced(entry, id=entry.id and shown(entry.id)) for entry in dropped]),
        dropped_files(name, listing, unlisted, Drop.NOT_LISTED, "no list has it"),
    ]
    counts = {"listed": num_listed, "found": len(items), **count_reasons(tables)}
    notes = []
    if kept and not items:
        notes.append(f"{name}: nothing of what the lists have is usable; the first line: {dropped[0].detail}")
    return SourcePlan(requests=requests, dropped=pa.concat_tables(tables), counts=counts, notes=tuple(notes))


def _relative(root: bytes, path: str, replace: tuple[str, str] | None) -> bytes | None:
    """A path of a list -> relative to the root; None if it lies elsewhere."""
    if replace is not None and path.startswith(replace[0]):
        path = replace[1] + path.removeprefix(replace[0])
    absolute = os.path.normpath(os.path.join(root, os.fsencode(path)))
    prefix = root.rstrip(b"/") + b"/"
    return absolute[len(prefix) :] if absolute.startswith(prefix) and absolute != prefix else None


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


def _find_images(root: bytes, items: list[Item]) -> tuple[list[Item], list[DroppedEntry]]:
    """Put places in the sorted folder for the numbers in image names; what is not all there is dropped.

    Each folder is read once, 16 at a time, because on a network file system reading waits.
    """
    of_folder: dict[bytes, list[int]] = {}
    for place, item in enumerate(items):
        if item.is_folder:
            of_folder.setdefault(item.path, []).append(place)

    def find(folder: bytes) -> list[tuple[int, Item | str]]:
        try:
            numbers = [image_number(image) for image in image_names(os.listdir(os.path.join(root, folder)))]
        except OSError as error:
            return [(place, f"cannot be read: {error.strerror}") for place in of_folder[folder]]
        place_of = {number: place for place, number in reversed([*enumerate(numbers)])}
        return [(place, _locate(items[place], numbers, place_of)) for place in of_folder[folder]]

    found: list[Item | str] = list(items)
    with ThreadPoolExecutor(16) as pool:
        for results in tqdm(pool.map(find, of_folder), total=len(of_folder), desc="folders", disable=None):
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
