"""Whether code can be compiled on this machine, asked before it is: a bare one has no compiler, or no headers of Python.

Triton builds what starts its kernels, in C, at the first one; torch.compile uses Triton on a GPU, and C++ on a CPU. Without a
compiler either fails in the first step.
"""

import functools
import os
import shutil
import subprocess
import sysconfig

COMPILERS = {"c": ("CC", "gcc", "clang"), "c++": ("CXX", "g++", "clang++")}  # a variable, and programs, as both libraries look
TODO = "install gcc and Python's headers (Debian: apt install g++ python3-dev)"


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
