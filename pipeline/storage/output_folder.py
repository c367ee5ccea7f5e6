"""Where a command may write: not into a dataset, nor into a folder that one is made from, whatever its path is called.

A folder tells by its files what it is, so a run or a dataset that was begun where it would be refused now goes on.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.storage import remote

AnyPath = str | bytes | os.PathLike[str]


def is_dataset(folder: AnyPath) -> bool:
    """Whether a dataset lies there, finished or begun."""
    has = {name for name in ("shards", "dataset.json", "origin.url", "manifest.parquet") if _holds(folder, name)}
    return bool(has - {"manifest.parquet"}) and ("manifest.parquet" in has or _holds(folder, ".build/lock"))


def is_run(folder: AnyPath) -> bool:
    """Whether a training run lies there."""
    return _holds(folder, "config.json") and _holds(folder, "checkpoints")


def lies_in(path: AnyPath, folder: AnyPath) -> bool:
    """Whether a path, of which the end need not exist, is a folder or lies below it: by links or bind mounts as well."""
    try:
        status = os.stat(folder)
    except OSError:
        return False
    return any(os.path.samestat(os.stat(place), status) for place in _upwards(path) if os.path.exists(place))


def refuse_dataset(flag: str, path: AnyPath) -> None:
    """Raises ValueError if what lies nearest around a path that shall be written is a dataset; a run in one is a run."""
    for place in _upwards(path):
        if is_run(place):
            return
        if is_dataset(place):
            raise refusal(flag, path, place, "a dataset, which holds what its build made and nothing else")


def refuse_sources(flag: str, path: AnyPath, folders: Mapping[str, bytes]) -> None:
    """Raises ValueError if a path lies in one of these folders; their names are those of the sources."""
    for name, folder in folders.items():
        if lies_in(path, folder):
            what = f"the folder of source {name!r}, of which every file counts as one to take or to report"
            raise refusal(flag, path, folder, what)


def refuse_for_run(out: AnyPath, data: str | os.PathLike[str], mirror: str | None) -> None:
    """Raises ValueError if the --out or --mirror of a training would fill a dataset, or a folder that `data` is made from."""
    if mirror:
        refuse_dataset("--mirror", mirror)
        if remote.is_url(data) and f"{remote.as_url(mirror)}/".startswith(f"{remote.as_url(data)}/"):
            raise refusal("--mirror", mirror, remote.as_url(data), "the dataset")
    if not is_run(out):
        refuse_dataset("--out", out)
        refuse_sources("--out", out, dict(_sources(data, out)))


def _sources(data: AnyPath, out: AnyPath) -> Iterator[tuple[str, bytes]]:
    """The folders that a dataset was made from, of those around `out`, if they are the same here: its files lie in them."""
    described, manifest = (os.path.join(os.fsdecode(data), name) for name in ("dataset.json", "manifest.parquet"))
    if remote.is_url(described) or not os.path.exists(described) or not os.path.exists(manifest):
        return
    import pyarrow.compute as pc  # late: most that ask write no run

    from pipeline.storage.columns import iter_rows  # it brings pyarrow, too

    with open(described, "rb") as file:
        sources = json.load(file).get("sources", {})
    for name, about in sources.items():
        for root, folder in about.get("folders", {}).items():
            searched = about.get("kind") != "index" and not root.endswith(":list") and folder != "/"
            if not searched or not lies_in(out, os.fsencode(folder)):
                continue
            for rows in iter_rows(Path(manifest), ["root", "path"]):
                paths = rows["path"].filter(pc.equal(rows["root"], root))
                if len(paths):
                    if os.path.exists(os.path.join(os.fsencode(folder), paths[0].as_py())):
                        yield name, os.fsencode(folder)
                    break


def refusal(flag: str, path: AnyPath, place: AnyPath, what: str) -> ValueError:
    """The error for a path that is, or lies in, a place where it must not be."""
    shown, around = os.fsdecode(path), os.fsdecode(place)
    where = "is" if os.path.realpath(shown) == os.path.realpath(around) else f"lies in {around}, which is"
    return ValueError(f"{flag} {shown}: {where} {what}; give a folder outside of it")


def _holds(folder: AnyPath, name: str) -> bool:
    return os.path.exists(os.path.join(os.fsdecode(folder), name))


def _upwards(path: AnyPath) -> Iterator[str]:
    """A path and what it lies in, up to the root, links resolved; nothing for a URL of another machine."""
    text = os.fsdecode(path)
    if remote.is_url(text):
        if not text.startswith("file:/"):
            return
        text = remote.as_url(text).removeprefix("file:/")  # of its three slashes the last begins the path
    place = os.path.realpath(text)
    yield place
    while place != os.path.dirname(place):
        place = os.path.dirname(place)
        yield place
