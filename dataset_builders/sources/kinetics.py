"""Kinetics-400/600/700: from the official lists and the folders that people have to the clips that are wanted."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset_builders.plan import SPARE_SCHEMA, Drop, SourcePlan, dropped_table, requests_table, spares_table
from dataset_builders.sources import k710
from dataset_builders.sources.annotations import AnyPath, shown
from dataset_builders.sources.kinetics_files import Files, Version, explain, kinetics_roots, match_files, numbers
from dataset_builders.sources.kinetics_lists import list_paths, read_annotations, read_classes
from dataset_builders.sources.listing import nothing_found


def plan(
    name: str,
    *,
    versions: Mapping[int, Version],
    splits: Sequence[str] = ("train",),
    leaks: Literal["from-train", "from-val"] = "from-train",
    label_map: AnyPath | None = None,
    untrimmed: bool = False,
    sampling: str = "seconds:0.133333",
) -> SourcePlan:
    """A request for every video of the merged lists (k710.merge) that one of the folders has.

    `splits` are those that are wanted: ("train",) for UnlabeledHybrid, ("train", "val") for LabeledHybrid; without "test", test
    lists only tell leaks. `label_map` is the official label_map_k710.txt or another list of names. `untrimmed`: files named
    `ID.mp4` are whole YouTube videos, of which the annotated seconds are asked for; otherwise a file is taken as it is. (Names
    with times always mean cut files.)
    `sampling` "stride:4" is the paper's, for ~30 fps.

    A row takes the file of its own version's folder; without one, that of another version's folder if it is the same part of
    the video; without that, the row of another version that lists the video and has its file stands in. Requests come by
    split and YouTube id: ids are random, so a shard holds all classes. Every wanted row and every file is in the requests or
    in `dropped`. 1.23 M rows and 740,000 files take 7 CPU seconds (3 of them to list the folders) and 0.8 GiB.
    Raises ValueError for unknown options, missing files and folders, and lists that are none.
    """
    if not splits or set(splits) - set(k710.SPLITS):
        raise ValueError(f"source {name}: splits {tuple(splits)}; allowed are 'train', 'val' and 'test'")
    tables, malformed = {}, []
    for version in sorted(versions):
        lists = [read_annotations(path) for path in list_paths(name, version, versions[version].annotations)]
        tables[version] = pa.concat_tables([table for table, _ in lists]).combine_chunks()
        malformed += [sentence for _, sentences in lists for sentence in sentences]
    classes = {version: read_classes(have.classes) for version, have in versions.items() if have.classes is not None}
    merged = k710.merge(tables, leaks, None if label_map is None else read_classes(label_map), classes, "test" in splits)

    ids = pc.unique(pa.chunked_array([chunk for table in tables.values() for chunk in table["youtube_id"].chunks], pa.string()))
    files = Files.find(versions, ids)

    rows = merged.table.filter(pc.is_in(merged.table["split"], value_set=pa.array(splits)))
    gone = merged.dropped.filter(pc.is_in(merged.dropped["split"], value_set=pa.array(splits)))
    chosen = _choose_files(rows, gone, ids, tables, files, untrimmed)
    every_row, file, row = chosen.every_row, chosen.file, chosen.row

    without = row[file[row] < 0]
    row = row[file[row] >= 0]
    split_rank = pc.index_in(every_row["split"], value_set=pa.array(splits))
    by_id = pa.table({"split": split_rank, "id": every_row["youtube_id"]}).take(pa.array(row))
    row = row[pc.sort_indices(by_id, sort_keys=[("split", "ascending"), ("id", "ascending")]).to_numpy()]
    taken = every_row.take(pa.array(row))
    cut = pa.array(np.isnan(files.start[file[row]]) & untrimmed)
    nothing = pa.scalar(None, pa.float64())
    columns = files.columns(file[row], taken["version"].to_numpy()) | {
        "split": taken["split"],
        "label": taken["label"],
        "source_id": taken["youtube_id"],
        "start": pc.if_else(cut, taken["start"], nothing),
        "end": pc.if_else(cut, taken["end"], nothing),
        "seconds": pc.subtract(taken["end"], taken["start"]),
    }
    requests = requests_table(columns | {"source": name, "kind": "video", "sampling": sampling})

    dropped = [dropped_table({"source": name, "reason": Drop.MALFORMED.value, "detail": malformed}, len(malformed))]
    dropped += _left_out(name, chosen, gone, row, without, files)
    reasons = dropped[-1]["reason"]  # of the files

    counts = {**merged.report, "malformed rows": len(malformed)}
    for root, number in zip(files.roots, np.bincount(files.folder, minlength=len(files.roots)).tolist(), strict=True):
        counts[f"files in {root}"] = number
    counts["ids without a file"] = len(without)
    counts["files without a listed id"] = _count(reasons, Drop.NOT_LISTED.value)
    counts["other files of ids that are taken or left out"] = len(reasons) - counts["files without a listed id"]
    counts["taken from another version's folder"] = chosen.num_elsewhere
    counts["taken with another version's times and label"] = len(chosen.stand_ins)
    for split in splits:
        counts[f"{split} requests"] = _count(requests["split"], split)

    notes = list(merged.notes)
    if malformed:
        notes.append(f"{len(malformed)} annotation rows cannot be understood and are left out: see dropped.parquet.")
    if leaks == "from-train" and "train" in splits:
        untested = [f"K{version}" for version in sorted(versions) if not counts[f"rows of K{version} test"]]
        if untested:
            notes.append(f"No test list of {', '.join(untested)} is given, so training videos that are in it stay.")
    if len(row) == 0 and len(without):
        first, version = every_row["youtube_id"][int(without[0])].as_py(), int(every_row["version"][int(without[0])].as_py())
        where = f"{shown(list_paths(name, version, versions[version].annotations)[0])}:1"
        places = [os.fsdecode(folder) for folder in kinetics_roots(versions).values()]
        wanted = f"the id {first!r} in a name such as {first}_000010_000020.mp4"
        notes.append(nothing_found(name, ", ".join(places), files.paths.to_pylist(), where, wanted))
    whole = int(np.isnan(files.start[file[row]]).sum())
    if whole and not untrimmed:
        notes.append(
            f"{whole} files have no times in their names and are taken whole, as clips that were cut already; if they are "
            "whole YouTube videos, say so (untrimmed)."
        )
    labels = _label_files(merged, label_map is not None)
    return SourcePlan(
        requests=requests,
        dropped=pa.concat_tables(dropped),
        counts=counts,
        files=labels,
        notes=tuple(notes),
        spares=_spares(chosen, row, files, untrimmed),
    )


def _spares(chosen: "_Choice", row: np.ndarray, files: Files, untrimmed: bool) -> pa.Table:
    """For the requests of these rows, files of the same part of the video that no row takes."""
    free = np.flatnonzero(~files.among(chosen.file[row]) & (files.video >= 0))
    video, start = chosen.video[row], chosen.every_row["start"].to_numpy()[row]
    tables = [spares_table("", [])]
    while len(free):
        found = match_files(video, start, files.video[free], files.start[free])
        request = np.flatnonzero(found >= 0)
        if not len(request):
            break
        file = free[found[request]]
        free = np.setdiff1d(free, file)
        if untrimmed:  # then a name without times means a whole video, of which a part is asked for
            same = np.isnan(files.start[file]) == np.isnan(files.start[chosen.file[row[request]]])
            request, file = request[same], file[same]
        columns = files.columns(file, chosen.every_row["version"].to_numpy()[row[request]])
        tables.append(pa.table([pa.array(request), columns["root"], columns["path"]], schema=SPARE_SCHEMA))
    return pa.concat_tables(tables)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which row takes which file. Rows are places in `every_row`: first the merged ones, then those that the merge dropped."""

    every_row: pa.Table
    video: np.ndarray  # number of the YouTube id
    file: np.ndarray  # place in Files, -1 for none
    row: np.ndarray  # the rows that stand for their videos, with and without file
    gone_row: np.ndarray  # the others, in the order of the merge's `dropped`
    stand_ins: np.ndarray  # places in `gone_row` of what was merged, has no file, and gave way to another version's row
    num_elsewhere: int  # rows that take a file of another version's folder


