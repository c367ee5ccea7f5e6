"""How long a collective takes on a cluster: bandwidths and latencies are given, nothing here was measured.

M bytes of the whole tensor, n ranks on m nodes, g = n / m of them on a node. To gather, a rank takes in M (n - 1) / n bytes
from the GPUs of its node, and a node M (m - 1) / m from others, through an adapter for each of its g ranks. Both go on at the
same time, so the slower one counts; to scatter is the same backwards, to reduce for everybody is both. A ring has n - 1 hops,
m - 1 of them between nodes. A reduction of small tensors takes a tree, two ways of log2 hops, where that is faster.
"""

import math
from dataclasses import dataclass

from benchmarks.rehearsal_parts.step_trace import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """Between GPUs, as collectives reach them: under what data sheets say (NVLink 4: 450 GB/s; an adapter of 400 Gb/s: 50)."""

    intra_gbs: float = 300.0
    """GB/s between a GPU and the others of its node, in one direction."""
    inter_gbs: float = 40.0
    """GB/s between a GPU and other nodes, in one direction."""
    intra_us: float = 2.0
    """Microseconds of a hop within a node."""
    inter_us: float = 5.0
    """Microseconds of a hop between nodes."""

    def __post_init__(self) -> None:
        for name in ("intra_gbs", "inter_gbs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be over 0, in GB/s")
        for name in ("intra_us", "inter_us"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 0, in microseconds")

    def seconds(self, event: Event) -> float:
        """Of a collective that nothing else disturbs; 0 of one rank alone."""
        n, m = event.ranks, event.nodes
        if n == 1:
            return 0.0
        ways = 2 if event.kind == "all-reduce" else 1
        within = event.amount * (n - 1) / n / (self.intra_gbs * 1e9) if n > m else 0.0
        between = event.amount * (m - 1) / m / (n / m * self.inter_gbs * 1e9)
        hops = 1e-6 * ((m - 1) * self.inter_us + (n - m) * self.intra_us)
        ring = ways * (max(within, between) + hops)
        if event.kind != "all-reduce":
            return ring
        levels = 1e-6 * (math.ceil(math.log2(m)) * self.inter_us + math.ceil(math.log2(n / m)) * self.intra_us)
        # a tree's nodes send to two, so it has half of the bandwidth, by our reckoning
        return min(ring, ways * (2 * max(within, between) + levels))

    def crosses(self, event: Event) -> bool:
        """Whether a collective leaves the node."""
        return event.nodes > 1
