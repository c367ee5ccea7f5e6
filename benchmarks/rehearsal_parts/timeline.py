"""From the events of a step to its time: what overlaps with what, by the streams and events of FSDP2 (torch 2.15).

The device computes in one stream. A gather may begin when the one before it was copied out (there are two buffers): in the
forward pass while the block before computes, in the backward pass likewise, as FSDP2 asks for the next block's weights
first. What computes waits for its own gather. A reduce-scatter begins when its gradients are there, and the gradients of the
next block wait until it is through; an all-reduce between replicas follows it, in a stream of its own. All are through before
the norm is reckoned. Collectives share the links: those within a node take turns, and so do those between nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.rehearsal_parts.links import Links
from benchmarks.rehearsal_parts.step_trace import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU, as it is assumed to be."""

    tflops: float
    """By the data sheet, dense, in the compute type."""
    mfu: float
    """Share of it that computing alone reaches, with all that is no product."""
    hbm_gbs: float
    """GB/s of its memory, for the optimizer."""
    host_ms: float
    """Of the host, to queue a block's forward and backward pass; a device that is faster waits for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of a step."""

    total: float
    compute: float
    """Products, with all that goes with them."""
    optimizer: float
    exposed: float
    """In which the device waits for a collective."""
    host: float
    """In which it waits for the host."""
    busy: dict[str, float] = field(default_factory=dict)
    """Of each kind of collective, whether something overlaps with it or not."""


def step_time(events: Sequence[Event], links: Links, device: Device, *, blocks: int, local_parameters: int) -> StepTime:
    """`blocks`: of all forward passes of a step; `local_parameters`: of a rank, which the optimizer reads and writes (28 bytes
    each: weights, gradients and two moments, all but the gradients written)."""
    now = exposed = computed = 0.0  # of the stream that computes
    copied_out = gather_ends = scatter_ends = last_end = 0.0
    free = {False: 0.0, True: 0.0}  # when the links within a node, and between nodes, are
    busy: dict[str, float] = {}
    for event in events:
        if event.kind == "pass":
            continue
        if event.kind == "compute":
            took = event.amount / (device.tflops * 1e12 * device.mfu)
            now, computed = now + took, computed + took
        elif event.kind == "gathered":
            exposed += max(0.0, gather_ends - now)
            now = copied_out = max(now, gather_ends)
        else:
            took, crosses = links.seconds(event), links.crosses(event)
            busy[event.kind] = busy.get(event.kind, 0.0) + took
            if event.kind == "all-gather":
                begins = copied_out
            elif event.kind == "reduce-scatter":  # one buffer of gradients: the one before is through
                exposed += max(0.0, scatter_ends - now)
                now = begins = max(now, scatter_ends)
            elif not event.waited:  # of replicas, after the reduce-scatter of the same gradients
                begins = scatter_ends or now
            else:
                exposed += max(0.0, last_end - now) + took
                now = max(now, last_end) + took
                continue
            end = max(begins, free[crosses]) + took
            free[crosses] = end
            last_end = max(last_end, end)
            if event.kind == "all-gather":
                gather_ends = end
            elif event.kind == "reduce-scatter":
                scatter_ends = end
    exposed += max(0.0, last_end - now)
    now = max(now, last_end)
    optimizer = 28 * local_parameters / (device.hbm_gbs * 1e9)
    waiting = max(0.0, blocks * device.host_ms / 1e3 - now)
    return StepTime(
        total=now + waiting + optimizer, compute=computed, optimizer=optimizer, exposed=exposed, host=waiting, busy=busy
    )
