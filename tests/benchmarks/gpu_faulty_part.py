"""A part of the GPU suite that fails in every way; it needs no torch, so its processes start at once."""

import os
import signal
import time

from benchmarks.gpu.bench import AbsentError, Bench


def fine(bench: Bench) -> None:
    bench.figure("fine", 2.0, "s", 4.0, note="as it should be")
    bench.recommend("SETTING", 3, 1, "it is the best")


def raises(bench: Bench) -> None:
    bench.figure("raises/first", 1.0, "s")
    with bench.attempt("raises/second"):
        bench.figure("raises/second", 1 / 0, "s")
    with bench.attempt("raises/third"):
        bench.figure("raises/third", 3.0, "s")
    raise ValueError("no more\nof this")


def hangs(bench: Bench) -> None:
    bench.figure("hangs/before", 1.0, "s")
    time.sleep(1000)


def crashes(bench: Bench) -> None:
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def lacks(bench: Bench) -> None:
    raise AbsentError("there is no such device")


def later(bench: Bench) -> None:
    bench.figure("later", float("nan"), "s")


def never(bench: Bench) -> None:
    raise AssertionError("there was no time for it")
