"""The end of a build: manifest, rejects, what was dropped, dataset.json, the report, and what a user is told."""

import json
import os
import shlex
import sys
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from dataset_builders.building.attempts import Tally
from dataset_builders.building.duplicates import equal_clips
from dataset_builders.building.jobs import BuildState, write_table
from dataset_builders.building.request import Build
from dataset_builders.building.store import Store
from dataset_builders.building.trial import ffmpeg_banner
from dataset_builders.media.ffmpeg_process import ffmpeg_path
from dataset_builders.media.rejects import MACHINE
from dataset_builders.pages.counts import class_lines, counted
from dataset_builders.plan import Drop, Plan
from dataset_builders.report import TOOK, write_report
from pipeline.storage.columns import DROPPED, read_rows, to_disk
from pipeline.storage.files import write_durably
from pipeline.storage.manifest import read_versions
from pipeline.storage.manifest_writer import write_manifest
from pipeline.version import version


def finish(state: BuildState, build: Build, plan: Plan, store: Store | None = None, tally: Tally | None = None) -> int:
    """Manifest, rejects, what was dropped, description, report; says what happened. Raises ValueError if jobs are missing."""
    jobs = state.jobs
    if missing := [job.name for job in jobs if not state.is_done(job)]:
        listed = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise ValueError(f"{len(missing)} of {len(jobs)} shards are not finished: {listed}; run their shares (--job I/N) again")
    manifest = state.dataset / "manifest.parquet"
    kept = read_versions(manifest)[-1]["rows"] if manifest.exists() else 0
    versions = write_manifest(state.dataset, state.parts(jobs))
    totals, shards, rejects = state.totals(jobs)
    took = time.monotonic() - build.began
    write_durably(state.root / TOOK, json.dumps({"seconds": round(took, 1)}).encode())
    report = describe_all(state, build, plan, store, versions, totals)
    state.finish(jobs, totals, shards, rejects)
    if store:
        store.put_finished()
    again = "the same command tries" if tally else "the shares of --job, run once more, try"
    shown = f"{build.url}/{report.name}" if store else str(report)
    summarise(state.dataset, build.place, totals, len(versions), shown, again, kept)
    _say_tried(tally)
    print(f"took      {tqdm.format_interval(took):>8}")
    if totals["clips"]:
        print(f"next      tubecell pretrain RECIPE --data {shlex.quote(build.place)} --out RUN")
    return 0 if totals["clips"] else 1


def describe_all(
    state: BuildState, build: Build, plan: Plan, store: Store | None, versions: list[dict[str, Any]], totals: dict[str, Any]
) -> Path:
    """Write, and publish, all that tells of a manifest, which is there; returns the report's path."""
    for part in plan.parts.values():
        for name, content in part.files.items():
            write_durably(state.dataset / name, (json.dumps(content, indent=1) + "\n").encode())
    describe_dataset(state, build, plan, versions, totals)
    write_dropped(state.dataset, plan)
    report = write_report(state.dataset)
    if store:
        store.publish()
    return report


def renew_dropped(state: BuildState, build: Build, plan: Plan, store: Store | None) -> bool:
    """Whether dropped.parquet of a finished dataset told of something else than this plan, as older code's did of all files of
    the machine; then it is written anew, and what counts its rows. Not where nothing is found of a source:
    its disk may be away. Only for who is alone."""
    if not all(len(part.requests) for part in plan.parts.values()):
        return False
    file = state.dataset / "dropped.parquet"
    before = read_rows(file) if file.exists() else plan.dropped.slice(0, 0)
    changed, unlisted = False, 0
    for name in plan.sources:
        was, now = (table.filter(pc.field("source") == name) for table in (before, plan.dropped))
        if not was.equals(now):
            changed = True
            unlisted += sum(sign * counted(table["reason"]).get(Drop.NOT_LISTED, 0) for sign, table in ((1, was), (-1, now)))
    if changed:
        totals = state.finished()
        assert totals is not None
        describe_all(state, build, plan, store, read_versions(state.dataset / "manifest.parquet"), totals)
        told = f"told of {unlisted} files that no list names: they are taken out" if unlisted > 0 else "is renewed"
        print(f"dropped.parquet {told}")
    return changed


def write_dropped(dataset: Path, plan: Plan) -> None:
    """dropped.parquet: what sources know of and did not ask for; of sources that are not part of this build, as it was."""
    file = dataset / "dropped.parquet"
    tables = [plan.dropped]
    if file.exists():
        before = read_rows(file)
        tables.insert(0, before.filter(pc.invert(pc.is_in(before["source"], value_set=pa.array(plan.sources, pa.string())))))
    write_table(file, to_disk(pa.concat_tables(tables), DROPPED))


