"""A process beside the trainer that does what the trainer should not wait for.

It does not hear the job's signals: Ctrl-C, a scheduler and torchrun send them to all processes of a job, when the trainer may
still want its help to save. It ends with the trainer: when its connection closes, or, if the trainer is killed, by the kernel's
hand at that moment (`PR_SET_PDEATHSIG`), so that it cannot write into what the next run writes.
"""

import importlib
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pipeline import stop_signals
from pipeline.children import how_it_ended, start
from train.compute.on_cpu import keep_memory

# Trainer and loader come first. A step that computes on the cores, and waits for each of them, took 6.9 s instead of 1.1 while
# a checkpoint of 1.1 GB was written.
NICE = 10


@dataclass(frozen=True, slots=True)
class Post:
    """What a helper is for; the first message to it."""

    rank: int = 0
    world_size: int = 1
    group: str = ""  # a name that the helpers of all ranks share
    memfd: int | None = None  # of the memory that it shares with the trainer
    module: str | None = None  # to import before it is asked for anything


class HelperProcess:
    """A process beside the trainer that calls functions, one at a time.

    It imports what it needs, not the user's script, and sees no GPU. What is asked of it while it still imports waits, and a
    long message waits in `submit`.
    """

    def __init__(self, post: Post) -> None:
        with stop_signals.blocked():
            files = () if post.memfd is None else (post.memfd,)
            self._process, self._connection = start(main, pass_fds=files, CUDA_VISIBLE_DEVICES="")
        self.pid = self._process.pid
        self._send(post)

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function(*arguments)` there, after `outcome` of what was asked before."""
        self._send((function, arguments))

    def answered(self) -> bool:
        """Whether `outcome` would not wait."""
        return self._connection.poll()

    def wait(self) -> None:
        """Until it has answered."""
        self._connection.poll(None)

    def outcome(self) -> str | None:
        """Wait for what was submitted: None when it is done, or what went wrong."""
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            code = self._process.wait()
            advice = "; the system does that when memory runs out" if code == -signal.SIGKILL else ""
            return f"the process beside the trainer that does this was ended by {how_it_ended(code)}{advice}"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self, *, at_once: bool = False) -> None:
        """It ends when it has done what was submitted, or at once."""
        self._connection.close()
        if at_once:
            self._process.kill()
        self._process.wait()

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead, which `outcome` says
            self._connection.send(message)


post = Post()  # of this process, if it is a helper


def main(connection: Connection) -> None:
    """A helper's life."""
    global post
    os.nice(NICE)
    keep_memory()
    post = connection.recv()
    if post.module:
        importlib.import_module(post.module)
    while True:
        function, arguments = connection.recv()
        try:
            function(*arguments)
            connection.send(None)
        except OSError as error:
            connection.send(str(error))
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
