"""C -> a shared library: made at install by setup.py, beside its source, or by the first process that misses it.

Only the standard library is needed here: setup.py runs before anything is installed.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

# No -march=native: resize.c asks the processor itself, and takes 1.005 of that one's time (37 rounds in turns, quartiles 0.92
# and 1.08). clang 22 makes the same bytes of it. Floats are rounded where the source says so, on every processor.
FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off")


def library_file(source: Path, folder: Path) -> Path:
    """Its place in a folder; the name says what it is made of, so that another source's is never taken."""
    return folder / f"lib{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"


def compile_library(source: Path, folder: Path) -> Path:
    """Make it in a folder, unless it is there: of many processes one compiles. Raises OSError, which says why not."""
    file = library_file(source, folder)
    holder = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: several compile, and the last one's stays
            fcntl.flock(holder, fcntl.LOCK_EX)
        if not file.exists():
            compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
            if not compiler:
                raise OSError("there is no C compiler (cc, gcc, clang or $CC)")
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = Path(work, file.name)
                command = [*compiler.split(), *FLAGS, os.fspath(source), "-o", os.fspath(made)]
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
                if done.returncode:
                    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                    raise OSError(f"{compiler} cannot compile {source.name}: {said[-1]}")
                made.replace(file)
    finally:
        os.close(holder)
    return file


def open_library(source: Path, cache: Path) -> ctypes.CDLL | str:
    """That of a C file, or why there is none. It lies beside it, or in a folder of the user's, where this makes it."""
    if platform.machine() != "x86_64":
        return f"it is written for x86-64, and this is {platform.machine()}"
    try:
        try:
            library = ctypes.CDLL(os.fspath(library_file(source, source.parent)))
        except OSError:  # it is not there, or was built for another system's libraries
            library = ctypes.CDLL(os.fspath(compile_library(source, cache)))
    except OSError as error:
        return str(error)
    return library if library.supported() else "the processor has no AVX2"
