"""What is on record: a line of JSON for each cell that is done, with its command, figures, machine and commit."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.cell import Cell, Figures
from benchmarks.parts.results import describe_machine
from pipeline.storage.file_lock import lock
from pipeline.storage.files import write_durably
from pipeline.version import git_commit


class Book:
    """A file; several threads may add to it."""

    def __init__(self, file: Path) -> None:
        """Raises ValueError, with the line, for what is no record."""
        self._file, self._lock = file, threading.Lock()
        self._records = self._read()
        self._machine, self._commit = describe_machine(), git_commit()

    def _read(self) -> dict[str, dict[str, Any]]:
        records: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(self._file.read_text().splitlines() if self._file.exists() else [], 1):
            try:
                record = json.loads(line)
                records[record["cell"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{self._file}, line {number}: no record of a cell ({error!r}); remove it") from None
        return records

    def figures(self, cell: Cell) -> Figures | None:
        """None: not on record, or of another command, other clips, or other runs before it."""
        record = self._records.get(cell.name)
        return record["figures"] if record and record.get("of") == cell.digest else None

    def add(self, cell: Cell, figures: Figures) -> None:
        record = {
            "cell": cell.name,
            "figures": {name: round(value, 6) for name, value in figures.items()},
            "command": cell.said,
            "of": cell.digest,
            "machine": self._machine,
            "torch": torch.__version__,
            "commit": self._commit,
            "date": time.strftime("%Y-%m-%d"),
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self._file.with_suffix(".lock").open("a") as shared:
            lock(shared, wait=True)  # another command may have added to it
            self._records = self._read() | {cell.name: record}
            lines = "".join(json.dumps(self._records[name]) + "\n" for name in sorted(self._records))
            write_durably(self._file, lines.encode())
