"""Parts of the GPU suite in processes beside this one: one that crashes, hangs or loses the GPU costs the part that it was at,
and a new process goes on behind it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from benchmarks.gpu.bench import LEAST_SHARE, main
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.plan import Part
from pipeline.children import command, environment, how_it_ended

START = 10.0  # seconds of a process' start, which the budget reckons with
LONGEST_START, LONGEST_START_DRY = 60.0, 600.0  # after which it is killed: imports on a cold disk, or beside other programs


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie."""

    out: Path
    work: Path  # of all parts, gone afterwards
    data: Path | None  # a dataset that was carried along
    dry: bool

    @property
    def notes(self) -> Path:
        return self.work / "notes.jsonl"

    @property
    def log(self) -> Path:
        return self.out / "gpu_suite.log"


def run_parts(parts: Sequence[Part], places: Places, ends: float, on_news: Callable[[], object]) -> None:
    """The parts in their order until time.time() is `ends`; `on_news` is called when notes have been written."""
    notes = Notes(places.notes)
    for _, group in groupby(parts, key=lambda part: 0 if places.dry else part.process):  # dry, one: a start is 8 s of a CPU
        remaining = list(group)
        while remaining:
            left = ends - time.time() - START
            if not places.dry and not any(left >= LEAST_SHARE * part.seconds for part in remaining):
                for part in remaining:
                    words = f"{max(0.0, left):.0f} s were left after a process' start, it takes {part.seconds:.0f}"
                    notes.write("not done", part=part.name, reason=words)
                break
            reason, begun = _one_process(remaining, places, ends, on_news)
            if reason is not None:
                # without any part begun it is the process that cannot start: another one would not either
                for part in [remaining[begun - 1]] if begun else remaining:
                    tail = places.log.read_bytes()[-4000:].decode("utf-8", "replace")  # what it said last
                    notes.write("failure", part=part.name, name=part.name, error=reason, traceback=tail)
            remaining = remaining[begun:] if reason is not None and begun else []
        on_news()


def _one_process(parts: Sequence[Part], places: Places, ends: float, on_news: Callable[[], object]) -> tuple[str | None, int]:
    """-> (why it ended before it was done, or None; how many of the parts it began, or had no time for)."""
    news = Notes(places.notes)
    for _ in news.fresh():
        pass  # of what was before
    longest = LONGEST_START_DRY if places.dry else LONGEST_START
    handled, kill_at, why = 0, time.time() + longest, f"it did not begin to measure within {longest:.0f} s"
    with places.log.open("ab") as log:
        process = _start(parts, places, ends, log)
        try:
            while True:
                ended = process.poll()
                fresh = list(news.fresh())
                for note in fresh:
                    handled += note["kind"] in ("began", "not done")
                    if note["kind"] == "began":
                        patience = parts[handled - 1].patience(places.dry)
                        kill_at, why = note["time"] + patience, f"killed after {patience:.0f} s: it hangs, or is too slow"
                        if kill_at > ends:
                            kill_at, why = ends, "killed: the time was over"
                if fresh:
                    on_news()
                elif ended is not None:
                    words = f"its process {'was ended by' if ended < 0 else 'ended with'} {how_it_ended(ended)}"
                    return words if ended else None, handled
                elif time.time() > min(kill_at, ends):
                    return why if time.time() > kill_at else "killed: the time was over", handled
                time.sleep(0.05)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: whatever it started goes with it
            process.wait()


def _start(parts: Sequence[Part], places: Places, ends: float, log: BinaryIO) -> subprocess.Popen:
    job = {"parts": [asdict(part) for part in parts], "ends": ends, "notes": places.notes, **asdict(places)}
    variables = environment(PYTHONUNBUFFERED="1", **({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if places.dry else {}))
    line = command(main, json.dumps(job, default=str))
    return subprocess.Popen(
        line, env=variables, cwd=places.work, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
