"""The notes of the GPU suite: a line of JSON for everything that is found out, on the disk at once, so that a process that is
killed leaves what it had."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Notes:
    """Writes notes, or reads those that have come since it last did."""

    def __init__(self, file: Path) -> None:
        self.file, self._read = file, 0

    def write(self, kind: str, **values: Any) -> None:
        """A line: {"kind", "time", ...}."""
        line = json.dumps({"kind": kind, "time": time.time(), **values}, default=str)
        with self.file.open("a") as file:
            file.write(line + "\n")

    def fresh(self) -> Iterator[dict[str, Any]]:
        """The whole lines that were written since the last call."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._read += len(line)
                yield json.loads(line)
