"""A folder of any files: which ones there are."""

import os
from collections.abc import Iterator

from dataset_builders.annotations import AnyPath, shown
from dataset_builders.plan import DROPPED_SCHEMA, SourcePlan, requests_table

LOCK = b".build/lock"  # of jobs.BuildState, in every dataset that was begun
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
    entered once, which also ends loops of links; a dataset that tubecell builds, known by its .build/lock, is left out. Broken
    links, and directories that cannot be read, count as files, so that they are reported instead of being passed over; sockets,
    pipes and devices, which reading could wait for forever, do not.
    """
    entered = set()
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


def plan(
    name: str,
    *,
    folder: AnyPath,
    split: str = "train",
    label_from_folder: bool = False,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """Every file below `folder`, in the order of their bytes. `label_from_folder`: a file's own folder names its class.

    Raises ValueError if there is no folder.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"source {name}: there is no folder {shown(folder)}")
    paths = list_files(os.fsencode(folder))
    columns: dict[str, object] = {"source": name, "root": name, "path": paths, "kind": "video", "split": split}
    if label_from_folder:
        own = (os.path.basename(os.path.dirname(path)) for path in paths)
        columns["label"] = [label.decode("utf-8", "backslashreplace") or None for label in own]
    requests = requests_table({**columns, "sampling": sampling}, len(paths))
    return SourcePlan(requests=requests, dropped=DROPPED_SCHEMA.empty_table(), counts={"files": len(paths)})
