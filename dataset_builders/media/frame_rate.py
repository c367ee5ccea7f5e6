"""From presentation times to a frame rate: whether frames are equally spaced, and at which rate."""

import math
import statistics
from fractions import Fraction
from itertools import pairwise

# rates that a measured one is snapped to, because containers with time stamps in milliseconds blur them
STANDARD_RATES = [Fraction(n) for n in (5, 6, 8, 10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)] + [
    Fraction(n * 1000, 1001) for n in (24, 30, 60, 120)
]
LONGEST_PAUSES = {"mpegts": 10.0, "mpeg": 10.0}  # seconds, by FFmpeg's demuxer, as its players have it
MAX_RESAMPLED_RATE = 60  # frames per second, for sources whose frames are not equally spaced


def frame_rate(seconds: list[float], nominal: list[Fraction]) -> tuple[Fraction, bool]:
    """Presentation times (empty if unknown) and the container's opinions -> (rate, whether the frames are equally spaced).

    Equally spaced means: a grid exists whose every cell holds exactly one frame, its time off by less than 0.45 of a
    cell. So jitter and rounded time stamps are put right, but a dropped or a longer frame makes a source variable. Then
    the rate is that of the median interval (what most of it was recorded at), at most 60 and at most four times the mean.
    """
    seconds = sorted(seconds)
    if len(seconds) < 2 or seconds[-1] <= seconds[0]:
        return next((r for r in nominal if 0 < r <= 1000), Fraction(25)), True
    mean = (len(seconds) - 1) / (seconds[-1] - seconds[0])
    near = [rate for rate in [*nominal, *STANDARD_RATES] if 0.98 * mean < rate < 1.02 * mean]
    spreads = {rate: _spread(seconds, rate) for rate in [*near, Fraction(mean).limit_denominator(1001)] if 0 < rate <= 1000}
    if spreads and (best := min(spreads.values())) < 0.9:
        return next(rate for rate, spread in spreads.items() if spread < best + 0.1), True
    gaps = [after - before for before, after in pairwise(seconds) if after > before]
    target = min(1 / statistics.median(gaps), 4 * mean, MAX_RESAMPLED_RATE)
    snapped = [rate for rate in nominal if 0.98 * target < rate < 1.02 * target]
    nearest = min(STANDARD_RATES, key=lambda rate: abs(rate - target))
    exact = Fraction(target).limit_denominator(1001) or Fraction(1, 1001)
    return next(iter(snapped), nearest if 0.98 * target < nearest < 1.02 * target else exact), False


def _spread(seconds: list[float], rate: Fraction) -> float:
    """By how much, in cells of a grid of that rate, sorted times are off it: 0 if they lie on it, 1 if a frame is missing."""
    off = [time * float(rate) - number for number, time in enumerate(seconds)]
    return max(off) - min(off)


def grid_origin(seconds: list[float], rate: Fraction) -> float:
    """Where frame 0 of equally spaced ones belongs, so that each is nearest to its own place of the grid."""
    off = [time - number / float(rate) for number, time in enumerate(seconds)]
    return (max(off) + min(off)) / 2


def continued(
    stamps: list[tuple[int | None, int | None]], time_base: Fraction | None, longest_pause: float = math.inf
) -> tuple[list[float], bool]:
    """(presentation, decoding) time stamps of packets in the file's order -> (presentation times in seconds, sorted, as if the
    stream had gone on where it was spliced; whether it was). Empty where not all are known.

    Decoding times only grow. Where they fall back by a frame or more, or pause for more seconds than that, another recording
    begins, and its first frame follows on the last one before.
    """
    known = [(shown, decoded) for shown, decoded in stamps if shown is not None and decoded is not None]
    if not time_base or len(known) < len(stamps):
        return [], False
    decoded = [stamp for _, stamp in known]
    step = statistics.median([after - before for before, after in pairwise(decoded) if after > before] or [0])
    parts: list[list[int]] = []
    for place, (shown, now) in enumerate(known):
        passed = now - decoded[place - 1]
        if not place or (step and not (-step < passed and passed * time_base <= longest_pause)):
            parts.append([])
        parts[-1].append(shown)
    joined: list[float] = []
    for part in parts:
        offset = joined[-1] + step - min(part) if joined else 0
        joined += sorted(shown + offset for shown in part)
    return [float(shown * float(time_base)) for shown in joined], len(parts) > 1
