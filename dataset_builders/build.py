"""A build, from its plan to manifest and report: every entry point of this package ends here.

A plan is made (no video is touched), written down as jobs, and each job becomes a shard: its videos are encoded and decoded
whole in worker processes, in order. The manifest is written last. All of it can be killed and started again.
"""

import json
import os
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.attempts import Progress, Tally, write_shard
from dataset_builders.clips import ClipRequest
from dataset_builders.common_fault import CommonFault, clip_requests
from dataset_builders.dataset_counts import class_lines
from dataset_builders.executors import map_ordered
from dataset_builders.ffmpeg_process import ffmpeg_path
from dataset_builders.jobs import Attempt, BuildState, Hold, Job
from dataset_builders.plan import Drop, Plan, assemble
from dataset_builders.plan_text import describe
from dataset_builders.presets import EncodeOptions
from dataset_builders.rejects import MACHINE, Reason
from dataset_builders.report import write_report
from dataset_builders.retries import attempts, requests_again, strike_resolved
from dataset_builders.sources import Source
from dataset_builders.store import Store, claim
from dataset_builders.trial import ffmpeg_banner, try_here
from dataset_builders.worker import Worker
from pipeline.console import check_printed
from pipeline.files import write_durably
from pipeline.machine import usable_cores
from pipeline.manifest import read_versions, write_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How a build runs; nothing here changes a byte of what it makes."""

    workers: int = field(default_factory=usable_cores)
    """processes on this machine, or per shard with Ray"""
    time_limit: float = 3600
    """seconds for one file: two hours of high definition need 2,000 on a core"""
    memory_limit: float = 4
    """GiB for one file"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What a dataset is made of and how."""

    out: Path
    """the dataset's folder; of a dataset behind a URL the work folder"""
    sources: tuple[Source, ...]
    encoding: EncodeOptions
    clips_per_shard: int = 500
    limits: Limits = field(default_factory=Limits)
    url: str | None = None
    """where the dataset shall be, if not on a file system: see store.py"""

    @property
    def place(self) -> str:
        """The dataset, as a user knows it."""
        return self.url or str(self.out)

    def options(self) -> dict[str, Any]:
        """What decides the bytes, for the agreement with earlier builds of the same dataset."""
        sources = {source.name: source.agreed() for source in self.sources}
        return {**asdict(self.encoding), "clips_per_shard": self.clips_per_shard, "sources": sources}


def make_plan(build: Build) -> Plan:
    """Read annotations, list folders; raises ValueError if there is nothing to do, or a source cannot be read."""
    parts = {}
    for source in build.sources:
        began = time.perf_counter()
        parts[source.name] = source.plan()
        if (took := time.perf_counter() - began) > 2:
            print(f"{source.name}: {len(parts[source.name].requests)} requests planned in {took:.0f} s", file=sys.stderr)
    return assemble(parts, build.encoding.max_seconds)


def run(
    build: Build,
    share: tuple[int, int] | None = None,
    ray: str | None = None,
    retry: Collection[Reason] = MACHINE,
) -> int:
    """Plan, encode, finish; with `share` (i, n) only the i-th of n shares of the jobs. What was rejected for one of the reasons
    in `retry` is tried again. Returns the exit status: 0 done, 1 if no clip could be taken. Raises ValueError for what a user
    can put right."""
    plan = make_plan(build)
    if not len(plan.requests) and not build.url and not build.out.exists():
        raise _nothing_to_take(build)
    if not build.url and not (build.out / ".build").is_dir() and not ray:
        try_ffmpeg(build)  # before anything is written
    claim(build.out, build.url)
    with BuildState(build.out, Hold.SHARE if share else Hold.ALONE) as state, open_store(build, state) as store:
        if build.url and not state.jobs:
            if not len(plan.requests):
                raise _nothing_to_take(build)
            if not ray:
                try_ffmpeg(build)
        if not build.url and not share:
            state.begin_anew()
        again = partial(requests_again, plan=plan, reasons=retry, alone=share is None)
        for source, (number, example) in state.extend(plan, build.options(), build.clips_per_shard, again).items():
            print(f"{source}: {number} files of an earlier build are gone, such as {example!r}; their clips stay")
        if store:
            store.put_plans()
        jobs = state.jobs if share is None else state.jobs[share[0] - 1 :: share[1]]
        strike_resolved(state, jobs, plan)
        todo = attempts(state, jobs, plan, retry)
        if state.finished() and not todo:
            renewed = share is None and renew_dropped(state, build, plan, store)
            return say_complete(state, build, renewed=renewed, all_tried=share is None and bool(retry))
        if store:
            doing = {attempt.job for attempt in todo}
            store.catch_up(job for job in jobs if job not in doing)
        committed = store.add if store else lambda job: None
        if ray:
            from dataset_builders.ray_cluster import encode_on_ray  # an optional extra

            tally = encode_on_ray(ray, state, todo, build, committed)
        else:
            tally = encode(state, todo, build, committed)
        if store:
            store.wait()
        if share is None and state.finished() and not tally.changed:
            renew_dropped(state, build, plan, store)
            return say_complete(state, build, tally, all_tried=True)
        if share is None:
            return finish(state, build, plan, store, tally)
        print(f"share {share[0]} of {share[1]} is done: {len(jobs)} shards, {len(todo)} of them now; end with --finish")
        _say_tried(tally)
        return 0


