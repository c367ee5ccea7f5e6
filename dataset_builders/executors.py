"""Process pool that outlives its workers: a task that crashes, hangs or eats memory costs exactly itself.

`concurrent.futures` gives up the whole pool when one process dies and cannot end a hanging one. Here every worker has
one task at a time over its own pipe, so that the culprit is always known; it is killed and replaced, the others never
notice. A task gives any number of results, each sent as soon as it is there: of a two-hour video that becomes 120 clips no
process holds more than a few. Workers are new interpreters (no fork of a process with threads), which import only the
function's module.
"""

import math
import os
import pickle
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from traceback import walk_tb
from typing import Any

from dataset_builders.media.rejects import Reason
from pipeline.children import how_it_ended, start
from pipeline.storage.remote import StorageError

MAX_WAITING_BYTES = 512 << 20  # of results that wait for those of an earlier task; then workers are left to wait, too
READY, RESULT, END, TROUBLE = b"\0", b"\1", b"\2", b"\3"  # first byte of what a worker sends
START_LIMIT = 120.0  # seconds for a worker to import its function


@dataclass(frozen=True, slots=True)
class Failure:
    """Last result of a task that its worker did not come back from: timeout, out_of_memory or crash."""

    reason: Reason
    detail: str


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    task: int | None = None  # number of the task it has; None while it starts or waits
    ready: bool = False
    deadline: float = math.inf  # of its task, or of its start; on time.monotonic's clock


def map_ordered(
    function: Callable[[Any], Iterable[Any]], tasks: Iterable[Any], workers: int, time_limit: float, memory_limit: int
) -> Generator[list[Any] | None, None, None]:
    """The results of `function(task)`, an iterable, computed by `workers` processes, in the order of the tasks.

    Yields the results of the first unfinished task in lists, as they come, and None when that task is done. `time_limit` is in
    seconds a result, `memory_limit` in bytes of address space for a worker and as much for a process it starts. The last
    result is a `Failure` where the function raised, or its process died or was killed for taking too long. Closing the iterator
    kills the workers; so does the death of this process. Raises RuntimeError if workers cannot start, and StorageError if a
    function raised that: it is about no task.
    """
    source = enumerate(tasks)
    results: dict[int, list[bytes | Failure]] = {}  # by task; pickled, so that their size is known
    ended: set[int] = set()
    waiting_bytes, following = 0, 0
    pool = [_start(function, memory_limit) for _ in range(workers)]
    upcoming = next(source, None)
    try:
        while upcoming is not None or any(worker.task is not None for worker in pool):
            for worker in pool:
                if upcoming is None or waiting_bytes > MAX_WAITING_BYTES:
                    break
                if worker.ready and worker.task is None:
                    worker.task, task = upcoming
                    worker.deadline = time.monotonic() + time_limit
                    results[worker.task] = []
                    with suppress(OSError):  # it has just died, which is found below
                        worker.pipe.send(task)
                    upcoming = next(source, None)
            heard = pool
            if waiting_bytes > MAX_WAITING_BYTES:  # only the one that all wait for; the others' pipes fill up and hold them
                heard = [worker for worker in pool if worker.task == following]
                for worker in pool:
                    worker.deadline = max(worker.deadline, time.monotonic() + time_limit)
            patience = min(worker.deadline for worker in heard) - time.monotonic()
            spoke = wait([worker.pipe for worker in heard], None if patience == math.inf else max(0.0, patience))
            for worker in heard:
                message: bytes | Failure | None = None
                if worker.pipe in spoke:
                    try:
                        message = worker.pipe.recv_bytes()
                    except (EOFError, OSError):
                        message = _bury(worker, "dead", time_limit)
                elif time.monotonic() > worker.deadline:
                    message = _bury(worker, "overdue", time_limit)
                if message is None:
                    continue
                if isinstance(message, bytes) and message[:1] == TROUBLE:
                    raise StorageError(message[1:].decode(), transient=True)
                if worker.task is not None and (isinstance(message, Failure) or message[:1] == RESULT):
                    results[worker.task].append(message)
                    waiting_bytes += len(message) if isinstance(message, bytes) else 0
                    worker.deadline = time.monotonic() + time_limit
                if isinstance(message, Failure) or message[:1] != RESULT:
                    if worker.task is not None:
                        ended.add(worker.task)
                    worker.ready, worker.task, worker.deadline = True, None, math.inf
                if isinstance(message, Failure):
                    pool[pool.index(worker)] = _start(function, memory_limit)
            while following in results:
                ready, results[following] = results[following], []
                waiting_bytes -= sum(len(result) for result in ready if isinstance(result, bytes))
                if ready:
                    yield [result if isinstance(result, Failure) else pickle.loads(result[1:]) for result in ready]
                if following not in ended:
                    break
                ended.remove(following)
                del results[following]
                following += 1
                yield None
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.wait()
            worker.pipe.close()


def _start(function: Callable[[Any], Iterable[Any]], memory_limit: int) -> _Worker:
    # not multiprocessing's spawn, which imports the user's script once more in every worker
    process, ours = start(serve)
    with suppress(OSError):  # it has just died, which is found when it is listened to
        ours.send((function, memory_limit))
    return _Worker(process, ours, deadline=time.monotonic() + START_LIMIT)


def _bury(worker: _Worker, state: str, time_limit: float) -> Failure:
    """End a dead or overdue worker and say what happened to its task."""
    if state == "overdue":
        worker.process.kill()
    code = worker.process.wait()
    worker.pipe.close()
    ended = how_it_ended(code)
    if not worker.ready:
        raise RuntimeError(f"a worker process did not start: {state} after at most {START_LIMIT:.0f} s, {ended}")
    if state == "overdue":
        return Failure(Reason.TIMEOUT, f"took longer than {time_limit:g} s")
    if code == -signal.SIGKILL:
        return Failure(Reason.OUT_OF_MEMORY, "its process was killed, as the system does when memory runs out")
    return Failure(Reason.CRASH, f"its process ended with {ended}")


def serve(pipe: Connection) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is the builder's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    function, memory_limit = pipe.recv()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory_limit if hard == resource.RLIM_INFINITY else min(memory_limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    pipe.send_bytes(READY)
    while True:
        task = pipe.recv()
        try:
            for result in function(task):
                pipe.send_bytes(RESULT + pickle.dumps(result))
                del result  # before the next one is made
        except MemoryError:
            failure = Failure(Reason.OUT_OF_MEMORY, f"took more than {memory_limit / 2**30:g} GiB")
            pipe.send_bytes(RESULT + pickle.dumps(failure))
        except BrokenPipeError:
            return
        except StorageError as error:
            pipe.send_bytes(TROUBLE + str(error).encode(errors="backslashreplace"))
            return
        except Exception as error:  # whatever it is, it is this clip's row, and the traceback's end says where
            *_, (frame, line) = walk_tb(error.__traceback__)
            where = f"{os.path.basename(frame.f_code.co_filename)}:{line}"
            failure = Failure(Reason.CRASH, f"{type(error).__name__}: {error} ({where})")
            pipe.send_bytes(RESULT + pickle.dumps(failure))
        pipe.send_bytes(END)
