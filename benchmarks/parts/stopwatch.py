"""Contestants take turns, round after round, and the rate of every turn is kept.

Machines are not quiet: another program, a warmer CPU or a busy disk changes rates by tens of percent within minutes. So
nothing is measured for long at once. In a round every contestant works for a few seconds; figures are medians over the
rounds, and two contestants are compared round by round. Who is not on the clock rests: a loader that decodes ahead or a
DataLoader's workers would take the cores of whoever is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import torch
from tqdm import tqdm

from benchmarks.parts.card import CardWatch, means_of
from benchmarks.parts.results import Neighbours, Result, children_run, children_seconds

REST_LIMIT = 120.0  # seconds


class Work(Protocol):
    """What a contestant does. By default it is always ready, and has nothing to close."""

    def prepare(self) -> None:
        """Off the clock: until it works at the pace at which it could go on for ever, with nothing ready in advance."""
        return

    def work(self) -> int:
        """On the clock: a piece of work, -> its clips. On a GPU it may only queue it."""
        raise NotImplementedError


@dataclass(slots=True)
class Part:
    """A contestant, and the rate of each of its turns."""

    name: str  # in --json
    title: str  # in the table
    views_per_clip: int
    work: Work
    rates: list[float] = field(default_factory=list)  # clips/s of every round
    cores: list[float] = field(default_factory=list)  # that this process and its children had in use meanwhile
    neighbours: list[float] = field(default_factory=list)  # that other programs had in use
    card: list[dict[str, float]] = field(default_factory=list)  # of a GPU meanwhile, see `CardWatch`

    @property
    def clips(self) -> float:
        """Clips/s, the median."""
        return median(self.rates)

    @property
    def views(self) -> float:
        """Views/s, the median."""
        return self.clips * self.views_per_clip

    @property
    def spread(self) -> float:
        """Fastest less slowest round, as a share of the median."""
        return (max(self.rates) - min(self.rates)) / self.clips

    def result(self, unit: str, name: str | None = None, baseline: "Part | None" = None) -> Result:
        """In clips/s or views/s. The ratio to a baseline is the median of the rounds' ratios, in the same unit."""
        mine, rounds = self.views if unit == "views/s" else self.clips, self.rates
        name, card = name or self.name, means_of(self.card)
        if baseline is None:
            return Result(name, mine, unit, rounds=[rate * mine / self.clips for rate in rounds], detail=card)
        theirs = baseline.views if unit == "views/s" else baseline.clips
        return Result(name, mine, unit, theirs, ratios(self, baseline, in_views=unit == "views/s"), card)


def ratios(part: Part, baseline: Part, in_views: bool) -> list[float]:
    """Of the rounds: rate of the part by rate of the baseline."""
    factor = part.views_per_clip / baseline.views_per_clip if in_views else 1.0
    return [factor * rate / theirs for rate, theirs in zip(part.rates, baseline.rates, strict=True)]


class Stopwatch:
    """Times turns of about `seconds` each."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self.seconds, self.device, self.card = seconds, device, CardWatch(device)

    def now(self) -> float:
        """The time in seconds when the device has done everything that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def turn(self, part: Part) -> None:
        """At least one piece of work, and no new one after `seconds`."""
        part.work.prepare()
        neighbours = Neighbours()
        with self.card:
            clips, began = 0, self.now()
            while not clips or time.perf_counter() - began < self.seconds:
                clips += part.work.work()
            part.rates.append(clips / (self.now() - began))
        if self.card.means:
            part.card.append(self.card.means)
        part.cores.append(neighbours.own())
        part.neighbours.append(neighbours.cores())
        wait_until_idle()

    def rounds(self, parts: Sequence[Part], number: int) -> None:
        """`number` rounds, in each of them a turn of every part, in their order."""
        wait_until_idle()
        with tqdm(total=number * len(parts), unit="turn", disable=None, leave=False) as bar:
            for _ in range(number):
                for part in parts:
                    bar.set_description(part.title)
                    self.turn(part)
                    bar.update()


def wait_until_idle() -> None:
    """Until this process's threads and the processes it has started hardly use a core: rings and queues are full.

    Raises RuntimeError if they do not come to rest.
    """
    interval, quiet = 0.1, 0
    before, gives_up = children_seconds(), time.perf_counter() + REST_LIMIT
    while quiet < 2:  # twice in a row: a worker may wait for the disk
        threads = time.process_time()
        time.sleep(interval)
        threads = time.process_time() - threads
        now = children_seconds()
        # one tick, a hundredth of a second, is allowed; on a busy machine one may work and get none
        quiet = quiet + 1 if now - before < 0.015 and threads < 0.015 and not children_run() else 0
        before = now
        if time.perf_counter() > gives_up:
            raise RuntimeError(f"decoding ahead did not come to rest in {REST_LIMIT:g} s")
