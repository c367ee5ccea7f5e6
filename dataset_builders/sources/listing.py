"""What lies in a folder, and which of it the annotations mean: files and folders of frames are found by their name's stem.

`ID.webm`, `any/folder/ID.mp4` and a folder `ID/` of images are all the video ID: extension and place do not count, because
people convert videos and sort them into folders of their own.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset_builders.media.image_names import IMAGES
from dataset_builders.plan import Drop, SourcePlan, dropped_table, requests_table, spares_table
from dataset_builders.sources.annotations import AnyPath, DroppedEntry, Entry, read_lines, shown
from dataset_builders.sources.folder import list_files, walk

VIDEOS = (
    *(b".mp4", b".m4v", b".mov", b".mkv", b".webm", b".avi", b".wmv", b".flv"),
    *(b".mpg", b".mpeg", b".ts", b".m2ts", b".3gp", b".ogv", b".asf", b".vob"),
)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files below a folder, then its folders of frames, each in the order of their bytes; relative to the folder."""

    paths: list[bytes]
    num_files: int


def existing_folder(folder: AnyPath) -> bytes:
    """The folder as absolute bytes; raises ValueError if there is none."""
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder {shown(folder)}")
    return os.path.abspath(os.fsencode(folder))


def list_videos(folder: bytes, is_frames: Callable[[bytes, bytes], bool] | None = None) -> Listing:
    """Every file below `folder`, as folder.list_files; but a directory of which `is_frames(parent, name)` says so, and
    that holds an image, counts as one video and is not entered: of each of Something-Something V1's 108,499 folders one name
    is read instead of 36. The images of any other directory are one as well, so that a folder of frames that nobody lists
    is one row.
    """
    if is_frames is None:
        files = list_files(folder)
        return Listing(files, len(files))
    files, frames = [], []
    for parent, directories, names in walk(folder):
        images = [name for name in names if name.lower().endswith(IMAGES)]
        if images:
            frames.append(parent or b".")
            names = [name for name in names if not name.lower().endswith(IMAGES)]
        files += [os.path.join(parent, name) for name in names] if parent else names
        enter = []
        for name in directories:
            if is_frames(parent, name) and _holds_images(os.path.join(folder, parent, name)):
                frames.append(os.path.join(parent, name))
            else:
                enter.append(name)
        directories[:] = enter
    return Listing(sorted(files) + sorted(frames), len(files))


def _holds_images(directory: bytes) -> bool:
    """Whether an image is in it: a directory with the name of an id can as well be a shard of videos, `12/74225.webm`."""
    try:
        with os.scandir(directory) as entries:
            return any(entry.name.lower().endswith(IMAGES) for entry in entries)
    except OSError:
        return False


def stems(listing: Listing) -> list[bytes]:
    """Names without folder and, for files, without what follows the last dot."""
    names = [path[path.rfind(b"/") + 1 :] for path in listing.paths]
    for place, name in enumerate(names[: listing.num_files]):
        if (dot := name.rfind(b".")) > 0:
            names[place] = name[:dot]
    return names


def without_extension(name: str) -> str:
    """Without that of a video, if it has one: some lists name files where others name ids."""
    stem, extension = os.path.splitext(name)
    return stem if os.fsencode(extension.lower()) in VIDEOS else name


def nothing_found(name: str, folder: AnyPath, files: Sequence[bytes], where: str, wanted: str) -> str:
    """A note for a source whose lists match nothing. `where` is FILE:LINE of what its lists name first (in JSON, the number of
    an entry), `files` those in the folder, `wanted` what was looked for in it."""
    file = where.rpartition(":")[0]
    with suppress(ValueError):
        first = next((line for line in read_lines(file) if line.strip()), "")
        where = f"{where} (the file begins with {first[:120]!r})"
    there = f"which holds {len(files):,} others, such as {shown(files[0])!r}" if files else "which holds no file"
    return f"{name}: nothing that its lists name is there. {where}: {wanted} was looked for in {shown(folder)}, {there}"


def match(
    name: str, ids: Sequence[str] | pa.Array, listing: Listing
) -> tuple[np.ndarray, list[pa.Table], dict[int, list[bytes]]]:
    """Distinct ids -> (place in the listing of each, int64, -1 without a file; rows for all other files of the source `name`;
    by the chosen place, further files of the same kind with that id).

    Of several files of an id the first counts: a video before a folder of frames.
    """
    wanted = pa.array(ids, pa.string()).cast(pa.binary())
    found = pa.array(stems(listing), pa.binary())
    id_of = pc.index_in(found, value_set=wanted)  # null for files that no id means
    listed = np.flatnonzero(np.asarray(id_of.is_valid()))
    meant = np.asarray(id_of.drop_null(), np.int64)
    unique, first = np.unique(meant, return_index=True)  # the first place of each
    chosen = np.full(len(wanted), -1)
    chosen[unique] = listed[first]
    repeated = [listing.paths[place] for place in np.delete(listed, first)]
    spares: dict[int, list[bytes]] = {}
    for place, meaning in zip(np.delete(listed, first).tolist(), np.delete(meant, first).tolist(), strict=True):
        if (place < listing.num_files) == (chosen[meaning] < listing.num_files):
            spares.setdefault(int(chosen[meaning]), []).append(listing.paths[place])
    unlisted = [listing.paths[place] for place in np.flatnonzero(np.asarray(id_of.is_null()))]
    return (
        chosen,
        [
            dropped_files(name, repeated, Drop.DUPLICATE, "a file of the same name is taken already"),
            dropped_files(name, unlisted, Drop.NOT_LISTED, "no annotation file lists it"),
        ],
        spares,
    )


