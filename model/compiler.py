"""What is compiled, and whether it can be here, asked before it is: a bare machine has no compiler, or no headers of Python.

Triton builds what starts its kernels, in C, at the first one; torch.compile uses Triton on a GPU, and C++ on a CPU. Without a
compiler either fails in the first step.
"""

import functools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

COMPILERS = {"c": ("CC", "gcc", "clang"), "c++": ("CXX", "g++", "clang++")}  # a variable, and programs, as both libraries look
# Graphs of one function, over all models of a process. Each model, type and size of batch has three of Block.forward (encoder,
# decoder, its last block), five with "every:2": the third model of a process met Dynamo's own limit of 8, and ended there.
GRAPHS = 64
TODO = "install gcc and Python's headers (Debian: apt install g++ python3-dev)"


def compile_blocks(blocks: Iterable[nn.Module], **how: Any) -> None:
    """Each by itself, in place: equal ones share a graph. `how` goes to torch.compile."""
    torch._dynamo.config.recompile_limit = GRAPHS
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, **how)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, compiled whole for each of their shapes."""
    torch._dynamo.config.recompile_limit = GRAPHS
    return torch.compile(function, fullgraph=True, dynamic=False)


@functools.cache
def compiler_missing(device_type: str) -> str | None:
    """Why nothing can be compiled for a "cpu" or "cuda" device, and what to do, or None. A trial of 0.1 s, once."""
    language = "c" if device_type == "cuda" else "c++"
    variable, *names = COMPILERS[language]
    program = os.environ.get(variable) or next(filter(shutil.which, names), None)
    if program is None:
        return f"there is no compiler of {language.upper()} ({' or '.join(names)}); {TODO}"
    headers = sysconfig.get_paths()["include"]
    command = [program, "-x", language, "-", "-shared", "-fPIC", f"-I{headers}", "-o", os.devnull]
    try:
        done = subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True)
    except OSError as error:
        return f"{program} cannot be run ({error.strerror}); {TODO}"
    if done.returncode:
        words = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        return f"{program} cannot compile for this Python ({words.strip()}); {TODO}"
    return None
