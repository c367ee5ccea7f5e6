"""Parts of the GPU suite in processes of their own: one that crashes, hangs or loses the GPU costs the measurement that it was
at, and the part goes on behind it in a new process."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.gpu.bench import Job, main
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.plan import Measurement, Part
from pipeline.children import command, environment, how_it_ended

START = 60.0  # seconds that a process may take until its first measurement: imports on a cold disk
START_DRY = 600.0  # the same beside other programs
GRACE = 20.0  # seconds that a measurement may go beyond its part's time


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie."""

    out: Path
    work: Path
    kit: Path | None

    @property
    def notes(self) -> Path:
        return self.work / "notes.jsonl"

    @property
    def log(self) -> Path:
        return self.out / "gpu_suite.log"


def time_for(parts: Sequence[Part], left: float) -> float:
    """Seconds of the first of the parts that are still to come: its share of what is left, so that what earlier ones did not
    need goes to all later ones."""
    return left * parts[0].seconds / sum(part.seconds for part in parts)


def supervise(
    part: Part, places: Places, ends: float, dry: bool, on_news: Callable[[], object], only: Collection[str] | None = None
) -> None:
    """Run a part, or `only` some of its measurements, until time.time() is `ends`, at the latest; `on_news` is called when
    notes have been written."""
    notes, news = Notes(places.notes), Notes(places.notes)
    for _ in news.fresh():
        pass  # of what was before
    remaining = [measurement for measurement in part.measurements if only is None or measurement.name in only]
    while remaining:
        reason, handled, began = _one_process(part, remaining, places, ends, dry, news, on_news)
        if reason is None:
            return
        # without any measurement begun it is the process that cannot start: another one would not either
        for measurement in [remaining[handled - 1]] if began else remaining:
            _blame(notes, part, measurement, reason, places.log)
        remaining = remaining[handled:] if began else []
        on_news()


def put_off(parts: Sequence[Part], notes: Iterable[Mapping[str, Any]]) -> list[tuple[Part, list[str]]]:
    """The measurements that there was no time for."""
    latest: dict[tuple[str, str], str] = {}
    for note in notes:
        if note["kind"] in ("began", "put off"):
            latest[note["part"], note["measurement"]] = note["kind"]
    found = [(part, [m.name for m in part.measurements if latest.get((part.name, m.name)) == "put off"]) for part in parts]
    return [(part, names) for part, names in found if names]


def _one_process(
    part: Part,
    measurements: Sequence[Measurement],
    places: Places,
    ends: float,
    dry: bool,
    news: Notes,
    on_news: Callable[[], object],
) -> tuple[str | None, int, bool]:
    """-> (why it ended before it was done, or None; how many measurements it began or put off; whether it began any)."""
    told = [(m.name, m.seconds, list(m.figures)) for m in measurements]
    job = Job(part.name, part.module, told, places.notes, places.out, places.work, places.kit, dry, ends)
    start = START_DRY if dry else START
    handled, began, kill_at, why = 0, False, time.time() + start, f"it did not begin to measure within {start:.0f} s"
    with places.log.open("ab") as log:
        process = _start(job, log)
        try:
            while True:
                ended = process.poll()
                fresh = [note for note in news.fresh() if note["part"] == part.name]
                for note in fresh:
                    if note["kind"] == "began":
                        patience = min(measurements[handled].patience(dry), max(0.0, ends - note["time"]) + GRACE)
                        kill_at, why = note["time"] + patience, f"killed after {patience:.0f} s: it hangs, or is too slow"
                        began = True
                    handled += note["kind"] in ("began", "put off")
                if fresh:
                    on_news()
                elif ended is not None:
                    words = f"its process {'was ended by' if ended < 0 else 'ended with'} {how_it_ended(ended)}"
                    return words if ended else None, handled, began
                elif time.time() > kill_at:
                    return why, handled, began
                time.sleep(0.05)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: whatever it started goes with it
            process.wait()


def _start(job: Job, log: BinaryIO) -> subprocess.Popen:
    site = str(job.kit / "site") if job.kit else None  # last, so that the machine's own packages come first
    variables = environment(PYTHONUNBUFFERED="1", **({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if job.dry else {}))
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [variables["PYTHONPATH"], site]))
    line = command(main, json.dumps(asdict(job), default=str))
    return subprocess.Popen(
        line, env=variables, cwd=job.work, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def _blame(notes: Notes, part: Part, measurement: Measurement, reason: str, log: Path) -> None:
    """Put down that a measurement took its process down, and that the figures it had not yet given are missing for it."""
    mine = [note for note in Notes(notes.file).fresh() if note.get("measurement") == measurement.name]
    known = {note["name"] for note in mine if note["kind"] in ("figure", "absent")}
    names = [name for name in measurement.figures if f"{part.name}/{name}" not in known]
    place: dict[str, Any] = {"part": part.name, "measurement": measurement.name}
    if names or not any(note["kind"] == "failure" for note in mine):  # it may have said so itself
        tail = log.read_bytes()[-4000:].decode("utf-8", "replace")  # what it said last
        notes.write("failure", **place, error=reason, traceback=tail, names=names)
    for name in names:
        notes.write("absent", **place, name=f"{part.name}/{name}", reason=reason)
