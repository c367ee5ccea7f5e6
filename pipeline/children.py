"""Fresh interpreters that call one function of ours, beside this process."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[__name__.count(".")]  # where our topmost package lies


def command(function: Callable[..., Any], *arguments: object) -> list[str]:
    """A Python that calls `function()`, of a module of ours under whatever name, and ends with the status that it returns."""
    code = f"import sys; from {function.__module__} import {function.__name__}; sys.exit({function.__name__}())"
    return [sys.executable, "-P", "-c", code, *map(str, arguments)]  # -P: no package of that name where the user is


def environment(**variables: str) -> dict[str, str]:
    """Of this process, with a path on which another finds our package first, and the user's modules, for decoders."""
    folders = [folder or os.getcwd() for folder in sys.path]
    if str(ROOT) not in folders:
        folders.insert(0, str(ROOT))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **variables}
