"""The plan of a build and what is done of it, so that a killed build goes on and a finished one is left alone.

    DATASET/.build/
      lock               held while a build runs
      options.json       what decides the bytes; a later build must agree
      plan-000.json      the jobs of the first build; 001, 002 ... those for files that were added later
      done/NAME-000000.json   a finished job: its rows and rejects, written after its shard
      finished.json      what manifest.parquet covers, written after it

A job is a run of up to --clips-per-shard files of a source and becomes one shard of the same name. A plan is written before
its jobs begin and never changes: what a job's shard holds is decided there, not by the moment at which it runs.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dataset_builders.writer import write_durably


@dataclass(frozen=True, slots=True)
class Job:
    """Some files of a source, which become one shard."""

    name: str  # of the shard, without directory and extension
    source: str
    paths: tuple[bytes, ...]  # relative to the source's folder


class BuildState:
    """Reads and writes DATASET/.build; a context manager, because it holds a lock."""

    def __init__(self, dataset: Path) -> None:
        """Lock DATASET, making it if need be; raises ValueError if another build holds it."""
        self.dataset = dataset
        self.root = dataset / ".build"
        (self.root / "done").mkdir(parents=True, exist_ok=True)
        (dataset / "shards").mkdir(exist_ok=True)
        self._lock = (self.root / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"another build is writing {dataset}; wait for it to end") from None
        for leftover in [*dataset.glob("shards/.*.tmp"), *self.root.glob("**/.*.tmp"), *dataset.glob(".*.tmp")]:
            leftover.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def agree_on_options(self, options: dict[str, Any]) -> None:
        """Keep the options of the first plan; raises ValueError that names those which differ from them."""
        file = self.root / "options.json"
        before = json.loads(file.read_bytes()) if self._plans() else options
        differing = [name for name in before | options if options.get(name) != before.get(name)]
        if differing:
            changes = "; ".join(
                f"--{name.replace('_', '-')} was {before.get(name)} and is now {options.get(name)}" for name in differing
            )
            raise ValueError(f"{self.dataset} was built with other options: {changes}. Use the old ones, or another --out")
        if not file.exists() or not self._plans():
            write_durably(file, json.dumps(options, indent=1).encode())

    def plan(self, files: Mapping[str, Sequence[bytes]], clips_per_shard: int) -> tuple[list[Job], dict[str, list[bytes]]]:
        """{source: its files} -> (all jobs of the dataset in the order of the manifest, {source: vanished files}).

        Files that no plan has yet become new jobs after the existing ones.
        """
        jobs = [job for file in self._plans() for job in _read_plan(file)]
        planned: dict[str, set[bytes]] = {source: set() for source in files}
        counts = dict.fromkeys(files, 0)
        for job in jobs:
            if job.source in files:
                planned[job.source].update(job.paths)
                counts[job.source] += 1
        added = []
        for source, paths in files.items():
            new = [path for path in paths if path not in planned[source]]
            for number, start in enumerate(range(0, len(new), clips_per_shard), start=counts[source]):
                added.append(Job(f"{source}-{number:06d}", source, tuple(new[start : start + clips_per_shard])))
        if added:
            content = [{"name": job.name, "source": job.source, "paths": list(map(os.fsdecode, job.paths))} for job in added]
            write_durably(self.root / f"plan-{len(self._plans()):03d}.json", json.dumps(content).encode())
        vanished = {source: sorted(planned[source] - set(paths)) for source, paths in files.items()}
        return jobs + added, {source: paths for source, paths in vanished.items() if paths}

    def is_done(self, job: Job) -> bool:
        """Whether a job's marker and shard are there."""
        file = self._marker(job)
        if not file.exists():
            return False
        shard = self.dataset / "shards" / f"{job.name}.tar"
        size = json.loads(file.read_bytes())["shard_size"]
        return size == 0 or (shard.exists() and shard.stat().st_size == size)

    def commit(self, job: Job, rows: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> None:
        """Note that a job is finished; its shard must be on the disk."""
        shard = self.dataset / "shards" / f"{job.name}.tar"
        content = {
            "shard_size": shard.stat().st_size if rows else 0,
            "rows": [_text_path(row) for row in rows],
            "rejects": [_text_path(row) for row in rejects],
        }
        write_durably(self._marker(job), json.dumps(content).encode())

    def results(self, jobs: Sequence[Job]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Finished jobs -> (rows of the manifest, rows of the rejects), in the jobs' order."""
        rows: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for job in jobs:
            content = json.loads(self._marker(job).read_bytes())
            rows.extend(_bytes_path(row) for row in content["rows"])
            rejects.extend(_bytes_path(row) for row in content["rejects"])
        return rows, rejects

    def finished(self, jobs: Sequence[Job]) -> dict[str, int] | None:
        """{"clips": ..., "rejects": ...} if the manifest covers these jobs and their shards are all there, else None."""
        file = self.root / "finished.json"
        if not file.exists() or not (self.dataset / "manifest.parquet").exists():
            return None
        content = json.loads(file.read_bytes())
        for name, size in content["shards"].items():
            shard = self.dataset / name
            if not shard.exists() or shard.stat().st_size != size:
                return None
        return content["counts"] if content["jobs"] == len(jobs) else None

    def finish(self, jobs: Sequence[Job], rows: Sequence[dict[str, Any]], rejects: Sequence[dict[str, Any]]) -> None:
        """Note that manifest and dataset.json cover these jobs."""
        shards = {name: (self.dataset / name).stat().st_size for name in dict.fromkeys(row["shard"] for row in rows)}
        counts = {"clips": len(rows), "rejects": len(rejects)}
        content = {"jobs": len(jobs), "counts": counts, "shards": shards}
        write_durably(self.root / "finished.json", json.dumps(content).encode())

    def _marker(self, job: Job) -> Path:
        return self.root / "done" / f"{job.name}.json"

    def _plans(self) -> list[Path]:
        return sorted(self.root.glob("plan-*.json"))


def _read_plan(file: Path) -> list[Job]:
    return [
        Job(entry["name"], entry["source"], tuple(os.fsencode(path) for path in entry["paths"]))
        for entry in json.loads(file.read_bytes())
    ]


def _text_path(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no bytes: os.fsdecode keeps a name that is not UTF-8 as lone surrogates, which JSON can escape."""
    return {**row, "path": os.fsdecode(row["path"])}


def _bytes_path(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "path": os.fsencode(row["path"])}
