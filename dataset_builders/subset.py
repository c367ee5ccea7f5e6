"""Subsets of datasets, and several merged into one: a manifest of chosen clips, which stay in the shards where they are.

    tubecell subset DATASET --where "source = 'ssv2' AND duration > 2" --out SUBSET
    tubecell subset DATASET --where "extra->>'licence' = 'CC0'" --out SUBSET
    tubecell subset DATASET OTHER ... --out MERGED

The condition is SQL's WHERE over the columns of manifest.parquet (DuckDB evaluates it). No byte of a clip is read or copied, so
it takes seconds; the datasets must stay where they are. What is made is a dataset like any other, with a fingerprint of its
own. The same command again adds what the datasets have got since, as a version, and empties the rows of clips that were
removed from them (`tubecell remove-clips`); what it has stays. A clip that several have, by key and bytes, is there once; the
same file under two sources' names is not seen, but for equal bytes, which are counted.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.building.duplicates import equal_clips
from dataset_builders.pages.counts import counted
from dataset_builders.report import write_report
from dataset_builders.where import chosen_rows, read_keys
from pipeline.console import exit_status
from pipeline.storage import files
from pipeline.storage.columns import read_rows
from pipeline.storage.files import write_durably
from pipeline.storage.key_frames import ACTIONS, BOXES, KEY_FRAMES, Action, local_table
from pipeline.storage.key_frames_writer import write_key_frames
from pipeline.storage.manifest import Manifest
from pipeline.storage.manifest_writer import REJECT_SCHEMA, SCHEMA, write_manifest
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from pipeline.version import version

OF_A_SUBSET = "subset"  # in dataset.json


def subset(places: Sequence[str], out: Path, where: str | None = None, keys: str | None = None) -> int:
    """Write OUT of the chosen clips of datasets, folders or URLs, in their order -> how many there are.

    Raises ValueError if one is no dataset, the condition none, two clips have one key and different bytes, two datasets other
    classes under one name, or OUT is something else already.
    """
    file = out / "dataset.json"
    described = json.loads(file.read_bytes()) if file.exists() else {}
    if described and OF_A_SUBSET not in described:
        raise ValueError(f"--out {out}: it is a dataset that was built; give another folder")
    if not described:
        refuse_dataset("--out", out)
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"--out {out}: there is something else in it; give a new folder")
    bases = [Manifest(place) for place in places]
    whole = [_with_places(base) for base in bases]
    wanted = None if keys is None else read_keys(keys, whole)
    tables = [rows.filter(pa.array(chosen_rows(rows, where, wanted))) for rows in whole]
    for table, base in zip(tables, bases, strict=True):
        print(f"{len(table):>9} of {len(base)} clips of {base.place}")
    before = _kept(out, whole)
    rows = _once(pa.concat_tables([before, *tables], promote_options="default"), len(before))
    if not len(rows):
        raise ValueError("no clip is chosen: there would be nothing in the dataset")
    classes, frames = _class_lists(bases), _key_frames(bases, rows["key"])
    out.mkdir(parents=True, exist_ok=True)
    described |= _description(bases, tables, where, rows)
    write_durably(file, (json.dumps(described, indent=1) + "\n").encode())  # first: it says whose folder this is
    for name, content in classes.items():
        write_durably(out / name, content)
    if frames:
        write_key_frames(out, *frames)
    versions = write_manifest(out, [(rows, REJECT_SCHEMA.empty_table())])
    described |= {
        "versions": [{**entry, "tools": {"tubecell": version()}} for entry in versions],
        "duplicates": dict(zip(("clips", "in_training_and_held_out"), equal_clips(out), strict=True)),
    }
    write_durably(file, (json.dumps(described, indent=1) + "\n").encode())
    write_report(out)
    return int(pc.sum(pc.greater(rows["size"], 0)).as_py())


def _with_places(base: Manifest) -> pa.Table:
    """Rows of a dataset, whose shards have names that lead there from anywhere."""
    rows = read_rows(base.root / "manifest.parquet").slice(0, len(base))
    home = base.place if "://" in base.place else str(Path(base.place).resolve())
    shards = rows["shard"].combine_chunks().dictionary_encode()
    names = [name if "://" in name or name.startswith("/") else f"{home}/{name}" for name in shards.dictionary.to_pylist()]
    return rows.set_column(rows.column_names.index("shard"), "shard", pa.array(names, pa.string()).take(shards.indices))


def _kept(out: Path, whole: Sequence[pa.Table]) -> pa.Table:
    """What OUT has, without the bytes of what was removed from the datasets since; none if it is new."""
    if not (out / "manifest.parquet").exists():
        return SCHEMA.empty_table()
    rows = read_rows(out / "manifest.parquet")
    known = pa.concat_tables([table.select(["key", "size"]) for table in whole])
    here = known.filter(pc.field("size") > 0)["key"].combine_chunks()
    gone = known.filter(pc.field("size") == 0)["key"].combine_chunks()
    empty = pc.and_(pc.is_in(rows["key"], value_set=gone), pc.invert(pc.is_in(rows["key"], value_set=here)))
    return rows.set_column(rows.column_names.index("size"), "size", pc.if_else(empty, 0, rows["size"]))


def _once(rows: pa.Table, known: int) -> pa.Table:
    """Without the clips that are there before, in another dataset, or among the first `known` rows."""
    keys = rows["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return rows
    hashes, same = rows["content_hash"].to_numpy(), np.arange(len(rows)) == first[of]
    if (other := np.flatnonzero(hashes != hashes[first[of]])).size:
        a, b = (rows.slice(int(place), 1).to_pylist()[0] for place in (first[of][other[0]], other[0]))
        told = f"key {a['key']} is of one clip in {a['shard']} and of another, or one encoded otherwise, in {b['shard']}"
        raise ValueError(f"{told}: leave one of them out by --where, or build one with another name of its source")
    if repeated := int((~same).sum()) - int((first[of][~same] < known).sum()):
        print(f"{repeated:>9} clips are in several of them, with the same bytes: once is enough")
    return rows.filter(pa.array(same))


def _class_lists(bases: Sequence[Manifest]) -> dict[str, bytes]:
    """The lists of classes beside the datasets' manifests, whose order is that of official heads."""
    found: dict[str, bytes] = {}
    for base in bases:
        home = base.place if "://" in base.place else base.root
        names = files.listed(base.place) if "://" in base.place else [file.name for file in base.root.glob("label_*.json")]
        for name in names:
            if name.startswith("label_") and name.endswith(".json"):
                content = files.read(f"{home}/{name}")
                if found.setdefault(name, content) != content:
                    raise ValueError(
                        f"{base.place}/{name} lists other classes than another of the datasets: make subsets apart"
                    )
    return found


