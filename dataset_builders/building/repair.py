"""`--repair RUN/failures.jsonl`: look at the clips that a training run could not decode, and make damaged shards anew.

A clip that a run complains of is one of three things:

- right, and only the storage or a time limit failed that day: nothing is done;
- no longer what the manifest says, because its shard rotted, was cut off or is lost: the shard is made anew from the sources,
  beside the old one, and takes its place if it holds exactly the bytes that the manifest names. So every version of the dataset
  stays what it was, and runs on it go on;
- still the bytes that were built, and they do not decode here: making them anew would give the same. A version never loses a
  row; training replaces such clips. Indexing the shards (`build_dataset.py --index`) makes a dataset without them, and copies
  nothing.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset_builders.building.build import open_store
from dataset_builders.building.encode import encode
from dataset_builders.building.jobs import BuildState, Hold, Job
from dataset_builders.building.request import Build
from dataset_builders.building.retries import anew
from dataset_builders.building.store import Store, claim
from dataset_builders.checking.recheck import failed_keys, one_line, recheck, repair
from dataset_builders.checking.shard_checker import Fault
from pipeline.storage.columns import read_rows
from pipeline.storage.files import sync_directory

MADE_ANEW = {Fault.SHARD, Fault.TAR, Fault.INDEX, Fault.RANGE, Fault.MEMBER, Fault.CONTENT, Fault.SIDE_FILE}
HELD = ["key", "offset", "size", "content_hash"]  # what a shard must hold for each row of the manifest


def repair_failures(build: Build, failures: Path) -> int:
    """Returns the exit status: 0 if all clips are right or were put right, else 1.

    Raises ValueError if there is no finished dataset, it was built otherwise, or `failures` is no such file.
    """
    if not failures.is_file():
        raise ValueError(f"--repair {failures}: there is no such file; wanted is the failures.jsonl of a training run")
    keys = failed_keys(failures)
    unfinished = ValueError(f"--repair: {build.place} is no finished dataset; build it first, with the same command")
    if not build.url and not (build.out / "manifest.parquet").is_file():
        raise unfinished
    claim(build.out, build.url)
    with BuildState(build.out) as state, open_store(build, state) as store:
        if not (state.dataset / "manifest.parquet").is_file():
            raise unfinished
        build = replace(build, encoding=state.going_on(build.encoding))
        state.agree_on_options(build.options())
        limits = build.limits
        findings = list(recheck(state.dataset, workers=limits.workers, keys=keys, memory_limit=limits.memory_limit))
        if not findings:
            print(f"{build.place}: the {len(keys)} clips are as they were built, and decode: nothing to repair")
            return 0
        print("\n".join(map(one_line, findings)))
        jobs = {f"shards/{job.name}.tar": job for job in state.jobs}
        damaged = {finding.shard for finding in findings if finding.what in MADE_ANEW} & set(jobs)
        repaired = make_anew([jobs[shard] for shard in sorted(damaged)], state, build, store)
        left = [finding for finding in findings if finding.shard not in repaired]
        for text in dict.fromkeys(repair(state.dataset, finding) for finding in left if finding.shard not in damaged):
            print(f"left      {text}")
        return 1 if left else 0


def make_anew(jobs: Sequence[Job], state: BuildState, build: Build, store: Store | None) -> set[str]:
    """Encode jobs again, in a folder of their own, and put in place what the manifest can go on with -> those shards."""
    taken: set[str] = set()
    with (
        tempfile.TemporaryDirectory(prefix=".repair-", suffix=".tmp", dir=state.root) as folder,
        BuildState(Path(folder), Hold.STARTER) as aside,
    ):
        for plan in state.plans():
            shutil.copyfile(plan, aside.root / plan.name)
        encode(aside, [anew(state, job, exact=False) for job in jobs], build)
        for job in jobs:
            shard = f"shards/{job.name}.tar"
            filters = [("shard", "==", shard)]
            wanted = read_rows(state.dataset / "manifest.parquet", [*HELD, "path"], filters).to_pylist()
            [(made, rejects)] = aside.parts([job])  # without what was rejected when the shard was first made
            if why := difference(wanted, made.to_pylist(), rejects.to_pylist()):
                print(f"left      {shard} as it is: made anew, {why}")
                continue
            for name in (shard.replace(".tar", ".idx"), shard):
                os.replace(aside.dataset / name, state.dataset / name)
            sync_directory(state.dataset / "shards")
            print(f"repaired  {shard}: made anew, with the same {len(wanted)} clips")
            taken.add(shard)
            if store:
                store.add(job)
    if store:
        store.wait()
    return taken


def difference(
    wanted: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]], rejects: Sequence[Mapping[str, Any]]
) -> str:
    """Rows of the manifest, rows of the shard that was made for them -> what is not the same; empty if all is."""
    found = {row["key"]: row for row in made}
    for row in wanted:
        clip = f"clip {row['key']} ({os.fsdecode(row['path'])!r})"
        if row["key"] not in found:
            why = next((f": {reject['reason']}, {reject['detail']}" for reject in rejects if reject["path"] == row["path"]), "")
            return f"{clip} is missing{why}"
        if any(row[name] != found[row["key"]][name] for name in HELD):
            return f"{clip} has other bytes: its source, or the tools that dataset.json lists, have changed"
    return f"it holds {len(made)} clips, and the manifest {len(wanted)}" if len(made) != len(wanted) else ""