def _choose_files(
    rows: pa.Table, gone: pa.Table, ids: pa.Array, tables: Mapping[int, pa.Table], files: Files, untrimmed: bool
) -> _Choice:
    every_row = pa.concat_tables([rows, gone.select(rows.column_names)])
    video, start = numbers(every_row["youtube_id"], ids), every_row["start"].to_numpy()  # null becomes NaN
    file = np.full(len(every_row), -1, np.int64)
    own = {}
    for version, table in tables.items():
        own[version] = files.match(version, numbers(table["youtube_id"], ids), table["start"].to_numpy())
        of_version = every_row["version"].to_numpy() == version
        file[of_version] = own[version][every_row["row"].to_numpy()[of_version]]
    row, gone_row = np.arange(len(rows)), np.arange(len(rows), len(every_row))

    # The same part of the same video in another folder. A name without times means what its own version's list says.
    missing = row[file[row] < 0]
    start_of_file = files.start.copy()
    for version, table in tables.items() if not untrimmed else ():
        owner = np.flatnonzero(own[version] >= 0)
        owner = owner[np.isnan(start_of_file[own[version][owner]])]
        start_of_file[own[version][owner]] = table["start"].to_numpy()[owner]
    free = np.flatnonzero(~files.among(file[row]))
    found = match_files(video[missing], start[missing], files.video[free], start_of_file[free])
    elsewhere = missing[found >= 0]
    file[elsewhere] = free[found[found >= 0]]

    # The file of another version's row, with its times and its label.
    missing = row[file[row] < 0]
    row_of_video = np.full(len(ids), -1)
    row_of_video[video[missing]] = missing
    is_free = (file[gone_row] >= 0) & ~files.among(file[row])[file[gone_row]] if len(files.paths) else np.zeros(len(gone), bool)
    is_duplicate = pc.equal(gone["reason"], Drop.DUPLICATE.value).to_numpy()
    stand_ins = np.flatnonzero(is_duplicate & is_free & (row_of_video[video[gone_row]] >= 0))
    stand_ins = stand_ins[np.unique(video[gone_row[stand_ins]], return_index=True)[1]]  # the newest version that has it
    replaced = row_of_video[video[gone_row[stand_ins]]]
    row[replaced], gone_row[stand_ins] = gone_row[stand_ins], replaced
    return _Choice(every_row, video, file, row, gone_row, stand_ins, len(elsewhere))