def _nothing_to_take(build: Build) -> ValueError:
    where = ", ".join(os.fsdecode(root) for source in build.sources for root in source.roots().values())
    return ValueError(f"there is no file to take in {where}")


def open_store(build: Build, state: BuildState) -> Store | nullcontext[None]:
    """The place behind the build's URL; None for a dataset in a folder."""
    return Store(build.url, state) if build.url else nullcontext()


def finish_shares(build: Build) -> int:
    """--finish: manifest and report once all shares are done. Raises ValueError if jobs are missing."""
    not_begun = ValueError(f"--finish: {build.place} is no dataset that was begun; run its shares (--job I/N) first")
    if not build.url and not (build.out / ".build").is_dir():
        raise not_begun
    plan = make_plan(build)
    claim(build.out, build.url)
    with BuildState(build.out) as state, open_store(build, state) as store:
        if not state.jobs:
            raise not_begun
        state.agree_on_options(build.options())
        if state.finished():
            return say_complete(state, build, renewed=renew_dropped(state, build, plan, store))
        if store:
            store.catch_up(job for job in state.jobs if state.is_done(job))
            store.wait()
        return finish(state, build, plan, store)


def say_complete(
    state: BuildState, build: Build, tally: Tally | None = None, renewed: bool = False, all_tried: bool = False
) -> int:
    """`all_tried`: what may lie with the machine and is not tried now is not asked for any more."""
    totals = state.finished() or {}
    _say_tried(tally)
    reasons = Counter(reject["reason"] for job in state.jobs if state.marker(job).exists() for reject in state.rejects(job))
    what = "nothing else to do" if tally or renewed else "nothing to do"
    if (number := sum(reasons[reason] for reason in MACHINE)) and not all_tried:
        what = f"{number} of these may lie with the machine, and are tried again without --finish or --retry none"
    other = " (--retry REASON tries others again, see rejects.parquet)" if reasons.keys() - MACHINE else ""
    print(f"{build.place} is complete: {totals['clips']} clips, {totals['rejects']} rejects; {what}{other}")
    return 0 if totals["clips"] else 1


def _say_tried(tally: Tally | None) -> None:
    if tally and (text := str(tally)):
        print(f"retried   {text}")


def try_ffmpeg(build: Build) -> None:
    """Find the program and make a clip with it, once a process; raises ValueError if that cannot be."""
    program = os.environ["IMAGEIO_FFMPEG_EXE"] = ffmpeg_path()  # for the workers: each would search, and try it out
    ffmpeg_banner(program)
    if any(source.kind != "index" for source in build.sources):
        try_here(program, build.encoding)


def encode(
    state: BuildState, attempts: Sequence[Attempt], build: Build, committed: Callable[[Job], None] = lambda job: None
) -> Tally:
    """Turn every job into a shard and commit it; `committed` is told of each. Raises ValueError for what is wrong with all."""
    tally = Tally()
    if not attempts:
        return tally
    roots = {root: path for source in build.sources for root, path in source.roots().items()}
    known = {source.name for source in build.sources}
    for job in (attempt.job for attempt in attempts):
        if job.source not in known:
            raise ValueError(
                f"shard {job.name} is not finished; name its source {job.source!r}, too, as in the build that began"
            )
    try_ffmpeg(build)
    worker = Worker(os.fspath(state.dataset), os.fspath(state.root), build.encoding)
    limits = build.limits

    number = sum(attempt.num_requests for attempt in attempts)

    def work(worker: Worker, requests: Iterable[ClipRequest], number: int) -> Generator[list[Any] | None, None, None]:
        return map_ordered(worker, requests, min(limits.workers, number), limits.time_limit, int(limits.memory_limit * 2**30))

    fault = CommonFault(state, roots, worker, lambda worker, requests: work(worker, requests, len(requests)))
    requests = (
        request
        for attempt in attempts
        for request in clip_requests(state.requests(attempt.job), roots)
        if attempt.tried is None or request.key in attempt.tried
    )
    with closing(work(worker, requests, number)) as results, Progress(attempts) as progress:
        for attempt in attempts:
            tally.add(write_shard(state, attempt, results, progress, fault.saw, fault.before_commit))
            committed(attempt.job)
    return tally


