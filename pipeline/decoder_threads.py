"""A pool of threads of which a changeable number works."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class DecoderThreads:
    """Like a ThreadPoolExecutor, but with a number of threads that may change. First come, first served.

    Thread n takes work only while n < the number of threads; one that is too many finishes its clip and rests. (Threads that
    wait for a permit with a clip in hand could be overtaken, and hold up a batch.)
    """

    def __init__(self, threads: int, most: int) -> None:
        """At most `most` threads will exist. `here.row` is a thread's number, below `most`."""
        self.here = threading.local()
        self._tasks: deque[tuple[Future, Callable[..., Any], tuple]] = deque()
        self._submitted = threading.Semaphore(0)  # as many as there are tasks
        self._done = [0] * most  # each is written by its thread only
        self._started = 0
        self._changed = threading.Condition()
        self.use(threads)

    def use(self, threads: int) -> None:
        """From now on so many."""
        assert 1 <= threads <= len(self._done), f"{threads} threads of at most {len(self._done)}"
        with self._changed:
            self._threads = threads
            self._changed.notify_all()
        for row in range(self._started, threads):
            threading.Thread(target=self._work, args=(row,), name=f"decoder {row}", daemon=True).start()
        self._started = max(self._started, threads)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Behind those that wait."""
        future: Future = Future()
        self._tasks.append((future, function, arguments))
        self._submitted.release()
        return future

    def submit_urgent(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Before those that wait, which may be 5 s of work."""
        self._tasks.appendleft((Future(), function, arguments))
        self._submitted.release()

    @property
    def waiting(self) -> int:
        """Tasks that no thread has taken yet."""
        return len(self._tasks)

    @property
    def done(self) -> int:
        """Tasks that are done."""
        return sum(self._done)

    def _work(self, row: int) -> None:
        self.here.row = row
        while True:
            if row >= self._threads:
                with self._changed:
                    self._changed.wait_for(lambda: row < self._threads)
            self._submitted.acquire()
            future, function, arguments = self._tasks.popleft()
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)
            self._done[row] += 1
