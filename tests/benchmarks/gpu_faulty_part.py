"""Parts of the GPU suite that fail in every way; they need no torch, so their processes start at once."""

import os
import signal
import time

from benchmarks.gpu.bench import AbsentError, Bench


def fine(bench: Bench, word: str) -> None:
    bench.figure("fine", 2.0, "s", 4.0, note=word)
    bench.remark("as it should be")


def raises(bench: Bench) -> None:
    with bench.attempt("second"):
        bench.figure("second", 1 / 0, "s")
    bench.figure("third", 3.0, "s")
    raise ValueError("no more\nof this")


def hangs(bench: Bench) -> None:
    bench.figure("before", float("nan"), "s")
    time.sleep(1000)


def crashes(bench: Bench) -> None:
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def lacks(bench: Bench) -> None:
    raise AbsentError("there is no such device")
