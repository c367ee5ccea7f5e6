#!/usr/bin/env python3
"""Does the loader grow? Memory, open files and threads of trainer and decoding process over many batches.

    python benchmarks/loader_soak.py [--batches 10000] [--data DATASET] [--json soak.json]

Small batches of generated clips, so that 10,000 take minutes; one clip in twelve is made to fail, and the decoding process is
killed a few times first, because that is where leaks hide. Exit code 1 if something grows.
"""

import sys
from pathlib import Path

ROOT, HERE = (str(Path(__file__).resolve().parents[i]) for i in (1, 0))
sys.path[:] = [ROOT, *(folder for folder in sys.path if folder not in (ROOT, HERE))]

import gc
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import psutil
import tyro
from tqdm import tqdm

from benchmarks.generated_dataset import generated_dataset
from benchmarks.results import check_json
from pipeline.decode import ClipRequest, DecodeError, Failure, decode_libav
from pipeline.loader import ClipLoader
from pipeline.sampling import SamplingRecipe

RECIPE = SamplingRecipe(views_per_step=4, views_per_clip=4, num_frames=4, input_size=64, patch_size=16)
LOOKS = 50  # at the processes
BETWEEN_KILLS = 30  # batches
WARM_UP = 30.0  # seconds at most, in which the number of threads and the ring are to settle
MEMORY_GROWTH = 16 << 20  # bytes of anonymous memory from the first half of the looks to the second; allocators breathe
BAD_EVERY = 12  # clips
KINDS = ("trainer", "sidecar", "workers")  # the last are all that it has forked


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How long, and on what."""

    batches: Annotated[int, tyro.conf.arg(help="To take, at least 200.")] = 10_000
    data: Annotated[Path | None, tyro.conf.arg(help="A dataset; by default 64 generated clips in data/throughput.")] = None
    kills: Annotated[int, tyro.conf.arg(help="Of the decoding process, before the batches that count.")] = 3
    json: Annotated[Path | None, tyro.conf.arg(help="File for all that was seen, and the verdict.")] = None


@dataclass(frozen=True, slots=True)
class Look:
    """What one process, or several of a kind, held after so many batches."""

    batches: int
    process: str
    own_bytes: int  # anonymous memory: without the ring, which both have, and without files
    rss_bytes: int
    descriptors: int
    threads: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if nothing grew, 1 if something did, 2 if it cannot be as asked."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    if options.batches < 200:
        print(f"loader_soak: --batches {options.batches}: fewer than 200 say nothing about growth", file=sys.stderr)
        return 2
    try:
        check_json(options.json)
        looks, facts = soak(options.data or generated_dataset(), options.batches, options.kills)
    except (ValueError, RuntimeError) as error:
        print(f"loader_soak: {error}", file=sys.stderr)
        return 2
    growth = grown(looks)
    for process in KINDS:
        last = [look for look in looks if look.process == process][-1]
        print(
            f"{process:8} {last.own_bytes / 2**20:6.0f} MiB of its own, {last.rss_bytes / 2**20:.0f} with what it shares, "
            f"{last.descriptors} open files, {last.threads} threads after {last.batches} batches"
        )
    print(f"{facts['batches_per_second']:.0f} batches/s, {facts['failures']} clips failed; {facts['tuning']}")
    print("; ".join(growth) if growth else "nothing grows")
    if options.json:
        report = {
            "verdict": "grows" if growth else "steady",
            "growth": growth,
            **facts,
            "looks": [asdict(look) for look in looks],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if growth else 0


def decode(request: ClipRequest, views: np.ndarray) -> None:
    """libav, except for a clip that always fails."""
    if request.clip.row % BAD_EVERY == BAD_EVERY - 1:
        raise DecodeError(Failure.DAMAGED, "made to fail")
    decode_libav(request, views)


def soak(dataset: Path, batches: int, kills: int) -> tuple[list[Look], dict[str, object]]:
    """Take so many batches; returns what was seen, and a few facts."""
    from benchmarks.loader_soak import decode  # by this name the decoding process finds it, also when this is the main program

    looks: list[Look] = []
    with closing(ClipLoader(dataset, RECIPE, decoder=decode, max_failure_share=0.3)) as loader:
        for _ in range(kills):
            for _ in range(BETWEEN_KILLS):
                next(loader)
            loader._process.kill()
        warm = time.monotonic() + WARM_UP
        while not loader.tuning.settled and time.monotonic() < warm:
            next(loader)
        for _ in range(BETWEEN_KILLS):
            next(loader)
        began = time.perf_counter()
        for number in tqdm(range(1, batches + 1), unit="batch", disable=None, leave=False):
            next(loader)
            if number % (batches // LOOKS) == 0:
                gc.collect()
                sidecar = psutil.Process(loader._process.pid)
                groups = ([psutil.Process()], [sidecar], sidecar.children(recursive=True))
                looks += [look(number, name, group) for name, group in zip(KINDS, groups, strict=True)]
        facts = {
            "batches": batches,
            "batches_per_second": batches / (time.perf_counter() - began),
            "failures": len(loader.failures),
            "kills": kills,
            "tuning": str(loader.tuning),
        }
    return looks, facts


def look(batches: int, name: str, processes: Sequence[psutil.Process]) -> Look:
    """All of them together."""
    memory: dict[str, int] = {"RssAnon": 0, "VmRSS": 0}
    for process in processes:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        memory = {field: before + (int(status[field].split()[0]) << 10) for field, before in memory.items()}
    descriptors, threads = (sum(getattr(process, what)() for process in processes) for what in ("num_fds", "num_threads"))
    return Look(batches, name, memory["RssAnon"], memory["VmRSS"], descriptors, threads)


def grown(looks: list[Look]) -> list[str]:
    """What grows, in words: the second half of the looks against the first, by medians."""
    findings = []
    for process in KINDS:
        mine = [look for look in looks if look.process == process]
        middle = len(mine) // 2
        for what, allowed in (("own_bytes", MEMORY_GROWTH), ("descriptors", 0), ("threads", 0)):
            before, after = (
                float(np.median([getattr(look, what) for look in half])) for half in (mine[:middle], mine[middle:])
            )
            if after - before > allowed:
                findings.append(f"{what} of the {process} grow from {before:.0f} to {after:.0f}")
    return findings


if __name__ == "__main__":
    sys.exit(main())
