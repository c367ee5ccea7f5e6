"""How far something is: a bar on a terminal; in a log, which nobody watches, a line a minute."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

MINUTE = 60.0  # seconds between lines of a log, and before the first


class Progress(tqdm):
    """A tqdm bar. Where stderr is no terminal, "build: 1,200 of 40,000 files (3%), 12:40 so far, 6:49:20 left" instead."""

    def __init__(self, iterable: Iterable[Any] | None = None, *, quiet: bool = False, **how: Any) -> None:
        """`quiet`: nothing at all, as of all ranks but one; the rest is tqdm's."""
        self._said, self._in_log = time.time(), not quiet and not sys.stderr.isatty()
        if self._in_log:
            how |= {"mininterval": MINUTE, "maxinterval": MINUTE, "delay": MINUTE}
        super().__init__(iterable, disable=quiet, **how)

    def line(self) -> str:
        """What a log is told."""
        elapsed, new = self.format_dict["elapsed"], self.n - self.initial
        done, whole = (self.format_sizeof(number) if self.unit_scale else f"{number:,}" for number in (self.n, self.total or 0))
        parts = [f"{done} {self.unit}s" if self.unit != "B" else f"{done}B", f"{self.format_interval(elapsed)} so far"]
        if self.total:
            parts[0] = f"{done} of {whole}{parts[0].removeprefix(done)} ({self.n / self.total:.0%})"
            parts += [f"{self.format_interval(elapsed / new * (self.total - self.n))} left"] if new else []
        name = f"{self.desc.removesuffix(': ')}: " if self.desc else ""
        return name + ", ".join(parts + ([self.postfix] if self.postfix else []))

    def told(self) -> None:
        """Something else said how far it is: a log needs no line before another minute is over."""
        self._said = self._time()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        if not self._in_log:
            return super().display(msg, pos)
        now = self._time()
        if msg is None and now - self._said >= MINUTE:
            self._said = now
            self.fp.write(f"{self.line()}\n")
            self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        if not self._in_log:  # where lines are written there is nothing to clear
            super().clear(nolock)

    def close(self) -> None:
        if self._in_log:
            self.last_print_t = self.start_t  # to tqdm, nothing was shown that must be cleared
        super().close()
