"""What failures cost a run: simulated, and in closed form where there is one. ETTR is the share of time that is useful."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Of a whole job, all in seconds."""

    mtbf: float
    """Mean time between two failures that stop it, however many GPUs it has; they come at random (exponential)."""
    notice: float
    """Until the dead run is started again: health checks, the scheduler, another node."""
    restart: float
    """From that start to the first step."""
    save_stall: float
    """In which training stands still for a checkpoint: the copy to the host."""
    write: float
    """Of a checkpoint beside the training: what fails in it, goes back to the one before."""

    def __post_init__(self) -> None:
        if not self.mtbf > 0:
            raise ValueError(f"a mean time between failures of {self.mtbf:g} s must be over 0")


def ettr(faults: Faults, every: float, *, useful: float | None = None, seed: int = 0) -> float:
    """Share of the time that is useful, if a checkpoint begins after each `every` seconds of training, simulated over so many
    `useful` seconds, by default some 20,000 failures. A failure in a restart begins it anew. The same seed gives the same."""
    random, useful = np.random.default_rng(seed), useful or 20_000 * faults.mtbf
    cycle = every + faults.save_stall
    lost = done = 0.0
    while done < useful:
        life = random.exponential(faults.mtbf)
        cycles = math.floor(life / cycle)
        begun = life - cycles * cycle
        # the newest checkpoint is there when it is written
        whole = cycles if begun >= min(faults.write, cycle) or cycles == 0 else cycles - 1
        done += whole * every
        lost += life - whole * every
        while True:
            down = faults.notice + faults.restart
            next_failure = random.exponential(faults.mtbf)
            if next_failure >= faults.restart:
                lost += down
                break
            lost += faults.notice + next_failure
    return done / (done + lost)


def ettr_by_hand(faults: Faults, every: float) -> float:
    """The same where failures are rare: each costs the pause, half of an interval, and what was in writing."""
    kept = every / (every + faults.save_stall)
    per_failure = faults.notice + faults.restart + (every + faults.save_stall) / 2 + faults.write
    return kept * (1 - per_failure / (faults.mtbf + faults.notice + faults.restart))


def best_interval(faults: Faults) -> float:
    """Seconds between checkpoints that cost least: sqrt(2 stall MTBF) (Young, 1974), and no less than it takes to write one."""
    return max(faults.write, math.sqrt(2 * faults.save_stall * faults.mtbf))
