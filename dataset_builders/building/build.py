"""A build, from its plan to manifest and report: every entry point of this package ends here.

A plan is made (no video is touched), written down as jobs, and each job becomes a shard: its videos are encoded and decoded
whole in worker processes, in order. The manifest is written last. All of it can be killed and started again.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from dataset_builders.building.attempts import Tally
from dataset_builders.building.duplicates import find_duplicates
from dataset_builders.building.encode import encode, try_ffmpeg
from dataset_builders.building.finish import _say_tried, finish, renew_dropped
from dataset_builders.building.jobs import BuildState, Hold
from dataset_builders.building.plan_text import describe
from dataset_builders.building.request import Build
from dataset_builders.building.retries import attempts, requests_again, strike_resolved
from dataset_builders.building.spares import with_spares
from dataset_builders.building.store import Store, claim
from dataset_builders.media.rejects import MACHINE, Reason
from dataset_builders.plan import Plan, assemble
from pipeline.console import check_printed


def make_plan(build: Build) -> Plan:
    """Read annotations, list folders; raises ValueError if there is nothing to do, or a source cannot be read."""
    parts = {}
    for source in build.sources:
        began = time.perf_counter()
        parts[source.name] = source.plan()
        if (took := time.perf_counter() - began) > 2:
            print(f"{source.name}: {len(parts[source.name].requests)} requests planned in {took:.0f} s", file=sys.stderr)
    plan = assemble(parts, build.encoding.max_seconds)
    roots = {root: path for source in build.sources for root, path in source.roots().items()}
    return find_duplicates(plan, roots, build.drop_duplicates)


def run(build: Build, share: tuple[int, int] | None = None, ray: str | None = None, retry: Collection[Reason] = MACHINE) -> int:
    """Plan, encode, finish; with `share` (i, n) only the i-th of n shares of the jobs. What was rejected for one of the reasons
    in `retry` is tried again. Returns the exit status: 0 done, 1 if no clip could be taken. Raises ValueError for what a user
    can put right."""
    plan = make_plan(build)
    if not len(plan.requests) and not build.url and not build.out.exists():
        raise _nothing_to_take(build, plan)
    if not build.url and not (build.out / ".build").is_dir() and not ray:
        try_ffmpeg(build)  # before anything is written
    for note in dict.fromkeys(note for part in plan.parts.values() for note in part.notes):
        print(f"note: {note}")
    claim(build.out, build.url)
    with BuildState(build.out, Hold.SHARE if share else Hold.ALONE) as state, open_store(build, state) as store:
        if build.url and not state.jobs:
            if not len(plan.requests):
                raise _nothing_to_take(build, plan)
            if not ray:
                try_ffmpeg(build)
        if not build.url and not share:
            state.begin_anew()
        build = replace(build, encoding=state.going_on(build.encoding))
        given = plan
        if share is None or state.finished():  # shares that are at work must come to the same plan
            plan = with_spares(state, given)
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
        work: Callable[..., Tally] = encode
        if ray:
            from dataset_builders.building.ray_cluster import encode_on_ray  # an optional extra

            work = partial(encode_on_ray, ray)
        tally = work(state, todo, build, committed)
        while share is None and len((more := with_spares(state, given)).requests) > len(plan.requests):
            number = len(more.requests) - len(plan.requests)
            print(f"{number} files gave nothing, and another file of the same video is there: these are tried now")
            plan = more
            state.extend(plan, build.options(), build.clips_per_shard)
            tally.add(work(state, attempts(state, state.jobs, plan, ()), build, committed))
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


def _nothing_to_take(build: Build, plan: Plan) -> ValueError:
    where = ", ".join(os.fsdecode(root) for source in build.sources for root in source.roots().values())
    why = [f"{name}: {number:,} {what}" for name, part in plan.parts.items() for what, number in part.counts.items() if number]
    notes = [note for part in plan.parts.values() for note in part.notes]
    return ValueError("\n  ".join([f"there is no file to take in {where}", *notes, *why]))


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
        build = replace(build, encoding=state.going_on(build.encoding))
        state.agree_on_options(build.options())
        plan = with_spares(state, plan)
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


def show_plan(build: Build) -> int:
    """--plan: what would be read, taken, cut, dropped and written; no video is touched and nothing is written.
    Raises ValueError if it cannot be printed."""
    print(describe(make_plan(build), build))
    check_printed()
    return 0
