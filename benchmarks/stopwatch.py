"""Repeats work and keeps the rate of every repetition."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from tqdm import tqdm

from benchmarks.results import Neighbours, Result

REPETITIONS = 5
FEWEST_REPETITIONS = 3  # where five would take more than twice the time that was asked for


@dataclass(frozen=True, slots=True)
class Rates:
    """Clips/s of every repetition, and the cores that other programs had in use meanwhile."""

    clips: list[float]
    neighbours: float


@dataclass(frozen=True, slots=True)
class Part:
    """What was measured of a part of the path, and the views that it makes of a clip."""

    name: str
    title: str
    measured: "Rates"
    views_per_clip: int
    baseline: "Part | None" = None

    @property
    def clips(self) -> float:
        """Clips/s, the median."""
        return median(self.measured.clips)

    @property
    def views(self) -> float:
        """Views/s, the median."""
        return self.clips * self.views_per_clip

    def result(self, in_views: bool) -> Result:
        """In views/s or clips/s; the baseline counts as many views of a clip."""
        factor, unit = (self.views_per_clip, "views/s") if in_views else (1, "clips/s")
        baseline = self.baseline.clips * factor if self.baseline else None
        return Result(f"throughput/{self.name}", self.clips * factor, unit, baseline)


class Stopwatch:
    """Measures parts for about `seconds` each, and shows how far it is."""

    def __init__(self, seconds: float, device: torch.device, num_parts: int) -> None:
        self.seconds, self.device = seconds, device
        self.bar = tqdm(total=num_parts * REPETITIONS, unit="repetition", disable=None, leave=False)

    def now(self) -> float:
        """The time in seconds when the device has done everything that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def rates(self, title: str, work: Callable[[], int]) -> Rates:
        """A call of `work` does a piece and returns its clips; on a GPU it may only queue it:
        the repetition ends when the device is done, and a queue longer than the time left only makes it longer."""
        self.bar.set_description(title)
        rates: list[float] = []
        neighbours = Neighbours()
        first = began = self.now()
        while len(rates) < (REPETITIONS if began - first < 2 * self.seconds else FEWEST_REPETITIONS):
            clips = 0
            while not clips or time.perf_counter() - began < self.seconds / REPETITIONS:
                clips += work()
            ended = self.now()
            rates.append(clips / (ended - began))
            began = ended
            self.bar.update()
        self.bar.update(REPETITIONS - len(rates))
        return Rates(rates, neighbours.cores())

    def rates_in_turns(self, title: str, passes: Sequence[Callable[[], int]]) -> list[Rates]:
        """The same for several ways to do one thing, a pass each in turn: what else the machine does meets all alike."""
        self.bar.set_description(title)
        neighbours = Neighbours()
        rates: list[list[float]] = [[] for _ in passes]
        for _ in range(REPETITIONS):
            for one_pass, of_pass in zip(passes, rates, strict=True):
                began = self.now()
                clips = one_pass()
                of_pass.append(clips / (self.now() - began))
                self.bar.update()
        cores = neighbours.cores()
        return [Rates(of_pass, cores) for of_pass in rates]

    def warm_up(self, title: str, work: Callable[[], int], pieces: int) -> None:
        """Do so many pieces of work, fewer (but one at least) where they take longer than a part."""
        self.bar.set_description(title)
        began = self.now()
        for _ in range(pieces):
            work()
            if self.now() - began > self.seconds:
                break
