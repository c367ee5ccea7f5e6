"""The decoders of a sidecar: threads that each have a process decode for them, of which a changeable number works."""

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Decoders:
    """Runs tasks that see to their own results and errors, first come, first served, on a number of threads that may change:
    an executor's may not, and takes nothing urgent.

    Thread n takes work only while n < the number that works; one that is too many finishes its clip and rests. (Threads that
    wait for a permit with a clip in hand could be overtaken, and hold up a batch.)
    """

    def __init__(self, workers: int, most: int) -> None:
        """At most `most` will exist. `here.row` is the number of a task's own, below `most`."""
        self.here = threading.local()
        self._tasks: deque[tuple[Callable[..., None], tuple]] = deque()
        self._submitted: queue.SimpleQueue[None] = queue.SimpleQueue()  # as many as there are tasks
        self._done = [0] * most  # each is written by its thread only
        self._started = 0
        self._changed = threading.Condition()
        self.use(workers)

    def use(self, workers: int) -> None:
        """From now on so many."""
        assert 1 <= workers <= len(self._done), f"{workers} workers of at most {len(self._done)}"
        with self._changed:
            self._workers = workers
            self._changed.notify_all()
        for row in range(self._started, workers):
            threading.Thread(target=self._work, args=(row,), name=f"decoder {row}", daemon=True).start()
        self._started = max(self._started, workers)

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Behind those that wait."""
        self._tasks.append((function, arguments))
        self._submitted.put(None)

    def submit_urgent(self, function: Callable[..., None], *arguments: Any) -> None:
        """Before those that wait, which may be 5 s of work."""
        self._tasks.appendleft((function, arguments))
        self._submitted.put(None)

    @property
    def waiting(self) -> int:
        """Tasks that nobody has taken yet."""
        return len(self._tasks)

    @property
    def done(self) -> int:
        return sum(self._done)

    def _work(self, row: int) -> None:
        self.here.row = row
        while True:
            if row >= self._workers:
                with self._changed:
                    self._changed.wait_for(lambda: row < self._workers)
            self._submitted.get()
            function, arguments = self._tasks.popleft()
            function(*arguments)
            self._done[row] += 1
