#!/usr/bin/env python3
"""Does the loader grow? Memory, open files and threads of the trainer, its sidecar and every decoding process, clip by clip.

    tubecell loader-soak [--clips 100000] [--data DATASET] [--json soak.json]

Every decoding process decodes so many clips, of many sizes, lengths and rates, because holes of one size in a heap are filled
again; nobody gives memory back for the measurement's sake. A line is fitted to the anonymous memory of each process over the
second half of its clips, and its slope is the verdict. One clip in twelve is made to fail, and the sidecar is killed a few
times first, because that is where leaks hide. Exit code 1 if something grows.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import psutil
import tyro
from tqdm import tqdm

from benchmarks.parts.generated_dataset import varied_dataset
from benchmarks.parts.program import program
from benchmarks.parts.results import describe_machine
from benchmarks.parts.soak_decoder import CountingDecoder
from pipeline.decoding.decode import Decoder
from pipeline.loader import ClipLoader
from pipeline.sampling import SamplingRecipe

RECIPE = SamplingRecipe(views_per_step=16, views_per_clip=2, num_frames=4, input_size=128, patch_size=16)
LOOKS = 100  # at the processes, so many times
FEWEST_CLIPS = 100
BETWEEN_KILLS = 30  # batches
SLOPE = 50.0  # bytes of anonymous memory a clip, at most
STEP = 1 << 20  # bytes, in which allocators take memory: as much may come in the second half of a short soak


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How long, and on what."""

    clips: Annotated[int, tyro.conf.arg(help=f"That every decoding process decodes, at least {FEWEST_CLIPS}.")] = 100_000
    data: Annotated[Path | None, tyro.conf.arg(help="A dataset; by default 48 generated clips in data/soak.")] = None
    workers: Annotated[int, tyro.conf.arg(help="Decoding processes.")] = 2
    kills: Annotated[int, tyro.conf.arg(help="Of the sidecar, before the clips that count.")] = 3
    json: Annotated[Path | None, tyro.conf.arg(help="File for all that was seen, and the verdict.")] = None


@dataclass(frozen=True, slots=True)
class Look:
    """What a process held after so many clips."""

    process: str
    clips: int  # that it has decoded; of one that does not decode, that the trainer was given
    own_bytes: int  # anonymous memory: without the ring, which all have, and without files
    rss_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """Of the anonymous memory of a process over the second half of its looks, in bytes a clip."""

    process: str
    clips: int
    slope: float
    limit: float  # SLOPE; more where so few clips show no less

    def __str__(self) -> str:
        seen = "" if self.limit == SLOPE else f", so few clips show no less than {self.limit:.0f}"
        return f"{self.process} grows by {self.slope:.0f} bytes a clip, over {self.clips} clips{seen}"


@program(Options, failed=2)
def main(options: Options) -> int:
    """Returns 1 if something grew."""
    if options.clips < FEWEST_CLIPS or options.workers < 1:
        raise ValueError(
            f"--clips {options.clips} --workers {options.workers}: fewer than {FEWEST_CLIPS} clips say nothing about growth, "
            "and at least one process has to decode"
        )
    looks, facts = soak(options.data or varied_dataset(), options.clips, options.workers, options.kills)
    fitted, growth = slopes(looks), grown(looks)
    last = {look.process: look for look in looks}
    for line in fitted:
        look = last[line.process]
        print(
            f"{line.process:<16} {line.slope:8.1f} bytes a clip, {look.own_bytes / 2**20:6.1f} MiB of its own after "
            f"{look.clips} clips, {look.rss_bytes / 2**20:.0f} with what it shares, {look.descriptors} open files, "
            f"{look.threads} threads"
        )
    print(f"{facts['clips_per_second']:.0f} clips/s, {facts['failures']} failed; {facts['tuning']}")
    print("; ".join(growth) if growth else f"nothing grows by more than {max(line.limit for line in fitted):.0f} bytes a clip")
    if options.json:
        found = {"verdict": "grows" if growth else "steady", "growth": growth, "slopes": [asdict(line) for line in fitted]}
        options.json.write_text(json.dumps({**found, **facts, "looks": [asdict(look) for look in looks]}, indent=1) + "\n")
    return 1 if growth else 0


