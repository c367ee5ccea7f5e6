"""Other files of a video whose file gave nothing: which one is sound, nobody knows before it is decoded.

A source takes one file of each video, and names the others as spares. Once a file was rejected, and nothing was taken of it,
the next of its spares is asked for, in a plan of its own like any file that was added later. Trouble of the machine is none of
the file's: it is tried again instead.
"""

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.building.jobs import BuildState
from dataset_builders.media.rejects import MACHINE
from dataset_builders.plan import Plan


def with_spares(state: BuildState, plan: Plan) -> Plan:
    """A plan with the spares that are due by now, after its own requests; they are no dropped files any more."""
    broken = _broken(state) if len(plan.spares) else set()
    due: list[int] = []
    done: set[str] = set()  # requests that have a spare which may be sound
    for place, (instead, key) in enumerate(zip(*(plan.spares[name].to_pylist() for name in ("instead", "key")), strict=True)):
        if instead in broken and instead not in done:
            due.append(place)
            if key not in broken:
                done.add(instead)
    if not due:
        return plan
    taken = plan.spares.take(pa.array(due)).drop_columns(["instead"])
    dropped = plan.dropped.filter(pc.invert(pc.is_in(pa.array(_files(plan.dropped)), value_set=pa.array(_files(taken)))))
    return replace(plan, requests=pa.concat_tables([plan.requests, taken]), dropped=dropped)


def _files(table: pa.Table) -> list[bytes]:
    rows = zip(*(table[name].to_pylist() for name in ("source", "root", "path")), strict=True)
    return [b"%s\0%s\0%s" % (source.encode(), (root or "").encode(), path or b"") for source, root, path in rows]


def _broken(state: BuildState) -> set[str]:
    """Keys of requests that gave nothing, and do not lie with the machine."""
    broken: set[str] = set()
    for job in state.jobs:
        if not state.marker(job).exists():
            continue
        rejects = [reject for reject in state.rejects(job) if reject["reason"] not in MACHINE]
        if keys := {key for some in state.rejected_requests(job, rejects) for key in some}:
            clips = pq.read_table(state.marker(job).with_suffix(".parquet"), columns=["key"])["key"].to_pylist()
            broken |= keys - {*clips} - {clip.rpartition("-")[0] for clip in clips}
    return broken
