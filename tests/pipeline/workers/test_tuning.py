"""Tuning on made-up rates: no clock, no machine."""

from collections.abc import Callable

import pytest

from pipeline.workers.tuning import READY_SECONDS, START_PREFETCH, Tuner, Tuning, WorkerTrials


def settled_on(cores: int, rate: Callable[[int], float]) -> tuple[int, list[int]]:
    """(workers in the end, all that were tried)."""
    trials, tried = WorkerTrials(cores), []
    while not trials.settled:
        tried.append(trials.workers)
        trials.rate(rate(trials.workers))
        assert len(tried) < 10
    return trials.workers, tried


@pytest.mark.parametrize(
    ("cores", "rate", "workers", "tried"),
    [
        (2, lambda n: 100, 2, [2, 3]),  # nothing matters: what it began with
        (2, lambda n: 50 * n, 8, [2, 3, 4, 6, 8]),  # slow storage: as many as there may be
        (2, lambda n: 100 * min(n, 4), 4, [2, 3, 4, 6]),
        (8, lambda n: 100 / n, 8, [8, 12]),  # workers in each other's way
        (1, lambda n: 100, 1, [1, 2]),
        (1, lambda n: 100 * min(n, 3), 3, [1, 2, 3, 4]),
    ],
)
def test_workers_settle_on_the_best(cores: int, rate: Callable[[int], float], workers: int, tried: list[int]) -> None:
    assert settled_on(cores, rate) == (workers, tried)


def tuner(workers: int | None = None, prefetch: int | None = None, slots: int = 1000) -> Tuner:
    return Tuner(cores=2, workers=workers, prefetch=prefetch, batch_bytes=1 << 20, slots=slots, memory_budget=slots << 20)


def play(
    tuner: Tuner,
    seconds: float,
    *,
    pace: float,
    rate: Callable[[int], float] = lambda n: 100.0,
    waiting: int = 9,
    start: float = 0.0,
) -> float:
    """So long, the trainer takes `pace` batches a second, `rate(workers)` clips are decoded. Returns when it settled."""
    decoded, settled = 0.0, float("inf")
    for tick in range(round(seconds / 0.1)):
        now = start + tick * 0.1
        decoded += rate(tuner.workers) * 0.1
        tuner.observe(now, consumed=int(now * pace), decoded=int(decoded), waiting=waiting)
        if tuner.settled:
            settled = min(settled, now - start)
    return settled


def test_it_settles_within_seconds_on_five_seconds_of_batches() -> None:
    tuned = tuner()
    assert tuned.tuning == Tuning(2, START_PREFETCH, False, 4 << 20, 1000 << 20, None)
    assert play(tuned, 10, pace=8, rate=lambda n: 100 * min(n, 4)) < 5
    assert tuned.workers == 4 and tuned.tuning.rate == pytest.approx(400, rel=0.05)
    assert READY_SECONDS * 8 <= tuned.prefetch <= 1.3 * READY_SECONDS * 8
    assert tuned.tuning.ready_seconds is not None and tuned.tuning.ready_seconds >= READY_SECONDS
    settled = Tuning(4, 48, True, 3 << 29, 9 << 30, 6.04, 412.3)
    assert str(settled) == "4 workers (412 clips/s), 48 batches ahead (6.0 s, 1.5 of 9 GiB)"


def test_prefetch_keeps_to_the_memory_and_never_shrinks() -> None:
    tuned = tuner(slots=20)
    play(tuned, 5, pace=50)
    assert tuned.prefetch == 19 and tuned.tuning.memory == 20 << 20
    tuned = tuner()
    play(tuned, 5, pace=8)
    before = tuned.prefetch
    play(tuned, 60, pace=0.1, start=5)
    assert tuned.prefetch == before


def test_slow_trainers_need_few_batches() -> None:
    tuned = tuner()
    play(tuned, 60, pace=0.2)
    assert tuned.prefetch == START_PREFETCH


def test_a_burst_is_no_pace() -> None:
    """Four batches lie ready while a model compiles; they are taken at once, then one a second."""
    tuned = tuner()
    for now, consumed in ((0.0, 0), (30.0, 1), (30.01, 2), (30.02, 3), (30.03, 4), (31.0, 5), (32.0, 6), (33.0, 7), (34.0, 8)):
        tuned.observe(now, consumed=consumed, decoded=0, waiting=0)
    assert tuned.prefetch <= 20


def test_a_full_ring_proves_nothing() -> None:
    """The trainer limits: no worker has anything to do."""
    tuned = tuner()
    assert play(tuned, 30, pace=1, waiting=0) == float("inf")
    assert tuned.workers == 2


def test_what_is_given_stays() -> None:
    tuned = tuner(workers=5, prefetch=7, slots=8)
    assert play(tuned, 20, pace=30, rate=lambda n: 100 * n) == 0
    assert (tuned.workers, tuned.prefetch) == (5, 7)


def test_a_successor_goes_on() -> None:
    tuned = tuner()
    tuned.resume(Tuning(6, 33, False, 0, 0, None))
    assert play(tuned, 20, pace=1, rate=lambda n: 100 * n) == 0
    assert (tuned.workers, tuned.prefetch) == (6, 33)
