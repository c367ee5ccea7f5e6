"""How many workers decode and how many batches lie ready: found while the loader works. Arithmetic on rates; no clock in it.

*Workers.* Processes that decode. Tried while there is always a clip that waits for one: as many as there are usable cores,
then more, as long as that brings 5 %: it does where storage is slow, or others use the cores as well.

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
TRIAL_SECONDS = 1.0  # of one number of workers
GAIN = 1.05  # by which a number of workers must be better than the best so far
# Per core. More than one for each only help who waits. Two cores, the real clips: with 2 workers 214 to 232 clips/s of one view
# and 167 to 177 of four, with 3 workers 212 to 219 and 164 to 183.
MOST_WORKERS = 4
STEPS = (1, 1.5, 2, 3, MOST_WORKERS)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a loader works with."""

    workers: int  # that decode: clips in flight
    prefetch: int  # batches decoded ahead of the one in the trainer's hands, at most
    settled: bool  # no other number of workers is being tried any more
    memory: int  # bytes of prefetch + 1 batches
    memory_budget: int  # that they may take
    ready_seconds: float | None  # how long `prefetch` batches last at the trainer's fastest pace; None before it is known
    rate: float | None = None  # clips/s that `workers` decoded while they were tried; None where nothing was

    def __str__(self) -> str:
        """`3 workers (182 clips/s), 13 batches ahead (5.2 s, 0.9 of 2.2 GiB)`"""
        lasts = "" if self.ready_seconds is None else f"{self.ready_seconds:.1f} s, "
        memory = f"{self.memory / 2**30:.2g} of {self.memory_budget / 2**30:.2g} GiB"
        trying = "" if self.settled else ", still trying"
        rate = "" if self.rate is None or not self.settled else f" ({self.rate:,.0f} clips/s)"
        return f"{self.workers} workers{rate}{trying}, {self.prefetch} batches ahead ({lasts}{memory})"


class WorkerTrials:
    """Which number of workers to try next, given the rate of the present one."""

    def __init__(self, cores: int) -> None:
        self._more = sorted({ceil(step * cores) for step in STEPS})
        self.workers = self._more.pop(0)
        self.settled = False
        self._best = (0.0, self.workers)

    @property
    def best(self) -> float | None:
        """The highest rate so far."""
        return self._best[0] or None

    def rate(self, clips_per_second: float) -> None:
        """What `workers` achieved; changes `workers`, or settles."""
        if clips_per_second > GAIN * self._best[0]:
            self._best = clips_per_second, self.workers
            if self._more:
                self.workers = self._more.pop(0)
                return
        self.workers, self.settled = self._best[1], True


class Tuner:
    """Watches one loader; its owner reports what happens, and asks for `tuning` when `observe` says that it changed."""

    def __init__(
        self, *, cores: int, workers: int | None, prefetch: int | None, batch_bytes: int, slots: int, memory_budget: int
    ) -> None:
        """`workers` and `prefetch`, where they are given, stay; `slots` batches fit into the memory."""
        self._trials = None if workers else WorkerTrials(cores)
        self._slots, self._batch_bytes, self._memory_budget = slots, batch_bytes, memory_budget
        self._fixed = prefetch is not None
        self.workers = workers or WorkerTrials(cores).workers
        self.prefetch = min(slots - 1, START_PREFETCH if prefetch is None else prefetch)
        self._pace = 0.0  # the fastest so far, batches per second
        self._consumed: deque[tuple[float, int]] = deque()
        self._trial: tuple[float, int] | None = None  # when it began, and the clips decoded until then

    @property
    def settled(self) -> bool:
        return self._trials is None or self._trials.settled

    @property
    def tuning(self) -> Tuning:
        memory, lasts = (self.prefetch + 1) * self._batch_bytes, self.prefetch / self._pace if self._pace else None
        rate = self._trials.best if self._trials else None
        return Tuning(self.workers, self.prefetch, self.settled, memory, self._memory_budget, lasts, rate)

    def resume(self, tuning: Tuning) -> None:
        """Go on with what the tuner of a process that died had come to, without further trials."""
        self.workers, self.prefetch, self._trials = tuning.workers, tuning.prefetch, None

    def observe(self, now: float, *, consumed: int, decoded: int, waiting: int) -> bool:
        """At `now` (s) the trainer has consumed so many batches, so many clips are decoded and so many wait for a worker.

        Returns whether that changed anything. Call it several times a second, and whenever a batch was consumed.
        """
        before = self.workers, self.prefetch, self.settled
        if not self._fixed:
            self._observe_pace(now, consumed)
        if self._trials and not self._trials.settled:
            self._observe_trial(self._trials, now, decoded, waiting)
        return before != (self.workers, self.prefetch, self.settled)

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

    def _observe_trial(self, trials: WorkerTrials, now: float, decoded: int, waiting: int) -> None:
        if waiting == 0 or decoded == 0:  # the ring is full and the trainer limits; or libraries are still being loaded
            self._trial = None
        elif self._trial is None:
            self._trial = now, decoded
        elif now - self._trial[0] >= TRIAL_SECONDS and decoded - self._trial[1] >= 4 * self.workers:
            trials.rate((decoded - self._trial[1]) / (now - self._trial[0]))
            self.workers, self._trial = trials.workers, None
