"""What of a plan is done, so that a killed build goes on and a finished one is left alone.

    DATASET/.build/
      lock               held while a build runs; shared by the processes of --job
      plan.lock          held for the moment in which one of them writes the plan
      options.json       what decides the bytes; a later build must agree
      plan-000.parquet   the requests of the first build, a row group per job; 001, 002 ... those that were added later
      done/NAME-000000.parquet, .json   a finished job: the rows of its clips; its rejects and totals, written last
      finished.json      what manifest.parquet covers, written after it

A job is a run of requests of one source, about --clips-per-shard clips, and becomes one shard of the same name. A plan is
written before its jobs begin and never changes: what a job's shard holds is decided there, not by when or where it runs. So
any number of processes, on any machines that see DATASET, can each do some of the jobs. A dataset behind a URL is built in a
local work folder that looks the same, and shares its state through the URL (store.py).
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.plan import Plan
from pipeline.files import write_durably
from pipeline.manifest import REJECT_SCHEMA, SCHEMA


@dataclass(frozen=True, slots=True)
class Job:
    """Some requests of a source, which become one shard."""

    name: str  # of the shard, without directory and extension
    source: str
    plan: int  # number of the plan file
    group: int  # its row group
    requests: int
    digest: str  # of its requests: a marker that tells of others is not this job's


class Hold(Enum):
    """Who may write a dataset beside this process."""

    ALONE = "alone"
    SHARE = "share"  # the processes of --job, each its own jobs
    STARTER = "starter"  # the process that started this one has the lock


class BuildState:
    """Reads and writes DATASET/.build; a context manager, because it holds a lock."""

    def __init__(self, dataset: Path, hold: Hold = Hold.ALONE) -> None:
        """Take the lock of DATASET, making it if need be; raises ValueError if that cannot be."""
        self.dataset = dataset
        self.root = dataset / ".build"
        self.elsewhere: dict[str, int] = {}  # sizes of the shards, by their jobs' names, that lie behind a URL: see store.py
        (self.root / "done").mkdir(parents=True, exist_ok=True)
        (dataset / "shards").mkdir(exist_ok=True)
        self._lock = (self.root / "lock").open("a+")
        if hold is Hold.STARTER:
            return
        try:
            fcntl.flock(self._lock, (fcntl.LOCK_SH if hold is Hold.SHARE else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"another build is writing {dataset}; wait for it to end") from None
        if hold is Hold.ALONE:
            for leftover in [*dataset.glob("shards/.*.tmp"), *self.root.glob("**/.*.tmp"), *dataset.glob(".*.tmp")]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def agree_on_options(self, options: dict[str, Any]) -> None:
        """Keep the options of the first plan; raises ValueError that names those which differ from them.

        `options["sources"]` has those of each source: sources may join later, and be left out, but not change.
        """
        file = self.root / "options.json"
        before = json.loads(file.read_bytes()) if self.plans() else {"sources": {}}
        options = json.loads(json.dumps(options))  # as they will be read: tuples as lists
        pairs = {f"--{name.replace('_', '-')}": name for name in before | options if name != "sources"}
        changes = [
            f"{flag} was {before[name]} and is now {options.get(name)}"
            for flag, name in pairs.items()
            if before.get(name, options.get(name)) != options.get(name)
        ]
        for source, now in options["sources"].items():
            was = before["sources"].get(source, now)
            changes += [
                f"{name} of source {source} was {was.get(name)} and is now {now.get(name)}"
                for name in was | now
                if was.get(name) != now.get(name)
            ]
        if changes:
            told = "; ".join(changes)
            raise ValueError(f"{self.dataset} was built with other options: {told}. Use the old ones, or another --out")
        write_durably(file, json.dumps({**options, "sources": before["sources"] | options["sources"]}, indent=1).encode())

    def extend(self, plan: Plan, options: dict[str, Any], clips_per_shard: int) -> dict[str, tuple[int, str]]:
        """Write a plan for the requests that no earlier one has; -> {source: (number of vanished files, one of them)}."""
        with (self.root / "plan.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a share that comes second finds nothing new
            self.agree_on_options(options)
            known = self._known_keys()
            keys = plan.requests["key"]
            new = plan.requests.filter(pc.invert(pc.is_in(keys, value_set=known["key"]))) if len(known) else plan.requests
            if len(new):
                self._write_plan(new, clips_per_shard)
        if not len(known):
            return {}
        planned = known.filter(pc.is_in(known["source"], value_set=pa.array(plan.sources, pa.string())))
        gone = planned.filter(pc.invert(pc.is_in(planned["key"], value_set=keys)))
        counts = Counter(gone["source"].to_pylist())
        first = {source: gone["path"][pc.index(gone["source"], source).as_py()].as_py() for source in counts}
        return {source: (number, os.fsdecode(first[source])) for source, number in counts.items()}

    def _known_keys(self) -> pa.Table:
        tables = [pq.read_table(file, columns=["key", "source", "path"]) for file in self.plans()]
        return pa.concat_tables(tables) if tables else pa.table({"key": pa.array([], pa.string())})

    def _write_plan(self, requests: pa.Table, clips_per_shard: int) -> None:
        number = len(self.plans())
        counts = Counter(job.source for job in self.jobs)
        file = self.root / f"plan-{number:03d}.parquet"
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        jobs = []
        with pq.ParquetWriter(temporary, requests.schema, compression="zstd", write_statistics=False) as writer:
            for source, part in _runs(requests, clips_per_shard):
                name = f"{source}-{counts[source]:06d}"
                jobs.append({"name": name, "source": source, "requests": len(part), "digest": _digest(part)})
                counts[source] += 1
                writer.write_table(part)
            writer.add_key_value_metadata({b"jobs": json.dumps(jobs).encode()})
        os.replace(temporary, file)
        self.__dict__.pop("jobs", None)

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs of the dataset, in the order of the manifest."""
        jobs = []
        for number, file in enumerate(self.plans()):
            listed = json.loads((pq.read_metadata(file).metadata or {})[b"jobs"])
            jobs += [Job(plan=number, group=i, **{"digest": "", **entry}) for i, entry in enumerate(listed)]
        return jobs

    def requests(self, job: Job) -> pa.Table:
        """What a job asks for, in the order of its shard."""
        return pq.ParquetFile(self.plans()[job.plan]).read_row_group(job.group)

    def is_done(self, job: Job) -> bool:
        """Whether a job's marker and shard are there."""
        file = self.marker(job)
        if not file.exists():
            return False
        content = json.loads(file.read_bytes())
        size, shard = content["shard_size"], self.dataset / "shards" / f"{job.name}.tar"
        if content.get("requests", "") != job.digest:
            return False
        return size in (0, self.elsewhere.get(job.name)) or (shard.exists() and shard.stat().st_size == size)

    def commit(self, job: Job, rows: list[dict[str, Any]], rejects: list[dict[str, Any]], shard_size: int) -> None:
        """Note that a job is finished; its shard, of `shard_size` bytes or none at all, must be on the disk."""
        marker = self.marker(job)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
        write_durably(marker.with_suffix(".parquet"), sink.getvalue())
        content = {
            "requests": job.digest,
            "shard_size": shard_size,
            "clips": len(rows),
            "bytes": sum(row["size"] for row in rows),
            "seconds": sum(row["duration"] for row in rows),
            # JSON has no bytes: os.fsdecode keeps a name that is not UTF-8 as lone surrogates, which JSON can escape
            "rejects": [{**reject, "path": os.fsdecode(reject["path"])} for reject in rejects],
        }
        write_durably(marker, json.dumps(content).encode())

    def parts(self, jobs: Iterable[Job]) -> Iterator[tuple[pa.Table, pa.Table]]:
        """(rows, rejects) of finished jobs, in their order, for `write_manifest`."""
        for job in jobs:
            marker = self.marker(job)
            rejects = json.loads(marker.read_bytes())["rejects"]
            rejected = [{**reject, "path": os.fsencode(reject["path"])} for reject in rejects]
            rows = pq.read_table(marker.with_suffix(".parquet"))
            yield rows, pa.Table.from_pylist(rejected, schema=REJECT_SCHEMA)

    def finished(self) -> dict[str, Any] | None:
        """Totals of a dataset whose manifest covers all jobs and whose shards are all there, else None."""
        file = self.root / "finished.json"
        if not file.exists() or not (self.dataset / "manifest.parquet").exists():
            return None
        content = json.loads(file.read_bytes())
        if content["jobs"] != len(self.jobs):
            return None
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.dataset / "shards")}
        if any(size not in (sizes.get(f"{name}.tar"), self.elsewhere.get(name)) for name, size in content["shards"].items()):
            return None
        totals: dict[str, Any] = content["totals"]
        return totals

    def totals(self, jobs: Sequence[Job]) -> tuple[dict[str, Any], dict[str, int]]:
        """Of finished jobs: clips, rejects, bytes, seconds; and the size of each shard that there is."""
        totals: dict[str, Any] = {"clips": 0, "rejects": 0, "bytes": 0, "seconds": 0.0}
        shards = {}
        for job in jobs:
            marker = json.loads(self.marker(job).read_bytes())
            if marker["shard_size"]:
                shards[job.name] = marker["shard_size"]
            for name in ("clips", "bytes", "seconds"):
                totals[name] += marker[name]
            totals["rejects"] += len(marker["rejects"])
        return totals, shards

    def finish(self, jobs: Sequence[Job], totals: dict[str, Any], shards: dict[str, int]) -> None:
        """Note that manifest and dataset.json cover these jobs."""
        content = {"jobs": len(jobs), "totals": totals, "shards": shards}
        write_durably(self.root / "finished.json", json.dumps(content).encode())

    def marker(self, job: Job) -> Path:
        """The file that says that a job is finished; the rows of its clips lie beside it, as .parquet."""
        return self.root / "done" / f"{job.name}.json"

    def plans(self) -> list[Path]:
        """The plan files, oldest first."""
        return sorted(self.root.glob("plan-*.parquet"))


def _digest(requests: pa.Table) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for batch in requests.combine_chunks().to_batches():
        digest.update(batch.serialize())
    return digest.hexdigest()


def _runs(requests: pa.Table, clips_per_shard: int) -> Iterator[tuple[str, pa.Table]]:
    """Requests -> (source, consecutive requests of it that will give about `clips_per_shard` clips)."""
    sources = requests["source"].combine_chunks().dictionary_encode()
    codes = sources.indices.to_numpy()
    clips = requests["clips"].to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)] if len(codes) else [0]
    for begin, end in pairwise(borders):
        weights = clips[begin:end]
        numbers = (np.cumsum(weights) - weights) // clips_per_shard
        starts = [begin, *(begin + np.flatnonzero(np.diff(numbers)) + 1).tolist(), end]
        for first, last in pairwise(starts):
            yield sources.dictionary[codes[begin]].as_py(), requests.slice(first, last - first)