def _key_frames(bases: Sequence[Manifest], keys: pa.ChunkedArray) -> tuple[pa.Table, pa.Table, list[Action]] | None:
    """Key frames and boxes of these clips, each from the first dataset that has it, and the actions; None without any."""
    wanted, frames, boxes, actions = keys.combine_chunks(), [], [], dict[int, Action]()
    for base in bases:
        file, of_boxes, of_actions = (local_table(base, name) for name in (KEY_FRAMES, BOXES, ACTIONS))
        if not file.exists():
            continue
        here = pq.read_table(file)
        here = here.filter(pc.is_in(here["key"], value_set=wanted))
        wanted = wanted.filter(pc.invert(pc.is_in(wanted, value_set=here["key"].combine_chunks())))
        frames.append(here)
        found = pq.read_table(of_boxes)
        boxes.append(found.filter(pc.is_in(found["key"], value_set=here["key"].combine_chunks())))
        for action in (Action(**action) for action in json.loads(of_actions.read_bytes())):
            if (other := actions.setdefault(action.id, action)).name != action.name:
                raise ValueError(f"action {action.id} is {other.name!r} in one dataset and {action.name!r} in {base.place}")
    return (pa.concat_tables(frames), pa.concat_tables(boxes), list(actions.values())) if frames else None


def _description(bases: Sequence[Manifest], tables: Sequence[pa.Table], where: str | None, rows: pa.Table) -> dict[str, Any]:
    """dataset.json, without versions. A root that two datasets have elsewhere has no folder."""
    known: dict[str, Any] = {}
    for base in bases:
        file = base.root / "dataset.json"
        for name, about in (json.loads(file.read_bytes()).get("sources", {}) if file.exists() else {}).items():
            folders = known.setdefault(name, {"kind": about.get("kind"), "folders": {}})["folders"]
            for root, folder in about.get("folders", {}).items():
                folders[root] = folder if folders.get(root, folder) == folder else ""
    for about in known.values():
        about["folders"] = {root: folder for root, folder in about["folders"].items() if folder}
    return {
        "sources": {name: {**known.get(name, {}), "taken": taken} for name, taken in counted(rows["source"]).items()},
        OF_A_SUBSET: [
            {"of": base.place, "version": base.version, "fingerprint": base.fingerprint, "where": where, "clips": len(table)}
            for base, table in zip(bases, tables, strict=True)
        ],
        "totals": {"clips": len(rows), "bytes": pc.sum(rows["size"]).as_py(), "seconds": pc.sum(rows["duration"]).as_py()},
    }


@exit_status()
def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="folders or URLs; several are merged, in this order")
    parser.add_argument("--where", metavar="SQL", help="a condition; those that it is true of are taken")
    parser.add_argument("--keys", metavar="FILE", help="a file with a key a line, or keys with commas between: these alone")
    parser.add_argument(
        "--out", required=True, type=on_disk, metavar="SUBSET", help="a new folder, or that of this command before"
    )
    args = parser.parse_args(words)
    number = subset(args.datasets, args.out, args.where, args.keys)
    print(f"{number:>9} clips: {args.out} (report.html shows them)")


if __name__ == "__main__":
    sys.exit(main())
