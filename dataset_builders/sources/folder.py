"""A folder of any files: which ones there are."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from dataset_builders.plan import DROPPED_SCHEMA, SourcePlan, requests_table
from dataset_builders.sources.annotations import AnyPath, shown

LOCK = b".build/lock"  # of jobs.BuildState, in every dataset that was begun
SPLIT_NAMES = {b"train": "train", b"val": "val", b"valid": "val", b"validation": "val", b"test": "test"}  # of directories
SAMPLING = "seconds:0.133333"  # 4 frames at 30 per second, whatever a file's own rate


def list_files(root: bytes) -> list[bytes]:
    """Every regular file below `root`, as paths relative to it, in the order of their bytes.

    Names and extensions decide nothing: hidden files, files without extension and names that are not UTF-8 count. Links
    to files count under their own name; see `walk` for the rest.
    """
    files: list[bytes] = []
    for parent, _, names in walk(root):
        prefix = parent + b"/" if parent else b""
        files += [prefix + name for name in names]
    return sorted(files)


def walk(folder: bytes) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]:
    """(directory relative to `folder`, names of its directories, names of its files), both sorted, for every directory.

    Like os.walk: what is taken out of the list of directories is not entered. Links are followed, and every real directory is
    entered once, which also ends loops of links; but none that leads out of `folder` to what it lies in, whose other contents
    nobody named, nor to the kernel's own files. A dataset that tubecell builds, known by its .build/lock, is left out. Broken
    links, and directories that cannot be read, count as files, so that they are reported instead of being passed over; sockets,
    pipes and devices, which reading could wait for forever, do not.
    """
    entered = {(status.st_dev, status.st_ino) for status in _never_entered(folder)}
    waiting = [b""]
    while waiting:
        parent = waiting.pop()
        try:
            status = os.stat(os.path.join(folder, parent))
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(os.path.join(folder, parent)))
            if any(entry.name == b".build" for entry in entries) and os.path.exists(os.path.join(folder, parent, LOCK)):
                continue
        except OSError:
            yield os.path.dirname(parent), [], [os.path.basename(parent) or b"."]
            continue
        directories, names = [], []
        for entry in entries:
            try:
                if entry.is_dir():
                    directories.append(entry.name)
                elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                    names.append(entry.name)
            except OSError:  # a link that leads round in a circle
                names.append(entry.name)
        directories.sort()
        yield parent, directories, sorted(names)
        waiting += [os.path.join(parent, name) for name in reversed(directories)]


def _never_entered(folder: bytes) -> Iterator[os.stat_result]:
    place = os.path.realpath(folder)
    above = []
    while place != b"/":
        place = os.path.dirname(place)
        above.append(place)
    for directory in (*above, b"/proc", b"/sys", b"/dev"):
        with suppress(OSError):
            yield os.stat(directory)


def plan(
    name: str, *, folder: AnyPath, split: str = "train", labels_from_folder: bool = False, sampling: str = SAMPLING
) -> SourcePlan:
    """Every file below `folder`, in the order of their bytes. `labels_from_folder`: a file's own folder names its class.

    Raises ValueError if there is no folder.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"source {name}: there is no folder {shown(folder)}")
    paths = list_files(os.fsencode(folder))
    labels = [own_folder(path) for path in paths] if labels_from_folder else None
    columns = {"source": name, "root": name, "path": paths, "kind": "video", "split": split, "label": labels}
    requests = requests_table({**columns, "sampling": sampling}, len(paths))
    notes = mixed_splits(name, paths, split)
    return SourcePlan(requests=requests, dropped=DROPPED_SCHEMA.empty_table(), counts={"files": len(paths)}, notes=notes)


def own_folder(path: bytes) -> str | None:
    """The name of the folder that a file lies in, as its class; None of the source's own folder."""
    return os.path.basename(os.path.dirname(path)).decode("utf-8", "backslashreplace") or None


def mixed_splits(name: str, paths: Sequence[bytes], split: str) -> tuple[str, ...]:
    """A note, if files lie in train/ and val/ or the like: nobody said that these are splits, and all become one."""
    directories = sorted({path.partition(b"/")[0] for path in paths if b"/" in path})
    splits = {
        directory.decode(): SPLIT_NAMES[directory.lower()] for directory in directories if directory.lower() in SPLIT_NAMES
    }
    if len(set(splits.values())) < 2:
        return ()
    apart = " ".join(f"{name}:{split}=FOLDER/{directory}" for directory, split in splits.items())
    return (f"{name}: its folders {', '.join(splits)} are all taken for the split {split}; these are kept apart as {apart}",)
