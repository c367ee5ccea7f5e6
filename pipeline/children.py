"""Processes beside this one: fresh interpreters that call one function of ours, and do not outlive us."""

import ctypes
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[__name__.count(".")]  # where our topmost package lies
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def start(
    main: Callable[[Connection], object], *, pass_fds: Sequence[int] = (), mortal: bool = True, **variables: str
) -> tuple[subprocess.Popen, Connection]:
    """A process that calls `main(connection)`, and our end of the connection; `variables` are of its environment.

    It does not outlive a parent that is killed, if it is `mortal`. It has one thread: NumPy would start one a core when it is
    imported, 41 MB of address space each, and what has threads is not forked; OpenMP's would wait for each other on cores that
    the trainer wants.
    """
    ours, theirs = Pipe()
    with theirs:
        descriptor, variables = theirs.fileno(), {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | variables
        line = command(serve, main.__module__, main.__name__, descriptor, os.getpid() if mortal else 0)
        how: dict[str, Any] = {"pass_fds": [descriptor, *pass_fds], "env": environment(**variables)}
        return subprocess.Popen(line, stdin=subprocess.DEVNULL, **how), ours


def serve() -> None:
    """What such a process does: until its parent is gone, which is no error."""
    module, name, descriptor, parent = sys.argv[1:5]
    if parent != "0":
        die_with_parent(int(parent))
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        getattr(importlib.import_module(module), name)(Connection(int(descriptor)))
    sys.stdout.flush()
    os._exit(0)  # not waiting for threads of libraries


def die_with_parent(parent: int) -> None:
    """By the kernel's hand: a process inside a decoder that hangs does not see that a connection closes.

    (The kernel means the thread that started it: who starts one from a thread that may end asks for no `mortal` one.)
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def how_it_ended(status: int) -> str:
    """A process's exit status, negative for a signal, in words."""
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def command(function: Callable[..., Any], *arguments: object) -> list[str]:
    """A Python that calls `function()`, of a module of ours under whatever name, and ends with the status that it returns."""
    code = f"import sys; from {function.__module__} import {function.__name__}; sys.exit({function.__name__}())"
    return [sys.executable, "-P", "-c", code, *map(str, arguments)]  # -P: no package of that name where the user is


def environment(**variables: str) -> dict[str, str]:
    """Of this process, with a path on which another finds our package first, and the user's modules, for decoders."""
    folders = [folder or os.getcwd() for folder in sys.path]
    path = folders if str(ROOT) in folders else [str(ROOT), *folders]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **variables}
