"""Processes that share what their owner has loaded, made while it still has no threads, or later from a copy of that moment.

A fork is milliseconds, and takes no memory for what nobody changes; a fork of a process with threads may hang for ever, in a
lock that one of them held. Some libraries start threads when they are imported, such as pyarrow, and NumPy where OpenBLAS may
have more than one. So the kernel is asked: what has a second thread is not forked. (multiprocessing's fork server begins with a
fresh interpreter, and imports everything again.)
"""

import os
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from pipeline.children import die_with_parent, how_it_ended

MESSAGE = struct.Struct("<cq")  # what to do, or was done; a number: of threads, a process, or the status it ended with
PREPARE, FORK, REAP = b"p", b"f", b"r"
FAILED = b"e"  # instead, with as many bytes of text behind it


class ProcessDiedError(Exception):
    """The other end is no more; the message says how it ended."""


class ServerDiedError(Exception):
    """Nothing can be forked any more, and what was is gone, too."""


class ForkedProcess:
    """The owner's end of a process. For one thread at a time."""

    def __init__(self, pid: int, connection: Connection, server: "ForkServer") -> None:
        self.pid, self._connection, self._server = pid, connection, server

    def send(self, message: object) -> None:
        """Raises ProcessDiedError."""
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ProcessDiedError(self._ended()) from error

    def receive(self, timeout: float) -> Any:
        """What it sent. Raises TimeoutError after so many seconds without a word, and then it is killed; ProcessDiedError."""
        try:
            if self._connection.poll(timeout):
                return self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise ProcessDiedError(self._ended()) from error
        os.kill(self.pid, signal.SIGKILL)
        self._ended()
        raise TimeoutError

    def close(self) -> None:
        """It leaves when it has nothing in hand."""
        self._connection.close()

    def _ended(self) -> str:
        self.close()
        return how_it_ended(os.waitstatus_to_exitcode(self._server.reap(self.pid)))


Serve = Callable[[Connection], None]
"""What a process does, until the connection is closed."""


class ForkServer:
    """A process that was forked when this was made, does nothing, and forks."""

    def __init__(self, prepare: Callable[[], Serve], *, unneeded: tuple[Connection, ...] = ()) -> None:
        """Its processes do what `prepare()` returns. It is called in the server, so that they share what it loads, or in each
        of them if it starts threads. They close what is `unneeded`.

        Raises RuntimeError if this process has more than one thread, or `prepare` fails; ServerDiedError.
        """
        self._lock = threading.Lock()
        self._start(prepare, unneeded)
        if self._ask(PREPARE, 0, []):
            self.close()
            self._start(prepare, unneeded)

    def _start(self, prepare: Callable[[], Serve], unneeded: tuple[Connection, ...]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._pid = fork_alone()
            if self._pid == 0:
                _never_return(_serve_forks, theirs, prepare, (self._socket, *unneeded))

    def fork(self) -> ForkedProcess:
        """A new one. Raises ServerDiedError, and RuntimeError if the server has more than one thread."""
        ours, theirs = Pipe()
        with theirs:
            return ForkedProcess(self._ask(FORK, 0, [theirs.fileno()]), ours, self)

    def reap(self, pid: int) -> int:
        """The wait status of one that has ended, or does so now. Raises ServerDiedError."""
        return self._ask(REAP, pid, [])

    def close(self) -> None:
        """End it, and with it all that it has forked."""
        self._socket.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _ask(self, what: bytes, pid: int, descriptors: list[int]) -> int:
        try:
            with self._lock:
                socket.send_fds(self._socket, [MESSAGE.pack(what, pid)], descriptors)
                answer, number = MESSAGE.unpack(self._socket.recv(MESSAGE.size, socket.MSG_WAITALL))
                text = self._socket.recv(number, socket.MSG_WAITALL).decode() if answer == FAILED else ""
        except (OSError, struct.error) as error:
            raise ServerDiedError from error
        if text:
            raise RuntimeError(text)
        return int(number)


def fork_alone() -> int:
    """As `os.fork`. Raises RuntimeError if this process has more than one thread."""
    if threads := other_threads():
        raise RuntimeError(
            f"process {os.getpid()} has {1 + len(threads)} threads, {', '.join(threads)} beside the first, and is not forked: "
            "the fork might wait for ever for a lock of theirs. What starts threads whenever Python starts (sitecustomize, "
            "LD_PRELOAD, debuggers and profilers that follow child processes) has to leave this process alone"
        )
    return os.fork()


def other_threads() -> list[str]:
    """Names of this process's threads but the first, libraries' own among them."""
    names, pythons = [], {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in map(int, os.listdir("/proc/self/task")):
        if task != os.getpid():
            with suppress(OSError), open(f"/proc/self/task/{task}/comm") as name:  # OSError: it ended just now
                names.append(pythons.get(task) or name.read().strip())
    return names


def _serve_forks(control: socket.socket, prepare: Callable[[], Serve], unneeded: tuple[Any, ...]) -> None:
    for each in unneeded:
        each.close()
    die_with_parent(os.getppid())
    serve: Serve = lambda connection: prepare()(connection)  # noqa: E731
    while True:
        message, descriptors, *_ = socket.recv_fds(control, MESSAGE.size, 1)
        if not message:  # the owner is gone; with this process go all that it has forked
            return
        kind, number = MESSAGE.unpack(message)
        try:
            if kind == PREPARE:
                serve = prepare()
                number = len(other_threads())
            elif kind == REAP:
                number = os.waitpid(number, 0)[1]
            else:
                server, number = os.getpid(), fork_alone()
                if number == 0:
                    control.close()
                    die_with_parent(server)
                    _never_return(serve, Connection(descriptors[0]))
                os.close(descriptors[0])
            control.sendall(MESSAGE.pack(kind, number))
        except Exception as error:
            if kind != PREPARE and not isinstance(error, RuntimeError):
                raise
            text = traceback.format_exc().encode()
            control.sendall(MESSAGE.pack(FAILED, len(text)) + text)


def _never_return(function: Callable[..., None], *arguments: Any) -> NoReturn:
    """Run it, and end the process without what its parent has registered for its own end."""
    code = 1
    try:
        function(*arguments)
        code = 0
    except (EOFError, ConnectionError):
        code = 0
    finally:
        os._exit(code)