def soak(
    dataset: Path, clips: int, workers: int, kills: int, make_decoder: Callable[[str], Decoder] = CountingDecoder
) -> tuple[list[Look], dict[str, object]]:
    """Take batches until every process has decoded so many clips, or Ctrl-C; returns what was seen, and a few facts."""
    looks: list[Look] = []
    with tempfile.TemporaryDirectory() as folder:
        decoder = make_decoder(folder)
        with closing(ClipLoader(dataset, RECIPE, workers=workers, decoder=decoder, max_failure_share=0.3)) as loader:
            for _ in range(kills):
                for _ in range(BETWEEN_KILLS):
                    next(loader)
                loader._process.kill()
            began, taken, fewest = time.perf_counter(), 0, 0
            with suppress(KeyboardInterrupt), tqdm(total=clips, unit="clip", disable=None, leave=False) as bar:
                while fewest < clips:
                    for _ in range(-(-clips * workers // (LOOKS * loader.clips))):
                        next(loader)
                        taken += loader.clips
                    gc.collect()
                    seen = list(look(loader._process.pid, taken, Path(folder)))
                    looks += seen
                    before, fewest = fewest, min(look.clips for look in seen if look.process.startswith("decoder"))
                    bar.update(fewest - before)
            facts = {
                "machine": describe_machine(),
                "dataset": loader.num_clips,
                "recipe": asdict(RECIPE),
                "clips_per_second": taken / (time.perf_counter() - began),
                "failures": loader.num_failures,
                "kills": kills,
                "tuning": str(loader.tuning),
            }
    return looks, facts


def look(sidecar: int, taken: int, counts: Path) -> Iterator[Look]:
    """At all of a loader's processes; `counts` holds the files of `CountingDecoder`."""
    beside = psutil.Process(sidecar)
    yield _look("trainer", psutil.Process(), taken)
    yield _look("sidecar", beside, taken)
    for server in beside.children():
        yield _look("fork server", server, taken)
        for decoder in server.children():
            if (file := counts / str(decoder.pid)).exists():
                yield _look(f"decoder {decoder.pid}", decoder, file.stat().st_size)


def _look(name: str, process: psutil.Process, clips: int) -> Look:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    own, all_of_it = (int(status[field].split()[0]) << 10 for field in ("RssAnon", "VmRSS"))
    return Look(name, clips, own, all_of_it, process.num_fds(), process.num_threads())


def by_process(looks: Sequence[Look]) -> Iterator[tuple[str, list[Look], list[Look]]]:
    """(process, the first half of its looks, the second)."""
    for process in dict.fromkeys(look.process for look in looks):
        mine = [look for look in looks if look.process == process]
        yield process, mine[: len(mine) // 2], mine[len(mine) // 2 :]


def slopes(looks: Sequence[Look]) -> list[Slope]:
    """Of each process, by least squares."""
    found = []
    for process, _, half in by_process(looks):
        clips = np.array([look.clips for look in half], float)
        if np.ptp(clips):
            slope = float(np.polyfit(clips - clips[0], [look.own_bytes for look in half], 1)[0])
            found.append(Slope(process, half[-1].clips, slope, max(SLOPE, STEP / (clips[-1] - clips[0]))))
    return found


def grown(looks: Sequence[Look]) -> list[str]:
    """What grows, in words: memory by its slope, the rest by the medians of both halves of the looks."""
    findings = [str(line) for line in slopes(looks) if line.slope > line.limit]
    for process, *halves in by_process(looks):
        for what in ("descriptors", "threads") if halves[0] else ():
            before, after = (np.median([getattr(look, what) for look in half]) for half in halves)
            if after > before:
                findings.append(f"{what} of the {process} grow from {before:.0f} to {after:.0f}")
    return findings


if __name__ == "__main__":
    sys.exit(main())
