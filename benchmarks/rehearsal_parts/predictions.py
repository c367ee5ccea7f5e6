"""From what was rehearsed to what a user asks: views/s, hours, checkpoints, restarts, the useful share of the time."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.rehearsal_parts.links import Links
from benchmarks.rehearsal_parts.rehearsed_step import Cluster, RehearsedStep
from benchmarks.rehearsal_parts.restarts import Faults, best_interval, ettr
from benchmarks.rehearsal_parts.step_trace import COLLECTIVES, Event
from benchmarks.rehearsal_parts.timeline import Device, StepTime, step_time

# seconds from kill -9 to the next step on two CPU cores, a small model, medians of 20 kills: benchmarks/results/
# 2026-11-21-xeon2-faults.md; what grows with model and data is reckoned instead
MEASURED = {"imports": 3.7, "process group": 0.2, "first batch": 0.2}
FILLED = 0.9  # of a card that views may take
MEASURED_IN = "benchmarks/results/2026-11-21-xeon2-faults.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What checkpoints go through, and what fails: assumed."""

    write_gbs: float
    """GB/s that a node writes."""
    read_gbs: float
    """GB/s that a node reads."""
    host_gbs: float
    """GB/s from a GPU to its host's memory."""
    compile_s: float
    """Seconds to compile the blocks, where the cache of the run does not have them."""
    notice_s: float
    """Seconds until a dead job is started again."""
    gpu_mtbf_hours: float
    """Mean time between failures of one GPU, with its share of a node, that stop the job."""


def predict_step(found: RehearsedStep, links: Links, device: Device) -> StepTime:
    """Of what was rehearsed, on such links and devices."""
    return step_time(found.events, links, device, blocks=found.blocks, local_parameters=found.local_parameters)


def resized(found: RehearsedStep, cluster: Cluster, nodes: int, views_per_step: int) -> RehearsedStep:
    """The same passes on another number of nodes: groups over all nodes are over as many, and a step of the same batch has more
    passes, or smaller ones: as many views a pass as the card holds by the closed form. What a shard's padding changes is left
    out."""
    most = found.plan.views
    ranks = nodes * cluster.gpus
    share = views_per_step // ranks
    kept = found.predicted.activations / most
    fits = (cluster.card_bytes - (found.predicted.total - found.predicted.activations)) * FILLED / kept
    passes = math.ceil(share / max(most, 1 << int(math.log2(max(fits, 1)))))
    scale = share / passes / most
    marks = [place for place, event in enumerate(found.events) if event.kind == "pass"]
    assert len(marks) == 1, "of one pass"
    head, last = found.events[: marks[0]], found.events[marks[0] :]

    def moved(event: Event) -> Event:
        if event.kind == "compute":
            return replace(event, amount=event.amount * scale)
        if event.nodes > 1:
            return replace(event, nodes=nodes, ranks=event.ranks // event.nodes * nodes)
        return event

    one = [moved(event) for event in last]
    # replicas sum after the last pass only
    first = [event for event in one if event.kind != "all-reduce"]
    events = [*map(moved, head), *first * (passes - 1), *one]
    local = found.local_parameters * (cluster.nodes // nodes if found.mesh.shard == cluster.ranks else 1)
    return replace(found, events=events, local_parameters=local, blocks=found.blocks * passes)


def traffic(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Collectives of a step by kind and group; bytes of the whole tensors, and those that a rank sends in a ring."""
    rows = []
    for kind in COLLECTIVES:
        for ranks, nodes in sorted({(each.ranks, each.nodes) for each in events if each.kind == kind}):
            some = [each.amount for each in events if (each.kind, each.ranks, each.nodes) == (kind, ranks, nodes)]
            sent = sum(some) * (ranks - 1) / ranks * (2 if kind == "all-reduce" else 1)
            rows.append({"kind": kind, "ranks": ranks, "nodes": nodes, "number": len(some), "bytes": sum(some), "sent": sent})
    return rows


def mesh_figures(
    found: RehearsedStep, cluster: Cluster, links: Links, device: Device, storage: Storage, *, views_per_step: int, steps: int
) -> dict[str, Any]:
    """All of one mesh, as JSON can hold it."""
    time = predict_step(found, links, device)
    rate = views_per_step / time.total
    predicted = found.predicted
    staged = found.checkpoint
    written = found.checkpoint_whole / cluster.nodes / (storage.write_gbs * 1e9)
    step_of_node = cluster.gpus * staged / (storage.read_gbs * 1e9)
    restart = {
        **{name: (seconds, "measured") for name, seconds in MEASURED.items()},
        "blocks compiled": (storage.compile_s, "assumed"),
        "checkpoint read": (step_of_node, "its bytes by --read-gbs"),
        "first step": (time.total, "predicted"),
    }
    faults = Faults(
        mtbf=3600 * storage.gpu_mtbf_hours / cluster.ranks,
        notice=storage.notice_s,
        restart=sum(seconds for seconds, _ in restart.values()),
        save_stall=staged / (storage.host_gbs * 1e9),
        write=written,
    )
    best = best_interval(faults)
    useful = {f"every {500} steps": 500 * time.total, "at the best interval": best}
    return {
        "mesh": str(found.mesh),
        "plan": str(found.plan),
        "passes": found.plan.passes,
        "views a pass": found.plan.views,
        "memory": {
            "peak of tensors, rehearsed": found.peak,
            "the closed form": predicted.total,
            "of them": asdict(predicted),
            "card": cluster.card_bytes,
        },
        "collectives": traffic(found.events),
        "step": asdict(time),
        "views/s": rate,
        "views/s a GPU": rate / cluster.ranks,
        "efficiency": time.compute / time.total,
        "run": {"steps": steps, "hours": steps * time.total / 3600},
        "checkpoint": {
            "staged by a rank": staged,
            "seconds of the copy": faults.save_stall,
            "whole": found.checkpoint_whole,
            "written by a rank": found.checkpoint_whole / cluster.ranks,
            "seconds of writing": written,
        },
        "restart": {name: {"seconds": seconds, "how": how} for name, (seconds, how) in restart.items()},
        "mtbf_hours": faults.mtbf / 3600,
        "ettr": {name: {"seconds": every, "share": ettr(faults, every)} for name, every in useful.items()},
    }


def scaling(
    found: RehearsedStep, cluster: Cluster, links: Links, device: Device, views_per_step: int
) -> list[dict[str, float]]:
    """The same batch on 1, 2, 4 ... nodes, by the events of the largest."""
    rows = []
    nodes = 1
    while nodes <= cluster.nodes:
        smaller = resized(found, cluster, nodes, views_per_step)
        time = predict_step(smaller, links, device)
        rows.append(
            {
                "GPUs": nodes * cluster.gpus,
                "views/s": views_per_step / time.total,
                "efficiency": time.compute / time.total,
                "exposed": time.exposed / time.total,
                "host": time.host / time.total,
            }
        )
        nodes *= 2
    return rows
