"""How many threads decode and how many batches lie ready: found while the loader works. Arithmetic on rates; no clock in it.

*Threads.* Tried while there is always a clip that waits to be decoded: 1.5 for each usable core first, then more as long as
that brings 5 %, or one for each if it does not. What to expect of it is in `FIRST_THREADS`.

*Prefetch.* What the trainer takes in 5 s at its fastest, within the memory budget: with hundreds of ranks in step, each of
them waits for the slowest, and 5 s outlast a slow read, a few clips that hang on, or a collection of garbage. It only grows,
because memory that was touched once stays with the process. The trainer's pace decides, not the decoder's: what the trainer
does not take needs no memory, however fast it could be made.

Neither has any influence on the bytes of a batch.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil

READY_SECONDS = 5.0
PACE_SECONDS = 2.0  # shortest time over which the trainer's pace is taken: steps come in bursts
RESERVE = 1.2  # beyond READY_SECONDS, so that not every slightly faster pace is a change
START_PREFETCH = 3  # batches, until the trainer's pace is known
MOST_SLOTS = 2048  # batches; tiny ones would otherwise be hundreds of thousands
TRIAL_SECONDS = 1.0  # of one number of threads
GAIN = 1.05  # by which a number of threads must be better than the best so far
# Per core. Two cores that others used as well, the real clips, R = 4, views/s against those of 2 threads: 3 threads 1.10, 4
# threads 1.37 (10 turns of 2 s each); beside a trainer that computes on the same cores, 4 threads 1.13, tuned 0.98 (6 turns of
# 10 s, the ratios from 0.7 to 1.4: as good as equal). A view costs 1.02 times the CPU time with 4 threads, 1.01 with 16.
FIRST_THREADS, MOST_THREADS = 1.5, 4


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a loader works with."""

    threads: int  # that decode: clips in flight
    prefetch: int  # batches decoded ahead of the one in the trainer's hands, at most
    settled: bool  # no other number of threads is being tried any more
    memory: int  # bytes of prefetch + 1 batches
    memory_budget: int  # that they may take
    ready_seconds: float | None  # how long `prefetch` batches last at the trainer's fastest pace; None before it is known

    def __str__(self) -> str:
        """`3 decoding threads, 13 batches ahead (5.2 s, 0.9 of 2.2 GiB)`"""
        lasts = "" if self.ready_seconds is None else f"{self.ready_seconds:.1f} s, "
        memory = f"{self.memory / 2**30:.2g} of {self.memory_budget / 2**30:.2g} GiB"
        trying = "" if self.settled else ", still trying"
        return f"{self.threads} decoding threads{trying}, {self.prefetch} batches ahead ({lasts}{memory})"


class ThreadTrials:
    """Which number of threads to try next, given the rate of the present one."""

    def __init__(self, cores: int) -> None:
        self.threads = self._first = ceil(FIRST_THREADS * cores)
        self.settled = False
        self._best = (0.0, self.threads)
        # upwards, until one is no better
        self._more = [n for n in (2 * cores, 3 * cores, MOST_THREADS * cores) if n > self._first]
        self._fewer = [cores] if cores < self._first else []  # only if the very first step upwards was none

    def rate(self, clips_per_second: float) -> None:
        """What `threads` achieved; changes `threads`, or settles."""
        better = clips_per_second > GAIN * self._best[0]
        if better:
            self._best = clips_per_second, self.threads
        if better and self._more and self.threads >= self._first:
            self.threads = self._more.pop(0)
        elif self._fewer and self._best[1] == self._first:
            self.threads = self._fewer.pop()
        else:
            self.threads, self.settled = self._best[1], True


class Tuner:
    """Watches one loader; its owner reports what happens, and asks for `tuning` when `observe` says that it changed."""

    def __init__(
        self, *, cores: int, threads: int | None, prefetch: int | None, batch_bytes: int, slots: int, memory_budget: int
    ) -> None:
        """`threads` and `prefetch`, where they are given, stay; `slots` batches fit into the memory."""
        self._trials = None if threads else ThreadTrials(cores)
        self._slots, self._batch_bytes, self._memory_budget = slots, batch_bytes, memory_budget
        self._fixed = prefetch is not None
        self.threads = threads or ThreadTrials(cores).threads
        self.prefetch = min(slots - 1, START_PREFETCH if prefetch is None else prefetch)
        self._pace = 0.0  # the fastest so far, batches per second
        self._consumed: deque[tuple[float, int]] = deque()
        self._trial: tuple[float, int] | None = None  # when it began, and the clips decoded until then

    @property
    def settled(self) -> bool:
        return self._trials is None or self._trials.settled

    @property
    def tuning(self) -> Tuning:
        return Tuning(
            threads=self.threads,
            prefetch=self.prefetch,
            settled=self.settled,
            memory=(self.prefetch + 1) * self._batch_bytes,
            memory_budget=self._memory_budget,
            ready_seconds=self.prefetch / self._pace if self._pace else None,
        )

    def resume(self, tuning: Tuning) -> None:
        """Go on with what the tuner of a process that died had come to, without further trials."""
        self.threads, self.prefetch, self._trials = tuning.threads, tuning.prefetch, None

    def observe(self, now: float, *, consumed: int, decoded: int, waiting: int) -> bool:
        """At `now` (s) the trainer has consumed so many batches, so many clips are decoded and so many wait for a thread.

        Returns whether that changed anything. Call it several times a second, and whenever a batch was consumed.
        """
        before = self.threads, self.prefetch, self.settled
        if not self._fixed:
            self._observe_pace(now, consumed)
        if self._trials and not self._trials.settled:
            self._observe_trial(self._trials, now, decoded, waiting)
        return before != (self.threads, self.prefetch, self.settled)

    def _observe_pace(self, now: float, consumed: int) -> None:
        marks = self._consumed
        if marks and marks[-1][1] == consumed:
            return
        marks.append((now, consumed))
        while len(marks) > 2 and now - marks[1][0] >= PACE_SECONDS:
            marks.popleft()
        seconds, batches = now - marks[0][0], consumed - marks[0][1]
        if seconds >= PACE_SECONDS and batches / seconds > self._pace:
            self._pace = batches / seconds
            if self.prefetch < READY_SECONDS * self._pace:
                self.prefetch = max(self.prefetch, min(self._slots - 1, ceil(RESERVE * READY_SECONDS * self._pace)))

    def _observe_trial(self, trials: ThreadTrials, now: float, decoded: int, waiting: int) -> None:
        if waiting == 0 or decoded == 0:  # the ring is full and the trainer limits; or libraries are still being loaded
            self._trial = None
        elif self._trial is None:
            self._trial = now, decoded
        elif now - self._trial[0] >= TRIAL_SECONDS and decoded - self._trial[1] >= 4 * self.threads:
            trials.rate((decoded - self._trial[1]) / (now - self._trial[0]))
            self.threads, self._trial = trials.threads, None
