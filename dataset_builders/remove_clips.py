"""Remove clips for good, as licences and consent ask: their bytes are overwritten, and no training reads them any more.

    tubecell remove-clips DATASET --keys KEYS.txt                           says what would be removed
    tubecell remove-clips DATASET --where "source_id = 'x'" --yes           removes it

The condition is SQL's WHERE over the columns of manifest.parquet (DuckDB evaluates it); KEYS.txt has a key a line.

In the shards their bytes, and the side files' beside them, become zeros and get a name that readers of WebDataset pass over.
Their rows stay, with a `size` of 0: so fingerprint, versions and the place of every other clip stay what they are, and a run on
the dataset goes on. At the positions of removed clips it takes substitutes, as for clips that do not decode; evaluations leave
them out. The build does not make them again. `tubecell subset DATASET --out NEW` makes a dataset without the rows.

A run that is at work now takes them for damaged, and stops when they are many: start it again. A subset of the dataset empties
its rows by its own command, given again.

Not reached: the videos that the dataset was built from; copies, clip caches (TUBECELL_CACHE) and subsets' reports; what was
computed of the clips, pictures of runs, features, logits; and what the rows say besides: path, label, id, boxes.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import os
import tarfile
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.building.jobs import BuildState, write_table
from dataset_builders.checking.shard_checker import is_ours
from dataset_builders.report import write_report
from dataset_builders.tars.headers import BLOCK, read_members
from dataset_builders.tars.writer import REMOVED, dali_index
from dataset_builders.where import chosen_rows, read_keys
from pipeline.console import exit_status
from pipeline.progress import Progress
from pipeline.storage.columns import read_rows
from pipeline.storage.files import origin, write_durably
from pipeline.storage.manifest import Manifest
from pipeline.storage.manifest_writer import write_manifest
from pipeline.storage.remote import on_disk


def remove_clips(dataset: Path, where: str | None, keys: str | None, sure: bool) -> int:
    """Returns the exit status. What was stopped halfway is finished by the same command. Raises ValueError if there is no
    dataset on this disk, nothing says which clips, or a build is at work."""
    Manifest(dataset)  # there is one, of a format that is known
    if origin(dataset):
        raise ValueError(
            f"{dataset} is the mirror of a dataset behind a URL; remove clips of a copy on a disk, and upload that"
        )
    if sure and (dataset / ".build").is_dir():
        with BuildState(dataset) as state:  # no build may be at work, from the first look to the last byte
            return _remove(dataset, where, keys, sure, state)
    return _remove(dataset, where, keys, sure, None)


def _remove(dataset: Path, where: str | None, keys: str | None, sure: bool, state: BuildState | None) -> int:
    rows = read_rows(dataset / "manifest.parquet")
    before = int(pc.sum(pc.equal(rows["size"], 0)).as_py() or 0)
    if where is None and keys is None:
        if not (before and sure):
            raise ValueError("say which clips: --keys or --where")
        print(f"{before:,} clips were removed before: what is left of their bytes is looked for")
    chosen = np.zeros(len(rows), bool)
    if where is not None or keys is not None:
        chosen = chosen_rows(rows, where, None if keys is None else read_keys(keys, [rows]))
    taken = rows.filter(pa.array(chosen))
    foreign = sorted({shard for shard in taken["shard"].to_pylist() if not is_ours(shard)})
    for row in taken.slice(0, 10).to_pylist():
        print(f"  {row['key']}  {row['path'].decode('utf-8', 'backslashreplace')}")
    if len(taken) > 10:
        print(f"  ... {len(taken) - 10:,} more")
    print(f"{len(taken):,} of {len(rows):,} clips")
    if foreign:
        told = f"some lie in {len(foreign)} tars that were there before, such as {foreign[0]}"
        print(f"{told}: no training on this dataset reads them, but their bytes stay there")
    if not sure:
        print("nothing is removed yet; --yes removes them, and nothing brings them back")
        return 0
    if chosen.any():
        if state:
            _mark_markers(state, taken["key"].to_numpy())
        write_manifest(dataset, [(_emptied(rows, chosen), read_rows(dataset / "rejects.parquet"))])
    erased, faults = erase(dataset)
    write_report(dataset)
    print(f"removed: the bytes of {erased:,} clips are overwritten; runs that are at work must be started again")
    for fault in faults:
        print(f"left: {fault}", file=sys.stderr)
    return int(bool(faults))


def _emptied(rows: pa.Table, chosen: np.ndarray) -> pa.Table:
    sizes = np.where(chosen, 0, rows["size"].to_numpy())
    return rows.set_column(rows.column_names.index("size"), "size", pa.array(sizes, pa.int64()))


def _mark_markers(state: BuildState, keys: np.ndarray) -> None:
    """What the manifest is written from when the dataset grows."""
    for job in state.jobs:
        file = state.marker(job).with_suffix(".parquet")
        if file.exists():
            rows = pq.read_table(file)
            chosen = np.isin(rows["key"].to_numpy(), keys)
            if chosen.any():
                write_table(file, _emptied(rows, chosen))


def erase(dataset: Path) -> tuple[int, list[str]]:
    """Overwrite the bytes of all clips that the manifest says were removed, where they are there still -> (how many; shards
    that could not be looked through, and why)."""
    rows = read_rows(dataset / "manifest.parquet", ["key", "shard", "size"], [("size", "==", 0)])
    gone: dict[str, set[str]] = {}
    for key, shard in zip(rows["key"].to_pylist(), rows["shard"].to_pylist(), strict=True):
        if is_ours(shard):
            gone.setdefault(shard, set()).add(key)
    erased, faults = 0, []
    for shard, keys in Progress(gone.items(), desc="erasing", unit="shard"):
        if not (dataset / shard).exists():
            continue  # nothing is in it
        try:
            erased += _erase(dataset / shard, keys)
        except (OSError, ValueError) as error:
            faults.append(f"{dataset / shard}: {error}; see `tubecell verify {dataset}`, then give this command again")
    return erased, faults


def _erase(file: Path, keys: set[str]) -> int:
    """Raises ValueError for a broken tar, OSError if it cannot be written."""
    members, broken = read_members(file)
    if broken:
        raise ValueError(broken.detail)
    found = [member for member in members if member.name.split(".", 1)[0] in keys]
    with open(file, "r+b", buffering=0) as opened:
        for member in found:
            info = tarfile.TarInfo.frombuf(os.pread(opened.fileno(), BLOCK, member.offset - BLOCK), "utf-8", "strict")
            info.name = f"{REMOVED}/{member.name.split('.', 1)[0][-12:]}"  # the hash of a key, and no part of a file's name
            # the bytes first: after the name nothing would find them again
            os.pwrite(opened.fileno(), bytes(-(-member.size // BLOCK) * BLOCK), member.offset)
            os.fsync(opened.fileno())
            os.pwrite(opened.fileno(), info.tobuf(tarfile.USTAR_FORMAT), member.offset - BLOCK)
        os.fsync(opened.fileno())
    left = [(member.name, member.offset, member.size) for member in read_members(file)[0] if "." in member.name]
    write_durably(file.with_suffix(".idx"), dali_index(left).encode())
    return len({member.name.split(".", 1)[0] for member in found})


@exit_status()
def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=on_disk, metavar="DATASET", help="folder with manifest.parquet")
    parser.add_argument("--where", metavar="SQL", help="a condition; those that it is true of are removed")
    parser.add_argument("--keys", metavar="FILE", help="a file with a key a line, or keys with commas between")
    parser.add_argument("--yes", action="store_true", help="remove them; without it they are listed")
    args = parser.parse_args(words)
    return remove_clips(args.dataset, args.where, args.keys, args.yes)


if __name__ == "__main__":
    sys.exit(main())