def _left_out(name: str, chosen: _Choice, gone: pa.Table, row: np.ndarray, without: np.ndarray, files: Files) -> list[pa.Table]:
    """Dropped rows of the merge with the files that they would have had, merged rows without file, and the other files."""
    used = files.among(chosen.file[row])
    gone_file = chosen.file[chosen.gone_row]
    if len(files.paths):
        gone_file = np.where(used[gone_file], -1, gone_file)
    first = np.zeros(len(gone_file), bool)  # a file is named once
    first[np.unique(gone_file, return_index=True)[1]] = True
    gone_file = np.where(first, gone_file, -1)
    gave_way = np.zeros(len(gone), bool)
    gave_way[chosen.stand_ins] = True
    detail = "has no file; the row of another version's list, which has one, is taken"
    gone_row, without_row = (chosen.every_row.take(pa.array(place)) for place in (chosen.gone_row, without))
    rest = np.flatnonzero(~used & ~files.among(gone_file))
    leaked = chosen.gone_row[pc.equal(gone["reason"], Drop.LEAK.value).to_numpy()]
    other_files = files.columns(rest) | {"source_id": files.ids.take(pa.array(rest))}
    other_files |= explain(files, rest, taken=chosen.video[row], leaked=chosen.video[leaked], wanted=chosen.video)
    dropped_rows = files.columns(gone_file, gone_row["version"].to_numpy()) | _named(gone_row)
    dropped_rows |= {"reason": gone["reason"], "detail": pc.if_else(pa.array(gave_way), detail, gone["detail"])}
    version = without_row["version"].cast(pa.string())
    no_file = pc.binary_join_element_wise("K", version, " lists it, no folder has it", "")
    rows_without = {**_named(without_row), "reason": Drop.NO_FILE.value, "detail": no_file}
    return [dropped_table({"source": name, **columns}) for columns in (dropped_rows, rows_without, other_files)]


def _named(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {"split": rows["split"], "source_id": rows["youtube_id"]}


def _label_files(merged: k710.Merge, has_map: bool) -> dict[str, list[Any]]:
    """The list of class names, and which of them are a version's classes: label_map_k710.json, label_710to400.json ..."""
    if len(merged.maps) == 1 and not has_map:
        return {f"label_map_k{next(iter(merged.maps))}.json": merged.labels}
    maps: dict[str, list[Any]] = {f"label_710to{version}.json": indices for version, indices in merged.maps.items()}
    return {"label_map_k710.json": merged.labels, **maps}


def _count(column: pa.ChunkedArray, value: str) -> int:
    return int(pc.sum(pc.equal(column, value)).as_py() or 0)
