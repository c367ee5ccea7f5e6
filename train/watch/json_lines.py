"""The JSONL files in which a run keeps what it says of itself. What cannot be written must not end a run, or cost its state."""

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.console import may_fail

WAITING = 10_000  # lines that are kept in memory while a disk is full


class JsonLines:
    """A file that grows by whole lines. Those that cannot be written wait for the next that can."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._waiting: deque[bytes] = deque(maxlen=WAITING)

    def add(self, *lines: dict[str, Any]) -> None:
        """Write lines; a failure is told once."""
        self._waiting.extend((json.dumps(line) + "\n").encode() for line in lines)
        with may_fail(str(self.file)):
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                while self._waiting:
                    self._write(descriptor, self._waiting[0])
                    self._waiting.popleft()
            finally:
                os.close(descriptor)

    def _write(self, descriptor: int, line: bytes) -> None:
        """All of it or nothing. Raises OSError."""
        size = os.fstat(descriptor).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that are whole; none of a file that is not there."""
    found = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def keep_lines(file: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cut a file off at the first line that is not to be kept, or that was cut off: those from there on were written by a run
    that did not save what they tell of. Needs no room on the disk."""
    if not file.is_file():
        return
    kept = 0
    with file.open("rb+") as opened:
        for line in opened:
            try:
                if not line.endswith(b"\n") or not keep(json.loads(line)):
                    break
            except ValueError:
                break
            kept += len(line)
        opened.truncate(kept)