def finish(state: BuildState, build: Build, plan: Plan, store: Store | None = None, tally: Tally | None = None) -> int:
    """Manifest, rejects, what was dropped, description, report; says what happened. Raises ValueError if jobs are missing."""
    jobs = state.jobs
    if missing := [job.name for job in jobs if not state.is_done(job)]:
        listed = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise ValueError(f"{len(missing)} of {len(jobs)} shards are not finished: {listed}; run their shares (--job I/N) again")
    versions = write_manifest(state.dataset, state.parts(jobs))
    totals, shards, rejects = state.totals(jobs)
    report = describe_all(state, build, plan, store, versions, totals)
    state.finish(jobs, totals, shards, rejects)
    if store:
        store.put_finished()
    again = "the same command tries" if tally else "the shares of --job, run once more, try"
    shown = f"{build.url}/{report.name}" if store else str(report)
    summarise(state.dataset, build.place, totals, len(versions), shown, again)
    _say_tried(tally)
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
    before = pq.read_table(file) if file.exists() else plan.dropped.slice(0, 0)
    changed, unlisted = False, 0
    for name in plan.sources:
        was, now = (table.filter(pc.field("source") == name) for table in (before, plan.dropped))
        if not was.equals(now):
            changed = True
            unlisted += sum(sign * _counts(table["reason"]).get(Drop.NOT_LISTED, 0) for sign, table in ((1, was), (-1, now)))
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
        before = pq.read_table(file)
        tables.insert(0, before.filter(pc.invert(pc.is_in(before["source"], value_set=pa.array(plan.sources, pa.string())))))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    write_durably(file, sink.getvalue())


def describe_dataset(
    state: BuildState, build: Build, plan: Plan, versions: list[dict[str, Any]], totals: dict[str, Any]
) -> None:
    """dataset.json: sources with their counts, options, versions and the tools each was made with."""
    file = state.dataset / "dataset.json"
    before = json.loads(file.read_bytes()) if file.exists() else {"sources": {}, "versions": []}
    sources = before["sources"]
    taken = _counts(pq.read_table(state.dataset / "manifest.parquet", columns=["source"])["source"])
    rejects = pq.read_table(state.dataset / "rejects.parquet", columns=["source", "reason"])
    rejected = _counts(rejects["source"])
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
            "expected_clips": pc.sum(plan.requests["clips"].filter(pc.equal(plan.requests["source"], source.name))).as_py()
            or 0,
            "dropped": _counts(part.dropped["reason"]),
        }
    for name, source in sources.items():
        source |= {"requested": requested[name], "taken": taken.get(name, 0), "rejected": rejected.get(name, 0)}
    tools = tool_versions()
    known = [version["tools"] for version in before["versions"][: len(versions)]]  # older ones keep what they were made with
    options = build.options()
    description = {
        "sources": sources,
        "options": {name: value for name, value in options.items() if name != "sources"},
        "totals": totals,
        "versions": [{**version, "tools": made_with} for version, made_with in zip_longest(versions, known, fillvalue=tools)],
        "rejects": dict(sorted(_counts(rejects["reason"]).items())),
    }
    write_durably(file, (json.dumps(description, indent=1) + "\n").encode())


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column.combine_chunks())
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def tool_versions() -> dict[str, str]:
    """The programs and libraries that a clip's bytes depend on."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    return {
        "tubecell": tomllib.loads(project.read_text())["project"]["version"],
        "ffmpeg": ffmpeg_banner(ffmpeg_path()),
        "av": av.__version__,
        "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
    }


def summarise(dataset: Path, place: str, totals: dict[str, Any], version: int, report: str, again: str) -> None:
    """What a user wants to know at the end; `dataset` is the folder, `place` what the user calls it, `again` what tries
    once more."""
    print(f"taken     {totals['clips']:>8} clips, {totals['seconds'] / 3600:.2f} hours, {totals['bytes'] / 2**20:,.1f} MiB")
    for line in class_lines(dataset):
        print(f"classes   {line}")
    rejects = pq.read_table(dataset / "rejects.parquet", columns=["path", "reason", "detail"])
    print(f"rejected  {len(rejects):>8} files or parts of files")
    for reason, count in sorted(_counts(rejects["reason"]).items(), key=lambda item: -item[1]):
        example = rejects.filter(pc.equal(rejects["reason"], reason)).slice(0, 1).to_pylist()[0]
        print(f"  {reason:<16} {count:>4}  such as {os.fsdecode(example['path'])!r}: {example['detail']}")
    if number := sum(count for reason, count in _counts(rejects["reason"]).items() if reason in MACHINE):
        print(f"{number} of these may lie with the machine: {again} them again (others: --retry REASON)")
    if dropped := _counts(pq.read_table(dataset / "dropped.parquet", columns=["reason"])["reason"]):
        print(
            f"dropped   {sum(dropped.values()):>8} (dropped.parquet): {', '.join(f'{n} {why}' for why, n in dropped.items())}"
        )
    print(f"dataset   {place} (version {version}: manifest.parquet, rejects.parquet, dataset.json, shards/)")
    print(f"report    {report}")
    if not totals["clips"]:
        print("there is no clip to train on: see the reasons above", file=sys.stderr)


def show_plan(build: Build) -> int:
    """--plan: what would be read, taken, cut, dropped and written; no video is touched and nothing is written.
    Raises ValueError if it cannot be printed."""
    print(describe(make_plan(build), build))
    check_printed()
    return 0
