"""What is tried again: requests whose rejects are trouble of the machine (or what --retry names), not of the file.

In a job that no manifest covers yet such a request is tried in its place, and the shard comes out as if it had been taken at
once. Rows of a manifest stay where they are: requests of published jobs get a plan of their own, whose shards follow, and what
they give becomes the next version. Then rejects.parquet tells of the last attempt only. Each is tried once per command.
"""

from collections.abc import Collection, Sequence
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.building.jobs import Attempt, BuildState, Job
from dataset_builders.media.rejects import Reason
from dataset_builders.pages.counts import counted
from dataset_builders.plan import Plan


def requests_again(state: BuildState, plan: Plan, reasons: Collection[Reason], alone: bool) -> pa.Table | None:
    """The requests of published jobs that are to have another plan. Shares of --job only plan while none of them is at work:
    when the dataset is finished; so all of them come to the same."""
    if not reasons or not (alone or state.finished()):
        return None
    keys = {key for job in state.jobs[: state.num_published] for key in _rejected(state, job, reasons)}
    return _asked_for(plan, keys)


def strike_resolved(state: BuildState, jobs: Sequence[Job], plan: Plan) -> None:
    """Forget rejects of what is asked for by other paths now: a folder, or a tar, that could not be read, and whose videos are
    requests of their own since it can."""
    rejects = {job: state.rejects(job) for job in jobs if state.marker(job).exists()}
    found = {(one["source"], one["root"], one["path"]) for some in rejects.values() for one in some}
    paths = pa.array([path for _, _, path in found], pa.binary())
    asked = {*paths.filter(pc.is_in(paths, value_set=plan.requests["path"])).to_pylist()}
    gone = sorted(one for one in found if one[2] not in asked)
    resolved = set()
    for (source, root), some in groupby(gone, lambda one: one[:2]):
        below = plan.requests.filter((pc.field("source") == source) & (pc.field("root") == root))["path"]
        resolved |= {one for one in some if pc.any(pc.starts_with(below, one[2] + b"/")).as_py()}
    for job, of_job in rejects.items():
        if any((one["source"], one["root"], one["path"]) in resolved for one in of_job):
            state.strike(job, resolved)


def attempts(state: BuildState, jobs: Sequence[Job], plan: Plan, reasons: Collection[Reason]) -> list[Attempt]:
    """What is to be done of these jobs, in their order: those that are not done, and what is tried again in others."""
    finished, published = state.finished(), {job.name for job in state.jobs[: state.num_published]}
    manifest = state.dataset / "manifest.parquet"
    named = counted(pq.read_table(manifest, columns=["shard"])["shard"]) if published and not finished else {}
    again = {job: keys for job in jobs if job.name not in published and (keys := _rejected(state, job, reasons))}
    known = _asked_for(plan, {key for keys in again.values() for key in keys})["key"].to_pylist() if again else []
    found = []
    for job in jobs:
        if not finished and job.name in published:
            # a shard that was lost, and made again otherwise, has not as many clips as the manifest says
            held = named.get(f"shards/{job.name}.tar", 0)
            if not state.is_done(job) or not (held == state.content(job)["clips"] or state.is_indexed(job)):
                found.append(anew(state, job))
        elif not finished and not state.is_done(job):
            found.append(Attempt(job, elsewhere=state.elsewhere_of(job)))
        elif tried := again.get(job, set()) & set(known):
            found.append(Attempt(job, frozenset(tried), elsewhere=state.elsewhere_of(job)))
    return found


def anew(state: BuildState, job: Job, exact: bool = True) -> Attempt:
    """To make the shard of a published job again: with the clips that it had, and without asking for what it never had."""
    rows = state.held(job)
    held = {key: row["content_hash"] for key, row in rows.items() if row["size"]}
    never: set[str] = set()
    if state.marker(job).exists():
        rejects = state.rejects(job)
        never = {key for keys in state.rejected_requests(job, rejects) for key in keys}
    parts, removed = ({*keys, *(key.rpartition("-")[0] for key in keys)} for keys in (held, rows.keys() - held.keys()))
    tried = {*state.keys(job)} - ((never | removed) - parts)
    return Attempt(job, frozenset(tried), held, rows=rows if removed else {}, exact=exact)


def _rejected(state: BuildState, job: Job, reasons: Collection[Reason]) -> set[str]:
    """Keys of the requests of a finished job that were rejected for one of the reasons, and are not tried again later."""
    if not reasons or not state.marker(job).exists():
        return set()
    rejects = [reject for reject in state.rejects(job) if reject["reason"] in reasons]
    keys = {key for keys in state.rejected_requests(job, rejects) for key in keys}
    return {key for key in keys if not state.is_tried_later(job, key)}


def _asked_for(plan: Plan, keys: Collection[str]) -> pa.Table:
    """Those of the keys that this build asks for, too: others cannot be read, or are not wanted any more."""
    return plan.requests.filter(pc.is_in(plan.requests["key"], value_set=pa.array(sorted(keys), pa.string())))
