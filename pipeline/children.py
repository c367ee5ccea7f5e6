"""Fresh interpreters that call one function of ours, beside this process."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[__name__.count(".")]  # where our topmost package lies


def start(function: Callable[..., Any], *arguments: object, pass_fds: Sequence[int], **variables: str) -> subprocess.Popen:
    """A process that calls `function()`, which finds `arguments` in sys.argv; `variables` are of its environment.

    It has one thread: NumPy would start one a core when it is imported, 41 MB of address space each, and what has threads is
    not forked; OpenMP's would wait for each other on cores that the trainer wants.
    """
    line, one = command(function, *arguments), {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(line, pass_fds=pass_fds, env=environment(**one | variables), stdin=subprocess.DEVNULL)


def command(function: Callable[..., Any], *arguments: object) -> list[str]:
    """A Python that calls `function()`, of a module of ours under whatever name, and ends with the status that it returns."""
    code = f"import sys; from {function.__module__} import {function.__name__}; sys.exit({function.__name__}())"
    return [sys.executable, "-P", "-c", code, *map(str, arguments)]  # -P: no package of that name where the user is


def environment(**variables: str) -> dict[str, str]:
    """Of this process, with a path on which another finds our package first, and the user's modules, for decoders."""
    folders = [folder or os.getcwd() for folder in sys.path]
    path = folders if str(ROOT) in folders else [str(ROOT), *folders]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **variables}
