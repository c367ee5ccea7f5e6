"""What is on record: a line of JSON for each cell that is done, with its command, figures, machine and commit."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.cell import Cell, Figures
from benchmarks.parts.results import describe_machine
from pipeline.storage.files import write_durably
from pipeline.version import git_commit


class Book:
    """A file; several threads may add to it."""

    def __init__(self, file: Path) -> None:
        """Raises ValueError, with the line, for what is no record."""
        self._file, self._lock = file, threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], 1):
            try:
                record = json.loads(line)
                self._records[record["cell"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{file}, line {number}: no record of a cell ({error!r}); remove it, or the file") from None
        self._machine, self._commit = describe_machine(), git_commit()

    def figures(self, cell: Cell) -> Figures | None:
        """None: not on record, or of another command."""
        record = self._records.get(cell.name)
        return record["figures"] if record and record["command"] == cell.said else None

    def add(self, cell: Cell, figures: Figures) -> None:
        record = {
            "cell": cell.name,
            "figures": {name: round(value, 6) for name, value in figures.items()},
            "command": cell.said,
            "machine": self._machine,
            "torch": torch.__version__,
            "commit": self._commit,
            "date": time.strftime("%Y-%m-%d"),
        }
        with self._lock:
            self._records[cell.name] = record
            lines = "".join(json.dumps(self._records[name]) + "\n" for name in sorted(self._records))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._file, lines.encode())
