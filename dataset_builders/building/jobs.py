"""What of a plan is done, so that a killed build goes on and a finished one is left alone.

    DATASET/.build/
      lock               held while a build runs; shared by the processes of --job
      plan.lock          held for the moment in which one of them writes the plan
      options.json       what decides the bytes; a later build must agree
      plan-000.parquet   the requests of the first build, a row group per job; 001, 002 ... those that were added later, and
                         those that are tried again, see retries.py
      done/NAME-000000.parquet, .json   a finished job: the rows of its clips; its rejects and totals, written last
      finished.json      what manifest.parquet covers, written after it

A job is a run of requests of one source, about --clips-per-shard clips, and becomes one shard of the same name. A plan is
written before its jobs begin and never changes once one is done: what a job's shard holds is decided there, not by when or
where it runs. So any number of processes, on any machines that see DATASET, can each do some of the jobs. A dataset behind a
URL is built in a local work folder that looks the same, and shares its state through the URL (store.py).
"""

import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.media.presets import EncodeOptions, begun_with
from dataset_builders.plan import Plan
from pipeline.settings import completed, renamed
from pipeline.storage.columns import read_rows
from pipeline.storage.file_lock import lock
from pipeline.storage.files import write_durably
from pipeline.storage.manifest_writer import REJECT_SCHEMA, SCHEMA

# what is known of a clip that is about a frame, in the markers of jobs only: see detection/tables.py
KEY_FRAME_COLUMNS = pa.schema(
    [
        ("key_frame", pa.int32()),  # its index in the clip
        ("shown", pa.list_(pa.float64())),  # what the clip shows of the source's picture: x1, y1, x2, y2, fractions of that
    ]
)