def describe_dataset(
    state: BuildState, build: Build, plan: Plan, versions: list[dict[str, Any]], totals: dict[str, Any]
) -> None:
    """dataset.json: sources with their counts, options, versions and the tools each was made with."""
    file = state.dataset / "dataset.json"
    before = json.loads(file.read_bytes()) if file.exists() else {"sources": {}, "versions": []}
    sources = before["sources"]
    taken = counted(pq.read_table(state.dataset / "manifest.parquet", columns=["source"])["source"])
    rejects = pq.read_table(state.dataset / "rejects.parquet", columns=["source", "reason"])
    rejected = counted(rejects["source"])
    requested = Counter[str]()
    for job in state.jobs:
        requested[job.source] += 0 if state.is_repeated(job) else job.requests
    for source in build.sources:
        part = plan.parts[source.name]
        sources[source.name] = {
            **source.agreed(),
            "folders": {name: os.fsdecode(path) for name, path in source.roots().items()},
            "counts": dict(part.counts),
            "notes": list(part.notes),
            "expected_clips": plan.num_clips(source.name),
            "dropped": counted(part.dropped["reason"]),
        }
    for name, source in sources.items():
        source |= {"requested": requested[name], "taken": taken.get(name, 0), "rejected": rejected.get(name, 0)}
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    # what a clip's bytes depend on
    tools = {"tubecell": version(), "ffmpeg": ffmpeg_banner(ffmpeg_path()), "av": av.__version__, "libavcodec": libavcodec}
    known = [entry["tools"] for entry in before["versions"][: len(versions)]]  # older ones keep what they were made with
    description = {
        "sources": sources,
        "options": {name: value for name, value in build.options().items() if name != "sources"},
        "totals": totals,
        "versions": [{**entry, "tools": made_with} for entry, made_with in zip_longest(versions, known, fillvalue=tools)],
        "rejects": dict(sorted(counted(rejects["reason"]).items())),
        "duplicates": dict(zip(("clips", "in_training_and_held_out"), equal_clips(state.dataset), strict=True)),
    }
    write_durably(file, (json.dumps(description, indent=1) + "\n").encode())


def summarise(dataset: Path, place: str, totals: dict[str, Any], version: int, report: str, again: str, kept: int = 0) -> None:
    """What a user wants to know at the end; `dataset` is the folder, `place` what the user calls it, `again` what tries
    once more; `kept` clips were there before."""
    new = f" ({totals['clips'] - kept} new, {kept} kept)" if kept else ""
    print(
        f"taken     {totals['clips']:>8} clips{new}, {totals['seconds'] / 3600:.2f} hours, {totals['bytes'] / 2**20:,.1f} MiB"
    )
    for line in class_lines(dataset):
        print(f"classes   {line}")
    equal, both = equal_clips(dataset)
    if equal:
        leak = f", {both} of them in training and in validation or test" if both else ""
        print(
            f"equal     {equal:>8} clips have the bytes of another{leak}; --drop-duplicates, in a new DATASET, leaves them out"
        )
    rejects = read_rows(dataset / "rejects.parquet", ["path", "reason", "detail"])
    print(f"rejected  {len(rejects):>8} files or parts of files")
    reasons = Counter(counted(rejects["reason"]))
    for reason, count in reasons.most_common():
        example = rejects.filter(pc.equal(rejects["reason"], reason)).slice(0, 1).to_pylist()[0]
        print(f"  {reason:<16} {count:>4}  such as {os.fsdecode(example['path'])!r}: {example['detail']}")
    if number := sum(reasons[reason] for reason in MACHINE):
        print(f"{number} of these may lie with the machine: {again} them again (others: --retry REASON)")
    if dropped := counted(pq.read_table(dataset / "dropped.parquet", columns=["reason"])["reason"]):
        why = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
        print(f"dropped   {sum(dropped.values()):>8} (dropped.parquet): {why}")
    print(f"dataset   {place} (version {version}: manifest.parquet, rejects.parquet, dataset.json, shards/)")
    print(f"report    {report}")
    if not totals["clips"]:
        print("there is no clip to train on: see the reasons above", file=sys.stderr)


def _say_tried(tally: Tally | None) -> None:
    if tally and (text := str(tally)):
        print(f"retried   {text}")
