"""Subsets of datasets, and several merged into one: a manifest of chosen clips, which stay in the shards where they are.

    tubecell subset DATASET --where "source = 'ssv2' AND duration > 2" --out SUBSET
    tubecell subset DATASET --where "extra->>'licence' = 'CC0'" --out SUBSET
    tubecell subset DATASET OTHER ... --out MERGED

The condition is SQL's WHERE over the columns of manifest.parquet (DuckDB evaluates it). No byte of a clip is read or copied, so
it takes seconds; the datasets must stay where they are. What is made is a dataset like any other, with a fingerprint of its
own. The same command again, when DATASET has grown, adds what is new as a version. A clip that several have, with the same
bytes, is there once; one that was removed (`tubecell remove-clips`) is in none.
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

from dataset_builders.pages.counts import counted
from dataset_builders.report import write_report
from dataset_builders.where import chosen_rows
from pipeline.console import exit_status
from pipeline.storage.columns import read_rows
from pipeline.storage.files import write_durably
from pipeline.storage.key_frames import ACTIONS, BOXES, KEY_FRAMES, Action
from pipeline.storage.key_frames_writer import write_key_frames
from pipeline.storage.manifest import Manifest
from pipeline.storage.manifest_writer import REJECT_SCHEMA, write_manifest
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from pipeline.version import version

OF_A_SUBSET = "subset"  # in dataset.json


def subset(places: Sequence[str], out: Path, where: str | None = None, keys: str | None = None) -> int:
    """Write OUT of the chosen clips of datasets, folders or URLs, in their order -> how many there are.

    Raises ValueError if one is no dataset, the condition none, two clips have one key and different bytes, or OUT is something
    else already.
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
    tables = [_chosen(base, where, keys) for base in bases]
    for table, base in zip(tables, bases, strict=True):
        print(f"{len(table):>9} of {len(base)} clips of {base.place}")
    rows = _once(pa.concat_tables(tables))
    if not len(rows):
        raise ValueError("no clip is chosen: there would be nothing in the dataset")
    out.mkdir(parents=True, exist_ok=True)
    versions = write_manifest(out, [(rows, REJECT_SCHEMA.empty_table())])
    _write_key_frames(bases, rows["key"], out)
    write_durably(file, (json.dumps(_description(bases, tables, where, rows, versions), indent=1) + "\n").encode())
    write_report(out)
    return len(rows)


def _chosen(base: Manifest, where: str | None, keys: str | None) -> pa.Table:
    """Rows of a dataset, whose shards have names that lead there from anywhere."""
    rows = read_rows(base.root / "manifest.parquet")
    rows = rows.filter(pa.array(chosen_rows(rows, where, keys)))
    home = base.place if "://" in base.place else str(Path(base.place).resolve())
    shards = rows["shard"].combine_chunks().dictionary_encode()
    names = [name if "://" in name or name.startswith("/") else f"{home}/{name}" for name in shards.dictionary.to_pylist()]
    return rows.set_column(rows.column_names.index("shard"), "shard", pa.array(names, pa.string()).take(shards.indices))


def _once(rows: pa.Table) -> pa.Table:
    """Without the clips that are there before, in another dataset."""
    keys = rows["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return rows
    hashes, same = rows["content_hash"].to_numpy(), np.arange(len(rows)) == first[of]
    if (other := np.flatnonzero(hashes != hashes[first[of]])).size:
        a, b = (rows.slice(int(place), 1).to_pylist()[0] for place in (first[of][other[0]], other[0]))
        told = f"clip {a['key']} has other bytes in {a['shard']} than in {b['shard']}"
        raise ValueError(f"{told}: they were encoded differently; choose one of them by --where")
    print(f"{len(rows) - len(first):>9} clips are in several of them, with the same bytes: once is enough")
    return rows.filter(pa.array(same))


def _write_key_frames(bases: Sequence[Manifest], keys: pa.ChunkedArray, out: Path) -> None:
    """Tables of boxes, where the datasets have some."""
    there = [base.root for base in bases if (base.root / KEY_FRAMES).exists()]
    if not there:
        return
    frames, boxes = (
        pa.concat_tables([pq.read_table(root / name) for root in there]).combine_chunks() for name in (KEY_FRAMES, BOXES)
    )
    frames, boxes = (table.filter(pc.is_in(table["key"], value_set=keys.combine_chunks())) for table in (frames, boxes))
    actions = {action["id"]: Action(**action) for root in there for action in json.loads((root / ACTIONS).read_bytes())}
    write_key_frames(out, frames, boxes, list(actions.values()))


def _description(
    bases: Sequence[Manifest], tables: Sequence[pa.Table], where: str | None, rows: pa.Table, versions: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """dataset.json."""
    known: dict[str, Any] = {}
    for base in bases:
        file = base.root / "dataset.json"
        for name, about in (json.loads(file.read_bytes()).get("sources", {}) if file.exists() else {}).items():
            known.setdefault(name, {"kind": about.get("kind"), "folders": about.get("folders", {})})
    return {
        "sources": {name: {**known.get(name, {}), "taken": taken} for name, taken in counted(rows["source"]).items()},
        OF_A_SUBSET: [
            {"of": base.place, "version": base.version, "fingerprint": base.fingerprint, "where": where, "clips": len(table)}
            for base, table in zip(bases, tables, strict=True)
        ],
        "totals": {"clips": len(rows), "bytes": pc.sum(rows["size"]).as_py(), "seconds": pc.sum(rows["duration"]).as_py()},
        "versions": [{**entry, "tools": {"tubecell": version()}} for entry in versions],
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
