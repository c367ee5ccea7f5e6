"""The signals by which a job is asked to stop. They reach every process of it, and are one process's to handle, which may
want to save first; those beside it end when it does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# from a scheduler or torchrun, a terminal, one that closes, Ctrl-\, and the warnings of Slurm, SGE and PBS before a limit
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class StopSignal:
    """Any of NUMBERS asks to save and stop; a second Ctrl-C stops at once. SIGHUP stays ignored under nohup."""

    def __init__(self) -> None:
        self.requested, self.name = False, ""
        for number in NUMBERS:
            # a shell's script has its background jobs ignore SIGINT and SIGQUIT, but who sends one by number means it
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.requested, self.name = True, signal.Signals(number).name


@contextmanager
def blocked() -> Iterator[None]:
    """A process that is started meanwhile does not get them, from its first moment to its last."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """For a process that was started before it knew better."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