@dataclass(frozen=True, slots=True)
class Job:
    """Some requests of a source, which become one shard."""

    name: str  # of the shard, without directory and extension
    source: str
    plan: int  # number of the plan file
    group: int  # its row group
    requests: int
    digest: str  # of its requests: a marker that tells of others is not this job's


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is to be done of a job now: all of it, or what `tried` names."""

    job: Job
    tried: frozenset[str] | None = None  # keys of requests; what an earlier attempt made of the others stays
    held: Mapping[str, str] | None = None  # of a shard that a manifest names: its clips, key -> content hash, and no others
    # of such a shard, if clips of it were removed for good: all its rows by key, in order, those with a size of 0 among them
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()  # keys of clips in earlier shards: those of files that failed halfway
    exact: bool = True  # whether it is an error if `held` does not come out

    @property
    def num_requests(self) -> int:
        return self.job.requests if self.tried is None else len(self.tried)


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
            lock(self._lock, shared=hold is Hold.SHARE)
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

    def begin_anew(self) -> None:
        """Forget plans of which nothing came, as after a start that failed: options, sources and files may be others now. Only
        for who is alone."""
        done, shards = self.root / "done", self.dataset / "shards"
        if not any(done.iterdir()) and not any(shards.glob("*.tar")) and not (self.dataset / "manifest.parquet").exists():
            for file in reversed(self.plans()):
                file.unlink()

    def agree_on_options(self, options: dict[str, Any]) -> None:
        """Keep the options of the first plan; raises ValueError that names those which differ from them.

        `options["sources"]` has those of each source: sources may join later, and be left out, but not change.
        """
        file = self.root / "options.json"
        before = self._options() if self.plans() else options | {"sources": {}}
        defaults = completed({}, EncodeOptions())
        before |= {name: defaults[name] for name in options.keys() - before.keys() if name in defaults}
        if called := before.get("preset"):
            before |= {"preset": begun_with(before), "encoder": options["encoder"]}  # which is what preset and GOP say
        before["sources"] = {source: renamed(values) for source, values in before["sources"].items()}
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
        if called:  # the name that it was begun with: the same command goes on
            options["preset"] = called
        write_durably(file, json.dumps({**options, "sources": before["sources"] | options["sources"]}, indent=1).encode())

    def going_on(self, encoding: EncodeOptions) -> EncodeOptions:
        """What a build that was begun goes on with: FFmpeg's arguments of then, if its preset has others today; it says so.
        Raises ValueError if no preset has them any more."""
        if not self.plans():
            return encoding
        before = completed(self._options(), encoding)
        called, preset = before["preset"], begun_with(before)
        if encoding.preset != called or called == preset:
            return encoding
        print(f"{self.dataset} goes on with what {called} was when it was begun; that is called {preset} now")
        return replace(encoding, preset=preset)

    def _options(self) -> dict[str, Any]:
        """Those of the first plan."""
        return renamed(json.loads((self.root / "options.json").read_bytes()))

    def extend(
        self,
        plan: Plan,
        options: dict[str, Any],
        clips_per_shard: int,
        again: Callable[["BuildState"], pa.Table | None] = lambda state: None,
    ) -> dict[str, tuple[int, str]]:
        """Write a plan for the requests that no earlier one has; -> {source: (number of vanished files, one of them)}.

        `again` says which are to have another plan, because they are tried again.
        """
        keys = plan.requests["key"]
        with (self.root / "plan.lock").open("a+") as opened:
            lock(opened, wait=True)  # a share that comes second finds nothing new
            written = False
            while not written:  # without locks another share may be faster; then its plan is read
                self._forget_plans()
                self.agree_on_options(options)
                repeated = again(self)
                number, known = len(self.plans()), self._known_keys()
                new = plan.requests.filter(pc.invert(pc.is_in(keys, value_set=known["key"]))) if len(known) else plan.requests
                written = not len(new) or self._write_plan(new, clips_per_shard, number)
                if written and repeated is not None and len(repeated):
                    written = self._write_plan(repeated, clips_per_shard, number + bool(len(new)), again=True)
        if not len(known):
            return {}
        planned = known.filter(pc.is_in(known["source"], value_set=pa.array(plan.sources, pa.string())))
        gone = planned.filter(pc.invert(pc.is_in(planned["key"], value_set=keys)))
        counts = Counter(gone["source"].to_pylist())
        first = {source: gone["path"][pc.index(gone["source"], source).as_py()].as_py() for source in counts}
        return {source: (number, os.fsdecode(first[source])) for source, number in counts.items()}

    def _known_keys(self) -> pa.Table:
        tables = [pq.read_table(file, columns=["key", "source", "path"]) for file in self.first_plans()]
        return pa.concat_tables(tables) if tables else pa.table({"key": pa.array([], pa.string())})

    def _write_plan(self, requests: pa.Table, clips_per_shard: int, number: int, again: bool = False) -> bool:
        """Whether it became the plan of that number, which another share may have written meanwhile."""
        self._forget_plans()
        counts = Counter(job.source for job in self.jobs)
        file = self.root / f"plan-{number:03d}.parquet"
        temporary = file.with_name(f".{file.name}.{platform.node()}-{os.getpid()}.tmp")
        jobs = []
        with pq.ParquetWriter(temporary, requests.schema, compression="zstd", write_statistics=False) as writer:
            for source, part in _runs(requests, clips_per_shard):
                name = f"{source}-{counts[source]:06d}"
                jobs.append({"name": name, "source": source, "requests": len(part), "digest": _digest(part)})
                counts[source] += 1
                writer.write_table(part)
            writer.add_key_value_metadata({b"jobs": json.dumps(jobs).encode(), **({b"again": b"1"} if again else {})})
        self._forget_plans()
        try:
            os.link(temporary, file)  # which fails where there is one, unlike a rename
        except FileExistsError:
            time.sleep(0.1)  # network file systems show new files late
            return False
        except OSError:  # no hard links there
            os.replace(temporary, file)
            return True
        temporary.unlink()
        return True

    def _forget_plans(self) -> None:
        for name in ("jobs", "_repeated", "_latest", "_clips_of_repeated"):
            self.__dict__.pop(name, None)

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs of the dataset, in the order of the manifest."""
        jobs = []
        for number, file in enumerate(self.plans()):
            listed = json.loads((pq.read_metadata(file).metadata or {})[b"jobs"])
            jobs += [Job(plan=number, group=i, **{"digest": "", **entry}) for i, entry in enumerate(listed)]
        return jobs

    @cached_property
    def _repeated(self) -> dict[int, list[str]]:
        """Numbers of the plans of requests that are tried again -> their keys, which an earlier plan has, too."""
        plans = enumerate(self.plans())
        repeated = [number for number, file in plans if b"again" in (pq.read_metadata(file).metadata or {})]
        return {number: pq.read_table(self.plans()[number], columns=["key"])["key"].to_pylist() for number in repeated}

    @cached_property
    def _latest(self) -> dict[str, int]:
        """Requests that are tried again -> the number of the last plan that has them."""
        return {key: number for number, keys in sorted(self._repeated.items()) for key in keys}

    def is_repeated(self, job: Job) -> bool:
        """Whether all requests of a job are tried again in it."""
        return job.plan in self._repeated

    def requests(self, job: Job) -> pa.Table:
        """What a job asks for, in the order of its shard."""
        return pq.ParquetFile(self.plans()[job.plan]).read_row_group(job.group)

    def is_done(self, job: Job) -> bool:
        """Whether a job's marker and shard are there."""
        if not self.marker(job).exists() or (content := self.content(job)).get("requests", "") != job.digest:
            return False
        size, shard = content["shard_size"], self.dataset / "shards" / f"{job.name}.tar"
        return size in (0, self.elsewhere.get(job.name)) or (shard.exists() and shard.stat().st_size == size)

    @property
    def num_published(self) -> int:
        """Jobs up to the last one whose clips a manifest names: these keep what they have, those after it may get more."""
        manifest = self.dataset / "manifest.parquet"
        if not manifest.exists():
            return 0
        file = pq.ParquetFile(manifest)
        groups = [i for i in range(file.metadata.num_row_groups) if file.metadata.row_group(i).num_rows]
        if not groups:
            return 0
        last = file.read_row_group(groups[-1], columns=["key", "shard"])
        key, shard = last["key"][-1].as_py(), last["shard"][-1].as_py()
        for number, job in enumerate(self.jobs):
            if shard == f"shards/{job.name}.tar" and not self.is_indexed(job):
                return number + 1
        for number in reversed(range(len(self.jobs))):
            if self.is_indexed(self.jobs[number]) and key in self.keys(self.jobs[number]):
                return number + 1
        return 0

    def is_indexed(self, job: Job) -> bool:
        """Whether the clips of a job stay in the tars where they are, so that it has no shard."""
        return bool(self.requests(job)["kind"][0].as_py() == "member")

    def keys(self, job: Job) -> list[str]:
        """Of its requests."""
        return self.requests(job)["key"].to_pylist()

    def is_tried_later(self, job: Job, key: str) -> bool:
        """Whether a later plan has a request of a job, too."""
        return self._latest.get(key, 0) > job.plan

    def elsewhere_of(self, job: Job) -> frozenset[str]:
        """Keys of published clips that are of the requests of a job which tries them again: of files that failed halfway."""
        if not self.is_repeated(job):
            return frozenset()
        return frozenset(clip for key in self.keys(job) for clip in self._clips_of_repeated.get(key, ()))

    @cached_property
    def _clips_of_repeated(self) -> dict[str, list[str]]:
        """Requests that are tried again -> keys of their published clips."""
        manifest = self.dataset / "manifest.parquet"
        found: dict[str, list[str]] = {}
        if manifest.exists():
            clips, requests = pq.read_table(manifest, columns=["key"])["key"], pa.array(list(self._latest), pa.string())
            parts = pc.is_in(pc.replace_substring_regex(clips, r"-\d{3,}$", ""), value_set=requests)
            for clip in clips.filter(pc.or_(parts, pc.is_in(clips, value_set=requests))).to_pylist():
                found.setdefault(clip if clip in self._latest else clip.rpartition("-")[0], []).append(clip)
        return found

    def held(self, job: Job) -> dict[str, dict[str, Any]]:
        """The clips of a job that a manifest names, removed ones among them: key -> row."""
        filters = pc.field("shard") == f"shards/{job.name}.tar"
        if self.is_indexed(job):
            own = [key for key in self.keys(job) if not self.is_tried_later(job, key)]
            filters = pc.field("key").isin(pa.array(own, pa.string()))
        return {row["key"]: row for row in read_rows(self.dataset / "manifest.parquet", filters=filters).to_pylist()}

    def commit(self, job: Job, rows: list[dict[str, Any]], rejects: list[dict[str, Any]], shard_size: int) -> None:
        """Note that a job is finished; its shard, of `shard_size` bytes or none at all, must be on the disk."""
        marker = self.marker(job)
        known = SCHEMA if not any("key_frame" in row for row in rows) else pa.schema([*SCHEMA, *KEY_FRAME_COLUMNS])
        write_table(marker.with_suffix(".parquet"), pa.Table.from_pylist(rows, schema=known))
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
            rows = pq.read_table(self.marker(job).with_suffix(".parquet"))
            yield rows, pa.Table.from_pylist(self.rejects(job), schema=REJECT_SCHEMA)

    def rejects(self, job: Job) -> list[dict[str, Any]]:
        """Of a finished job, but for those whose requests a later plan tries again."""
        rejects = [{**reject, "path": os.fsencode(reject["path"])} for reject in self.content(job)["rejects"]]
        if not rejects or not self._latest:
            return rejects
        requests = zip(rejects, self.rejected_requests(job, rejects), strict=True)
        return [reject for reject, keys in requests if not keys or not all(self.is_tried_later(job, key) for key in keys)]

    def strike(self, job: Job, resolved: Collection[tuple[str, str, bytes]]) -> None:
        """Take the rejects of these (source, root, path) out of a finished job."""
        content = self.content(job)
        files = [(reject["source"], reject["root"], os.fsencode(reject["path"])) for reject in content["rejects"]]
        content["rejects"] = [one for one, file in zip(content["rejects"], files, strict=True) if file not in resolved]
        write_durably(self.marker(job), json.dumps(content).encode())

    def rejected_requests(self, job: Job, rejects: Sequence[Mapping[str, Any]]) -> list[frozenset[str]]:
        """Keys of the request that each is of. Markers of older code do not say: of all requests that it may be of."""
        if all("key" in reject for reject in rejects):
            return [frozenset([reject["key"]]) for reject in rejects]
        columns = ["key", "root", "path", "start", "end"]
        requests: dict[tuple[str, bytes], list[dict[str, Any]]] = {}
        for request in self.requests(job).select(columns).to_pylist():
            requests.setdefault((request["root"], request["path"]), []).append(request)
        clips = pq.read_table(self.marker(job).with_suffix(".parquet"), columns=["key"])["key"].to_pylist()
        taken = {*clips, *(key.rpartition("-")[0] for key in clips)}
        found = []
        for reject in rejects:
            fits = requests.get((reject["root"], reject["path"]), [])
            if (start := reject.get("start")) is not None:
                part = [one for one in fits if (one["start"], one["end"]) == (start, reject.get("end"))]
                fits = part or [one for one in fits if (one["start"] or 0) <= start < (one["end"] or math.inf)] or fits
            bare = [one for one in fits if one["key"] not in taken]
            found.append(frozenset(one["key"] for one in bare or fits))
        return found

    def content(self, job: Job) -> dict[str, Any]:
        """What `commit` wrote down of a finished job."""
        return json.loads(self.marker(job).read_bytes())

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
        if all(self.marker(job).exists() for job in self.jobs):  # without them nothing was tried again
            now, _, digest = self.totals(self.jobs)
            if now != content["totals"] or digest != content.get("rejects", digest):
                return None
        return content["totals"]

    def totals(self, jobs: Sequence[Job]) -> tuple[dict[str, Any], dict[str, int], str]:
        """Of finished jobs: clips, rejects, bytes, seconds; the size of each shard that there is; a digest of the rejects."""
        digest = hashlib.blake2b(digest_size=16)
        totals: dict[str, Any] = {"clips": 0, "rejects": 0, "bytes": 0, "seconds": 0.0}
        shards = {}
        for job in jobs:
            content = self.content(job)
            if content["shard_size"]:
                shards[job.name] = content["shard_size"]
            for name in ("clips", "bytes", "seconds"):
                totals[name] += content[name]
            rejects = self.rejects(job)
            totals["rejects"] += len(rejects)
            for reject in rejects:
                digest.update(repr([reject.get(name) for name in REJECT_SCHEMA.names]).encode("utf-8", "backslashreplace"))
        return totals, shards, digest.hexdigest()

    def finish(self, jobs: Sequence[Job], totals: dict[str, Any], shards: dict[str, int], rejects: str) -> None:
        """Note that manifest and dataset.json cover these jobs; `rejects` is their digest."""
        content = {"jobs": len(jobs), "totals": totals, "shards": shards, "rejects": rejects}
        write_durably(self.root / "finished.json", json.dumps(content).encode())

    def marker(self, job: Job) -> Path:
        """The file that says that a job is finished; the rows of its clips lie beside it, as .parquet."""
        return self.root / "done" / f"{job.name}.json"

    def plans(self) -> list[Path]:
        """The plan files, oldest first."""
        return sorted(self.root.glob("plan-*.parquet"))

    def first_plans(self) -> list[Path]:
        """Those of requests that no earlier plan has."""
        return [file for number, file in enumerate(self.plans()) if number not in self._repeated]


def write_table(file: Path, table: pa.Table) -> None:
    """As Parquet, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_durably(file, sink.getvalue())


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
