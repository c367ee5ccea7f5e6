"""What a rank measures of its steps: rates, FLOPs, waiting for data, memory, and which rank is the slowest.

Nothing here waits: counts are taken from what the host knows anyway, times on a GPU are read from events when a line of the
log is due and the host has waited for the device already.
"""

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.batches import AnyBatch, AnyLoader
from train.compute.activation_checkpointing import recomputed_blocks
from train.compute.device_speed import gemm_flops, memory_gib
from train.compute.memory import Costed, cost_of, recomputed_share
from train.compute.parallel import Ranks
from train.config import Policy

PROBE = 4096  # size of the matrices by which GPUs are compared at every line: 0.14 TFLOP, 96 MiB in bf16


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewFlops:
    """FLOPs of training on one view."""

    model: float
    """Executed once, forward and backward: what MFU counts."""
    recompute: float
    """Of what activation checkpointing computes again; HFU counts both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport:
    """One rank since the last line of the log: what the ranks tell each other."""

    host: str
    seconds: float
    """Since the last line."""
    wait: float
    """Seconds of them in which there was nothing to compute on for lack of data."""
    busy: float | None
    """CPU: seconds in which the trainer's thread ran. It sleeps while it waits for other ranks, so these are its own."""
    gemm: float | None
    """GPU: FLOP/s of a matrix product just now. Its time in a step cannot be used: it contains the waiting for other ranks."""
    memory_gib: float
    clips: tuple[int, ...]
    """Taken from the loader, by source."""


def view_flops(stage: Costed) -> ViewFlops:
    """Of what is computed once, and of the blocks that run again."""
    compute, cost = stage.config.compute, cost_of(stage)
    again = recomputed_blocks(Policy.parse(compute.activation_checkpointing), cost, compute.most_views)
    return ViewFlops(model=cost.flops, recompute=cost.flops * recomputed_share(cost, again))


class StepMeter:
    """Every rank has one. `next_batch` stands for `next(loader)`; `line` is called by all ranks when the log is due."""

    def __init__(
        self, loader: AnyLoader, ranks: Ranks, *, dtype: torch.dtype, flops: ViewFlops, peak: float | None, gemm: float
    ) -> None:
        """`peak` and `gemm` are FLOP/s of one device in `dtype`: by the data sheet (None: not known), and measured."""
        self._loader, self._ranks, self._dtype = loader, ranks, dtype
        self._flops, self._peak, self._gemm = flops, peak, gemm
        self._sources = loader.manifest.sources
        self._on_gpu = ranks.device.type == "cuda"
        self._restart()

    def next_batch(self) -> AnyBatch:
        """The loader's next batch; its sources are counted, and the time without one."""
        if self._on_gpu:
            # A host that is steps ahead may wait for data while the device is busy. What counts is the time between the end of
            # what was queued before and the moment from which there is something new.
            idle = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            idle[0].record()
            batch = next(self._loader)
            idle[1].record()
            self._idle.append(idle)
        else:
            batch = next(self._loader)
        self._clips += np.bincount(self._loader.manifest.source[batch.rows.numpy()], minlength=len(self._sources))
        return batch

    def line(self, steps: int) -> dict[str, Any]:
        """What is to be said of the last `steps` steps, the same on every rank. The device has done them.

        seconds; views_per_second, over all ranks, and views_per_second_of each source; tflops, a rank's FLOP/s with what is
        computed again; mfu and hfu, shares of the data sheet's rate without and with it, None where that is not known, and
        gemm_share, of the measured product's rate; data_wait, share of the time, and memory_gib, of the rank where it is
        most; slowest_rank, slowest_host and slowest_behind, see `slowest`.
        """
        reports: list[RankReport] = self._ranks.gather(self._report())
        self._restart()
        seconds = max(report.seconds for report in reports)
        recipe = self._loader.recipe
        views = np.sum([report.clips for report in reports], 0) * recipe.views_per_clip
        rank_views = steps * recipe.views_per_step / len(reports) / seconds  # a second
        model, hardware = rank_views * self._flops.model, rank_views * (self._flops.model + self._flops.recompute)
        rank, behind = slowest(reports)
        return {
            "seconds": seconds,
            "views_per_second": steps * recipe.views_per_step / seconds,
            "views_per_second_of": dict(zip(self._sources, (views / seconds).tolist(), strict=True)),
            "tflops": hardware / 1e12,
            "mfu": self._peak and model / self._peak,
            "hfu": self._peak and hardware / self._peak,
            "gemm_share": hardware / self._gemm,
            "data_wait": min(1.0, max(report.wait / report.seconds for report in reports)),
            "memory_gib": max(report.memory_gib for report in reports),
            "slowest_rank": rank,
            "slowest_host": reports[rank].host,
            "slowest_behind": behind,
        }

    def _report(self) -> RankReport:
        now, device = time.perf_counter(), self._ranks.device
        if self._on_gpu:
            wait = sum(begin.elapsed_time(end) for begin, end in self._idle) / 1e3
            busy, gemm = None, gemm_flops(device, self._dtype, PROBE, seconds=0) if self._ranks.world_size > 1 else None
        else:
            wait, gemm = self._loader.wait_seconds - self._waited, None
            busy = time.thread_time() - self._ran
        return RankReport(
            host=socket.gethostname(),
            seconds=now - self._began,
            wait=wait,
            busy=busy,
            gemm=gemm,
            memory_gib=memory_gib(device),
            clips=tuple(self._clips.tolist()),
        )

    def _restart(self) -> None:
        self._began, self._ran, self._waited = time.perf_counter(), time.thread_time(), self._loader.wait_seconds
        self._clips = np.zeros(len(self._sources), np.int64)
        self._idle: list[list[torch.cuda.Event]] = []


def slowest(reports: Sequence[RankReport]) -> tuple[int, float]:
    """The rank that takes longest by itself, and by which share of the median rank's time that is more.

    All ranks leave a step at the same time, so its length names nobody. Own time is the wait for data and, on a CPU, the time
    in which the rank's thread ran; on a GPU the step without that wait, scaled by how fast the rank multiplies matrices: what
    the slowest GPU takes as long as the step for, a faster one is done with sooner.
    """
    if any(report.gemm for report in reports):
        step = max(report.seconds for report in reports) - max(report.wait for report in reports)
        rates = [report.gemm or 0.0 for report in reports]
        own = [report.wait + step * min(rates) / rate for report, rate in zip(reports, rates, strict=True)]
    else:
        own = [report.wait + (report.busy or 0.0) for report in reports]
    rank = max(range(len(own)), key=own.__getitem__)
    median = statistics.median(own)
    return rank, own[rank] / median - 1 if median else 0.0
