"""Standard output and error that cannot end a program: what cannot be said is left out.

A pipe whose reader has gone (`| head`, a tee that got the same Ctrl-C), a log on a full disk, a terminal that was closed, a
stream that was never open, a name that the encoding has no letters for: none may cost the state of a run or a build.
"""

import contextlib
import io
import os
import select
import sys
from typing import Any


class _Sink(io.FileIO):
    """A descriptor of a stream; takes everything, and drops what cannot be written."""

    patience: float | None = None
    _stuck = False

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            self._stuck = not select.select([], [self], [], 0 if self._stuck else self.patience)[1]
            # what select says is for so many bytes; None: a pipe that others made non-blocking is full
            if not self._stuck and (written := super().write(memoryview(data)[: select.PIPE_BUF])) is not None:
                return written
        return memoryview(data).nbytes


def keep_talking(patience: float | None = None) -> None:
    """Make sys.stdout and sys.stderr such streams; call it at the beginning of a program. Who does not read for so many seconds
    (a stopped terminal or pager) misses what is said until he does; None: he is waited for."""
    for descriptor in range(3):  # closed ones (`2>&-`): no file that is opened later may get a standard stream's number
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        os.set_inheritable(descriptor, True)  # nor in a process that is started later
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115  for good
        elif type(stream) is io.TextIOWrapper and not isinstance(getattr(stream.buffer, "raw", None), _Sink):
            with contextlib.suppress(OSError):
                stream.flush()
            sink = _Sink(stream.fileno(), "w", closefd=False)
            sink.patience = patience
            binary = io.BufferedWriter(sink)
            text = io.TextIOWrapper(binary, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
            setattr(sys, name, text)
        elif isinstance(stream, io.TextIOWrapper):  # ours already, or somebody's who listens in, such as a test
            stream.reconfigure(errors="backslashreplace")
