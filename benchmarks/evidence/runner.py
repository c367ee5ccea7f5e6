"""Cells are run here: what they need first, a few at a time, each on its own share of the cores; what is stopped goes on."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from benchmarks.evidence.book import Book
from benchmarks.evidence.cell import Cell, Figures
from pipeline.children import environment
from pipeline.machine import usable_cores
from pipeline.storage.files import write_durably

Found = TypeVar("Found")
COMMAND = "command"  # a file in a cell's folder: what it is of
PATIENCE = 60.0  # seconds that a run has to save what it has


class OutOfTimeError(Exception):
    """The minutes are over; the same command goes on."""


class Runner:
    """Of `jobs` at a time. Trials are functions that ask `figures` of the cells they need, one after the other."""

    def __init__(self, runs: Path, book: Book, jobs: int, minutes: float | None) -> None:
        self.runs, self._book, self._jobs = runs, book, jobs
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopping = False
        self.waiting = 0
        """Trials for which there was no time."""
        self.failed: list[str] = []
        """What those say that could not be done."""

    def all(self, trials: Iterable[Callable[["Runner"], Found]]) -> list[Found]:
        """What they found, in their order, of those that were done in time. One that fails does not keep the others from going
        on."""
        trials = list(trials)
        found: dict[int, Found] = {}
        with ThreadPoolExecutor(self._jobs) as pool:
            waiting = {pool.submit(trial, self): place for place, trial in enumerate(trials)}
            try:
                for done in as_completed(waiting):
                    try:
                        found[waiting[done]] = done.result()
                    except OutOfTimeError:
                        self.waiting += 1
                    except RuntimeError as error:
                        self.failed.append(str(error))
                        print(error, file=sys.stderr, flush=True)
            except BaseException:
                self.stop()
                raise
        return [found[place] for place in sorted(found)]

    def stop(self) -> None:
        """Those that run save what they have and end."""
        self._stopping = True
        for process in list(self._running):
            process.terminate()

    def figures(self, cell: Cell) -> Figures:
        """Of a cell, run if it is not on record. Raises OutOfTimeError, and RuntimeError with the last lines of a command that
        failed."""
        with self._guard:
            lock = self._locks.setdefault(cell.name, threading.Lock())
        with lock:
            if (known := self._book.figures(cell)) is not None:
                return known
            self._see_to(cell)
            self._book.add(cell, cell.read(self.runs / cell.name))
        known = self._book.figures(cell)
        assert known is not None
        return known

    def _needed(self, cell: Cell) -> None:
        """See to it that a cell's folder holds its weights: what is on record may have been made on another machine."""
        self.figures(cell)
        with self._locks[cell.name]:
            self._see_to(cell)

    def _see_to(self, cell: Cell) -> None:
        """Run a cell whose folder does not hold what it should."""
        folder = self.runs / cell.name
        command = folder / COMMAND
        if folder.exists() and not command.exists():
            raise RuntimeError(f"{folder} is no folder of this grid: move it away, or give another --folder")
        of_another = folder.exists() and command.read_text() != cell.digest
        if folder.exists() and not of_another and (folder / cell.proof).exists():
            return
        for need in cell.needs:
            self._needed(need)
        left = None if self._end is None else self._end - time.monotonic()
        if self._stopping or (left is not None and left <= 0):
            raise OutOfTimeError
        if of_another:  # of an older grid
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(command, cell.digest.encode())
        self._run(cell, left)

    def _run(self, cell: Cell, left: float | None) -> None:
        """For so many seconds, if there is a limit."""
        began, log = time.monotonic(), self.runs / f"{cell.name}.log"
        threads = str(max(1, usable_cores() // self._jobs))
        line = [sys.executable, "-m", "tubecell", *cell.command(self.runs)]
        with log.open("ab") as output:
            process = subprocess.Popen(line, stdout=output, stderr=output, env=environment(OMP_NUM_THREADS=threads))
            self._running.add(process)
            if self._stopping:  # meanwhile
                process.terminate()
            try:
                status = process.wait(left)
            except subprocess.TimeoutExpired:
                status = stopped(process)
            finally:
                self._running.discard(process)
        if (self.runs / cell.name / cell.proof).exists() and not status:
            print(f"{time.monotonic() - began:6.0f} s  {cell.name}", flush=True)
        elif status in (0, -signal.SIGTERM, -signal.SIGKILL) or self._stopping:  # asked to, it saved its state
            raise OutOfTimeError
        else:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise RuntimeError(f"{cell.name} ended with status {status}:\n{last}\n{cell.said}")


def stopped(process: subprocess.Popen) -> int:
    """Its status, after it was asked to end, and after a minute made to."""
    process.terminate()
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
