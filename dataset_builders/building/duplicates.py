"""One video under two names: the same file by two sources or folders, files with the same bytes, clips that came out equal."""

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from dataset_builders.plan import Drop, Plan, dropped_table
from pipeline.storage.remote import is_url

PART = ("start", "first_frame", "at")  # what tells requests of one file apart
CHUNK = 1 << 20  # bytes


def find_duplicates(plan: Plan, roots: Mapping[str, bytes], drop: bool) -> Plan:
    """What is asked for under two names gets a note; with `drop` it is left out, and files are compared by their bytes, too.

    Of several the first counts, but one of validation or test before one of training, which would be a leak. Only files of
    the same size are read. Two names of one folder are told by the folder itself: a link, or a second mount, is no other one.
    """
    requests, folders = plan.requests, _folders(roots)
    places = sorted(folder.rstrip(b"/") + b"/" for folder in folders.values())
    if not drop and not any(inner.startswith(outer) for outer, inner in pairwise(places)):
        return plan  # no folder is another one, or lies in it
    files = [
        os.path.join(folders[root], path)
        for root, path in zip(requests["root"].to_pylist(), requests["path"].to_pylist(), strict=True)
    ]
    same: list[bytes] = _by_content(files, requests["kind"].to_pylist()) if drop else files
    parts = zip(*(requests[name].to_pylist() for name in PART), strict=True)
    held_out = [split != "train" for split in requests["split"].to_pylist()]
    first: dict[tuple[bytes, tuple], int] = {}
    keys = list(zip(same, parts, strict=True))
    for place in sorted(range(len(keys)), key=lambda place: not held_out[place]):
        first.setdefault(keys[place], place)
    again = [(place, first[key]) for place, key in enumerate(keys) if first[key] != place]
    if not again:
        return plan
    leaks = sum(held_out[of] and not held_out[place] for place, of in again)
    names = [os.fsdecode(files[place]).encode(errors="backslashreplace").decode() for pair in again[:1] for place in pair]
    told = f"{len(again):,} files are there under another name, too, such as {names[0]!r}" + (
        f" which is {names[1]!r}" if names[0] != names[1] else ""
    )
    told += f"; {leaks:,} of them are for training here and for validation or test there" if leaks else ""
    told += ": left out" if drop else ": each is taken twice, --drop-duplicates leaves them out"
    parts_of = dict(plan.parts)
    for name in {requests["source"][place].as_py() for place, _ in again}:
        parts_of[name] = replace(parts_of[name], notes=(*parts_of[name].notes, f"{name}: {told}"))
    plan = replace(plan, parts=parts_of)
    if not drop:
        return plan
    twice = requests.take(pa.array([place for place, _ in again]))
    reasons = [str(Drop.LEAK if held_out[of] and not held_out[place] else Drop.DUPLICATE) for place, of in again]
    details = [f"is the same as {os.fsdecode(files[of])!r} of {requests['source'][of].as_py()}" for _, of in again]
    details = [detail.encode(errors="backslashreplace").decode() for detail in details]
    columns = {name: twice[name] for name in ("source", "root", "path", "split", "source_id")}
    dropped = dropped_table({**columns, "reason": reasons, "detail": details}, len(twice))
    keep = np.ones(len(requests), bool)
    keep[[place for place, _ in again]] = False
    return replace(plan, requests=requests.filter(pa.array(keep)), dropped=pa.concat_tables([plan.dropped, dropped]))


def _folders(roots: Mapping[str, bytes]) -> dict[str, bytes]:
    """The folder behind each root, by one name where several lead to it."""
    found: dict[str, bytes] = {}
    known: dict[tuple[int, int], bytes] = {}
    for root, folder in roots.items():
        found[root] = folder
        if not is_url(os.fsdecode(folder)):
            status = os.stat(folder)
            found[root] = known.setdefault((status.st_dev, status.st_ino), os.path.realpath(folder))
    return found


def _by_content(files: list[bytes], kinds: list[str]) -> list[bytes]:
    """A name for the bytes of each video whose size another one has; for all else its own."""

    def size(place: int) -> int:
        try:
            return os.stat(files[place]).st_size if kinds[place] == "video" else 0
        except OSError:
            return 0

    def digest(place: int) -> bytes:
        found = xxhash.xxh3_128()
        try:
            with open(files[place], "rb") as opened:
                while data := opened.read(CHUNK):
                    found.update(data)
        except OSError:
            return files[place]
        return b"\0" + found.digest()

    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size, range(len(files))))
        often = Counter(sizes)
        shared = [place for place, number in enumerate(sizes) if number and often[number] > 1]
        digests = dict(zip(shared, pool.map(digest, shared), strict=True))
    return [digests.get(place, file) for place, file in enumerate(files)]


def equal_clips(dataset: Path) -> tuple[int, int]:
    """(clips of a manifest that have the bytes of one before them, those contents that are in training and held out, too)"""
    rows = pq.read_table(dataset / "manifest.parquet", columns=["content_hash", "split"])
    train = pc.equal(rows["split"], "train")
    here, there = (pc.unique(rows["content_hash"].filter(of)) for of in (train, pc.invert(train)))
    both = pc.sum(pc.is_in(here, value_set=there)).as_py() or 0
    return len(rows) - pc.count_distinct(rows["content_hash"]).as_py(), both
