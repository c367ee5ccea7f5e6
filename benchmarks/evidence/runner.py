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

Found = TypeVar("Found")
DONE = "done"  # a file in a cell's folder: it is over
COMMAND = "command"  # another: what it is of


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

    def all(self, trials: Iterable[Callable[["Runner"], Found]]) -> list[Found]:
        """What they found, in their order, of those that were done in time. Raises what one raised, once the others that had
        begun are over."""
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
            except BaseException:
                self.stop()
                raise
        return [found[place] for place in sorted(found)]

    def stop(self) -> None:
        """Those that run save what they have and end."""
        self._stopping = True
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)

    def figures(self, cell: Cell) -> Figures:
        """Of a cell, run if it is not on record. Raises OutOfTimeError, and RuntimeError with the last lines of a command that
        failed."""
        with self._guard:
            lock = self._locks.setdefault(cell.name, threading.Lock())
        with lock:
            if (known := self._book.figures(cell)) is not None:
                return known
            self._run(cell)
            self._book.add(cell, cell.read(self.runs / cell.name))
        known = self._book.figures(cell)
        assert known is not None
        return known

    def _there(self, cell: Cell) -> None:
        """See to it that a cell's folder holds its weights: what is on record may have been made on another machine."""
        self.figures(cell)
        with self._locks[cell.name]:
            if not (self.runs / cell.name / DONE).exists() or self._of_another(cell):
                self._run(cell)

    def _of_another(self, cell: Cell) -> bool:
        """Whether a cell's folder is there, and of another command: an older grid's."""
        folder = self.runs / cell.name
        command = folder / COMMAND
        return folder.exists() and not (command.exists() and command.read_text() == cell.said)

    def _run(self, cell: Cell) -> None:
        for need in cell.needs:
            self._there(need)
        folder = self.runs / cell.name
        if self._of_another(cell):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COMMAND).write_text(cell.said)
        left = None if self._end is None else self._end - time.monotonic()
        if self._stopping or (left is not None and left <= 0):
            raise OutOfTimeError
        began, log = time.monotonic(), self.runs / f"{cell.name}.log"
        threads = str(max(1, usable_cores() // self._jobs))
        line = [sys.executable, "-m", "tubecell", *cell.command(self.runs)]
        with log.open("ab") as output:
            process = subprocess.Popen(line, stdout=output, stderr=output, env=environment(OMP_NUM_THREADS=threads))
            self._running.add(process)
            try:
                status = process.wait(left)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                status = process.wait()
                if not (folder / DONE).exists():
                    raise OutOfTimeError from None
            finally:
                self._running.discard(process)
        if self._stopping:
            raise OutOfTimeError
        if status:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise RuntimeError(f"{cell.name} ended with status {status}:\n{last}\n{cell.said}")
        (folder / DONE).touch()
        print(f"{time.monotonic() - began:6.0f} s  {cell.name}", flush=True)
