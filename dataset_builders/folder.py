"""A folder of any files: which ones there are."""

import os

from dataset_builders.annotations import AnyPath, shown
from dataset_builders.plan import DROPPED_SCHEMA, SourcePlan, empty, requests_table

SAMPLING = "seconds:0.133333"  # 4 frames at 30 per second, whatever a file's own rate


def list_files(root: bytes, exclude: bytes | None = None) -> list[bytes]:
    """Every regular file below `root`, as paths relative to it, in the order of their bytes.

    Names and extensions decide nothing: hidden files, files without extension and names that are not UTF-8 count. Links
    to files count under their own name. Every real directory is entered once, which also ends loops of links. Broken
    links and directories that cannot be read are listed too, so that they end as rejects instead of being passed over;
    sockets, pipes and devices are not. `exclude` is a directory to leave out: the dataset, if it lies within the folder.
    """
    entered = set()
    if exclude is not None and os.path.isdir(exclude):
        status = os.stat(exclude)
        entered.add((status.st_dev, status.st_ino))
    files: list[bytes] = []
    directories = [b""]
    while directories:
        directory = directories.pop()
        try:
            status = os.stat(os.path.join(root, directory))
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(os.path.join(root, directory)), key=lambda entry: entry.name)
        except OSError:
            files.append(directory or b".")
            continue
        below = []
        prefix = directory + b"/" if directory else b""
        for entry in entries:
            path = prefix + entry.name
            try:
                if entry.is_dir():
                    below.append(path)
                elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                    files.append(path)
            except OSError:  # a link that leads round in a circle
                files.append(path)
        directories.extend(reversed(below))  # sorted, because which of two links to one directory is entered must not vary
    return sorted(files)


def plan(
    name: str,
    *,
    folder: AnyPath,
    split: str = "train",
    label_from_folder: bool = False,
    sampling: str = SAMPLING,
    exclude: bytes | None = None,
) -> SourcePlan:
    """Every file below `folder`, in the order of their bytes. `label_from_folder`: a file's own folder names its class.

    `exclude` is a directory to leave out: the dataset. Raises ValueError if there is no folder.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"source {name}: there is no folder {shown(folder)}")
    paths = list_files(os.fsencode(folder), exclude)
    columns: dict[str, object] = {"source": name, "root": name, "path": paths, "kind": "video", "split": split}
    if label_from_folder:
        own = (os.path.basename(os.path.dirname(path)) for path in paths)
        columns["label"] = [label.decode("utf-8", "backslashreplace") or None for label in own]
    requests = requests_table({**columns, "sampling": sampling}, len(paths))
    return SourcePlan(requests=requests, dropped=empty(DROPPED_SCHEMA), counts={"files": len(paths)})
