"""What a user asks for: a dataset, what it is made of, and how a build of it runs."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataset_builders.media.presets import EncodeOptions, arguments
from dataset_builders.sources.kinds import Source
from pipeline.machine import usable_cores


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
    drop_duplicates: bool = False
    """leave out files that are there under another name, see duplicates.py"""
    began: float = field(default_factory=time.monotonic, compare=False)
    """when"""

    @property
    def place(self) -> str:
        """The dataset, as a user knows it."""
        return self.url or str(self.out)

    def options(self) -> dict[str, Any]:
        """What decides the bytes, for the agreement with earlier builds of the same dataset."""
        sources = {source.name: source.agreed() for source in self.sources}
        encoder = arguments(self.encoding.preset, self.encoding.gop)
        return {**asdict(self.encoding), "encoder": encoder, "clips_per_shard": self.clips_per_shard, "sources": sources}
