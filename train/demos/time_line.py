"""When a video shows what: the probabilities of its best classes over time, as numbers and as a picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import MultipleLocator

from pipeline.decoding.video_file import VideoFile
from train.pictures import ACCENT, MUTED, plt, save

MOST_ROWS = 8  # classes of a picture, if --top asks for no more
THUMBNAILS = 12
NAME_WIDTH = 26  # characters
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # seconds


@dataclass(frozen=True, slots=True)
class Row:
    """A class of a video."""

    index: int
    probability: float
    """Mean over all views."""
    peak: float
    """The largest of a window, over its crops."""
    begin: float
    """Seconds between which it has at least half of that, around it."""
    end: float


@dataclass(frozen=True, slots=True)
class TimeLine:
    """Windows of a video in the order of time."""

    spans: np.ndarray
    """Float64 (S, 2): seconds at which each begins and ends; where two overlap, in the middle between them."""
    probabilities: np.ndarray
    """Float64 (S, classes), means over the crops."""

    def rows(self, top: int) -> list[Row]:
        """The `top` most probable classes of the whole; and those that are first in some window, up to MOST_ROWS."""
        mean, peaks = self.probabilities.mean(0), self.probabilities.max(0)
        best = np.argsort(-mean, kind="stable")[:top].tolist()
        first = set(self.probabilities.argmax(1).tolist()) - set(best)
        more = sorted(first, key=lambda index: -peaks[index])[: max(0, MOST_ROWS - len(best))]
        return [Row(index, float(mean[index]), float(peaks[index]), *self._when(index)) for index in best + more]

    def _when(self, index: int) -> tuple[float, float]:
        values = self.probabilities[:, index]
        first = last = int(values.argmax())
        while first > 0 and values[first - 1] >= values.max() / 2:
            first -= 1
        while last < len(values) - 1 and values[last + 1] >= values.max() / 2:
            last += 1
        return float(self.spans[first, 0]), float(self.spans[last, 1])


def spans_of(video: VideoFile, frames: np.ndarray, stride: int) -> np.ndarray:
    """Frames (S, T), a stride apart -> `TimeLine.spans`."""
    ends = np.append(video.times, video.seconds)
    begin, end = ends[frames[:, 0]], ends[np.minimum(frames[:, -1] + stride, len(ends) - 1)]
    middle = (begin[1:] + end[:-1]) / 2
    begin[1:], end[:-1] = np.maximum(begin[1:], middle), np.minimum(end[:-1], middle)
    return np.stack([begin, end], axis=1)


def clock(seconds: float, whole: float) -> str:
    """A moment of a video of `whole` seconds: 4.2 s, 1:04, 1:02:03."""
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if whole >= 3600 else f"{minutes}:{rest:02}"


def draw(file: Path, title: str, line: TimeLine, rows: Sequence[Row], names: Sequence[str], pictures: np.ndarray) -> None:
    """A strip of frames, uint8 (n, height, width, 3), equally spaced in time, and below it each row's probability, 0 to 1."""
    spans = line.spans
    begin, end = spans[0, 0], spans[-1, 1]
    figure, (strip, *panels) = plt.subplots(
        len(rows) + 1,
        figsize=(11, 1.5 + 0.62 * len(rows)),
        height_ratios=[1.25, *[1] * len(rows)],
        sharex=True,
        layout="constrained",
    )
    for i, picture in enumerate(pictures):
        place = strip.inset_axes((i / len(pictures), 0, 1 / len(pictures), 1))
        place.imshow(picture, interpolation="antialiased")
        place.axis("off")
    strip.set(xlim=(begin, end), yticks=[])
    best = max(range(len(rows)), key=lambda i: rows[i].probability)
    for i, (axes, row, name) in enumerate(zip(panels, rows, names, strict=True)):
        color = ACCENT if i == best else MUTED
        heights = line.probabilities[:, row.index]
        axes.bar(spans[:, 0], heights, spans[:, 1] - spans[:, 0], align="edge", color=color, linewidth=0)
        axes.set(ylim=(0, 1), yticks=[])
        short = "\n".join(textwrap.wrap(name, NAME_WIDTH, max_lines=2, placeholder=" …"))
        axes.set_ylabel(short, rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        axes.text(1.01, 0.5, f"{row.probability:.0%}", transform=axes.transAxes, va="center", fontsize=9, color=color)
        axes.axhline(0.5, color="#e6e8eb", linewidth=0.8, zorder=0)
    for axes in (strip, *panels):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
    whole = end - begin
    panels[-1].tick_params(axis="x", length=3)
    panels[-1].xaxis.set_major_locator(MultipleLocator(next((step for step in TICKS if whole <= 10 * step), whole)))
    panels[-1].xaxis.set_major_formatter(lambda seconds, _: clock(seconds, whole))
    strip.text(1.01, 0.5, "mean", transform=strip.transAxes, va="center", fontsize=9, color=MUTED)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, parse_math=False)
    save(figure, file)