def dropped_files(name: str, paths: list[bytes], reason: Drop, detail: str | list[str]) -> pa.Table:
    """Rows for files that are not asked for."""
    return dropped_table({"source": name, "root": name, "path": paths, "reason": str(reason), "detail": detail}, len(paths))


def dropped_entries(name: str, entries: Sequence[DroppedEntry]) -> pa.Table:
    """Rows for entries that are not asked for."""
    columns = {
        "split": [entry.split for entry in entries],
        "source_id": [entry.id for entry in entries],
        "reason": [str(entry.reason) for entry in entries],
        "detail": [entry.detail for entry in entries],
    }
    return dropped_table({"source": name, **columns}, len(entries))


def plan_entries(
    name: str,
    folder: bytes,
    entries: Sequence[Entry],
    dropped: Sequence[DroppedEntry],
    *,
    splits: Collection[str],
    columns: Mapping[str, Any],
    by_kind: Mapping[str, tuple[float | None, float | None]],
    files: Mapping[str, Any] | None = None,
) -> SourcePlan:
    """Entries with distinct ids and what lies in `folder` -> the plan, in the order of the entries.

    Only `splits` are asked for; entries of others keep their files from being unlisted. `columns` are the same for all
    requests, `by_kind` has the value of folders of frames and that of videos. The root has the source's name.
    """
    names = {os.fsencode(entry.id) for entry in entries}
    listing = list_videos(folder, lambda parent, directory: directory in names)
    places, other_files, others = match(name, [entry.id for entry in entries], listing)
    pairs = list(zip(entries, places.tolist(), strict=True))
    taken = [(entry, place) for entry, place in pairs if place >= 0 and entry.split in splits]
    frames = pa.array([place >= listing.num_files for _, place in taken], pa.bool_())
    either = {
        column: pc.if_else(frames, *(pa.scalar(value, pa.float64()) for value in values)) for column, values in by_kind.items()
    }
    requests = requests_table(
        {
            "source": name,
            "root": name,
            "path": [listing.paths[place] for _, place in taken],
            "kind": pc.if_else(frames, "frames", "video"),
            "split": [entry.split for entry, _ in taken],
            "label": [entry.label for entry, _ in taken],
            "source_id": [entry.id for entry, _ in taken],
            "extra": [entry.extra for entry, _ in taken],
            **columns,
            **either,
        },
        len(taken),
    )
    missing = [
        DroppedEntry(entry.id, entry.split, Drop.NO_FILE, f"{entry.where} lists it")
        for entry, place in pairs
        if place < 0 and entry.split in splits
    ]
    dropped = [entry for entry in dropped if entry.split in splits]
    tables = [dropped_entries(name, [*dropped, *missing]), *other_files]
    listed = sum(entry.split in splits for entry in entries) + len(dropped)
    others_found = sum(place >= 0 and entry.split not in splits for entry, place in pairs)
    counts = {"listed": listed, "found": len(taken), **count_reasons(tables)}
    if others_found:
        counts["of other splits"] = others_found
    notes = []
    if missing and not taken:
        first = next(entry for entry, _ in pairs if entry.split in splits)
        wanted = f"a file {first.id}.* or a folder {first.id} of images"
        notes.append(nothing_found(name, folder, listing.paths, first.where, wanted))
    elif dropped and not taken:
        notes.append(f"{name}: its lists have nothing that can be read: {dropped[0].detail}")
    spares = spares_table(name, [(row, path) for row, (_, place) in enumerate(taken) for path in others.get(place, ())])
    return SourcePlan(
        requests=requests,
        dropped=pa.concat_tables(tables),
        counts=counts,
        files=files or {},
        notes=tuple(notes),
        spares=spares,
    )


def count_reasons(tables: Sequence[pa.Table]) -> dict[str, int]:
    """{"no_file": 12, ...} of tables with DROPPED_SCHEMA, in the order of Drop, without zeros."""
    totals = {str(reason): 0 for reason in Drop}
    for table in tables:
        for entry in pc.value_counts(table["reason"]).to_pylist():
            totals[entry["values"]] += entry["counts"]
    return {reason: count for reason, count in totals.items() if count}
