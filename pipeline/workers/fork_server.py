"""Processes that share what their owner has loaded, made while it still has no threads, or later from a copy of that moment.

A fork is milliseconds, and takes no memory for what nobody changes; a fork of a process with threads may hang for ever, in a
lock that one of them held. (multiprocessing's fork server begins with a fresh interpreter, and imports everything again.)
"""

import ctypes
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

MESSAGE = struct.Struct("<cq")  # what to do, or was done; a process, or the status it ended with
FORK, REAP = b"f", b"r"
PR_SET_PDEATHSIG = 1


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
        code = os.waitstatus_to_exitcode(self._server.reap(self.pid))
        return signal.Signals(-code).name if code < 0 else f"status {code}"


class ForkServer:
    """A process that was forked when this was made, does nothing, and forks."""

    def __init__(self, serve: Callable[[Connection], None], *, unneeded: tuple[Connection, ...] = ()) -> None:
        """`serve(connection)` is what its processes do, until the connection is closed. They close what is `unneeded`."""
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            _never_return(_serve_forks, theirs, serve, (ours, *unneeded))
        theirs.close()
        self._socket, self._lock = ours, threading.Lock()

    def fork(self) -> ForkedProcess:
        """A new one. Raises ServerDiedError."""
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
                return int(MESSAGE.unpack(self._socket.recv(MESSAGE.size, socket.MSG_WAITALL))[1])
        except (OSError, struct.error) as error:
            raise ServerDiedError from error


def _serve_forks(control: socket.socket, serve: Callable[[Connection], None], unneeded: tuple[Any, ...]) -> None:
    for each in unneeded:
        each.close()
    die_with_parent(os.getppid())
    while True:
        message, descriptors, *_ = socket.recv_fds(control, MESSAGE.size, 1)
        if not message:  # the owner is gone; with this process go all that it has forked
            return
        kind, pid = MESSAGE.unpack(message)
        if kind == REAP:
            answer = os.waitpid(pid, 0)[1]
        else:
            server, answer = os.getpid(), os.fork()
            if answer == 0:
                control.close()
                die_with_parent(server)
                _never_return(serve, Connection(descriptors[0]))
            os.close(descriptors[0])
        control.sendall(MESSAGE.pack(kind, answer))


def die_with_parent(parent: int) -> None:
    """A process inside a decoder that hangs does not see that a connection closes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)


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
