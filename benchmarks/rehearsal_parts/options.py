"""What a rehearsal is asked for, and what it has to assume."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rehearsal_parts.links import Links
from benchmarks.rehearsal_parts.predictions import Storage
from benchmarks.rehearsal_parts.rehearsed_step import Cluster, Mesh
from benchmarks.rehearsal_parts.timeline import Device

CARDS = {"H100": (989.0, 80e9, 3350.0), "H200": (989.0, 141e9, 4800.0), "A100": (312.0, 80e9, 2039.0)}
"""TFLOP/s in bf16, bytes, GB/s of memory: the data sheets of the SXM cards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the run would be, and on what."""

    recipe: str = "vit-g-hybrid"
    """Of pre-training, as `tubecell pretrain --help` lists them."""
    nodes: int = 64
    """Of the cluster."""
    gpus: int = 8
    """Of a node."""
    card: str = "H100"
    """H100, H200 or A100: rate and memory by the data sheet."""
    shards: tuple[int, ...] = ()
    """Ranks that share one copy of the state, of each mesh; by default those of a node, and all."""
    reshard: tuple[bool, ...] = (False, True)
    """Each mesh with weights that stay gathered between forward and backward pass (False), or are gathered twice (True)."""
    mfu: float = 0.45
    """Share of the card's rate that computing alone reaches: assumed."""
    host_ms: float = 3.0
    """Milliseconds that the host takes to queue a block's forward and backward pass: reckoned from two slow cores, halved."""
    links: Links = field(default_factory=Links)
    """Between GPUs: assumed."""
    write_gbs: float = 2.0
    """GB/s that a node writes to its storage: assumed."""
    read_gbs: float = 2.0
    """GB/s that a node reads: assumed."""
    host_gbs: float = 20.0
    """GB/s from a GPU to its host: assumed."""
    compile_s: float = 60.0
    """Seconds to compile the blocks at a restart: assumed."""
    notice_s: float = 60.0
    """Seconds until a dead job is started again: assumed."""
    gpu_mtbf_hours: float = 50_000.0
    """Of a GPU with its share of a node, until it stops the job: assumed. (Llama 3's report: 419 unexpected stops of 16,384
    GPUs in 54 days, 50,700 GPU hours each.) Of a run it is so much less as it has GPUs."""
    folder: Path | None = None
    """Measure sampling, too, on made-up manifests that are written here (some 250 bytes a clip, removed afterwards)."""
    clips: tuple[int, ...] = (1_348_000,)
    """Clips of these."""
    page: Path | None = None
    """HTML page to write."""
    json: Path | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.card not in CARDS:
            raise ValueError(f"--card {self.card}: known are {', '.join(CARDS)}")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"--mfu {self.mfu} must be over 0 and at most 1, such as 0.45")
        for name in ("write_gbs", "read_gbs", "host_gbs", "gpu_mtbf_hours"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be over 0")

    @property
    def cluster(self) -> Cluster:
        return Cluster(nodes=self.nodes, gpus=self.gpus, card=self.card, card_bytes=CARDS[self.card][1])

    @property
    def device(self) -> Device:
        tflops, _, hbm = CARDS[self.card]
        return Device(tflops=tflops, mfu=self.mfu, hbm_gbs=hbm, host_ms=self.host_ms)

    @property
    def storage(self) -> Storage:
        names = ("write_gbs", "read_gbs", "host_gbs", "compile_s", "notice_s", "gpu_mtbf_hours")
        return Storage(**{name: getattr(self, name) for name in names})

    @property
    def meshes(self) -> list[Mesh]:
        """In the order of the flags."""
        shards = self.shards or tuple(dict.fromkeys((self.gpus, self.nodes * self.gpus)))
        return [Mesh(shard=shard, reshard=reshard) for shard in shards for reshard in self.reshard]

    def assumed(self) -> dict[str, Any]:
        """What nobody measured, by name."""
        return {"device": asdict(self.device), "links": asdict(self.links), "storage": asdict(self.storage)}
