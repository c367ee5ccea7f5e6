"""A picture of a video's time: for each class the actions that are annotated, and below them those that were found."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import MultipleLocator

from train.demos.time_line import NAME_WIDTH, TICKS, clock
from train.pictures import ACCENT, INK, MUTED, plt, save

MOST_CLASSES = 8  # rows of a picture
MOST_FOUND = 60  # segments of a picture, the best
FAINTEST = 0.05  # of the best score: what is less is left out


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds."""

    begin: float
    end: float
    label: str
    score: float = 1.0


def draw(file: Path, title: str, duration: float, truth: Sequence[Span], found: Sequence[Span]) -> np.ndarray:
    """Found are the best first; a segment is the more opaque the higher its score, the best one of the video being full.
    Classes of the truth come first. -> its pixels, uint8 (height, width, 3)."""
    best = max((span.score for span in found), default=1.0)
    found = [span for span in found[:MOST_FOUND] if span.score >= FAINTEST * best]
    names = list(dict.fromkeys([span.label for span in truth] + [span.label for span in found]))
    left, names = len(names) - MOST_CLASSES, names[:MOST_CLASSES] or ["nothing"]
    figure, panels = plt.subplots(
        len(names), figsize=(11, 1.0 + 0.72 * len(names)), sharex=True, squeeze=False, layout="constrained"
    )
    for axes, name in zip(panels[:, 0], names, strict=True):
        for span in truth:
            if span.label == name:
                axes.barh(1, span.end - span.begin, 0.62, left=span.begin, color=INK, linewidth=0)
        mine = [span for span in found if span.label == name]
        for span in reversed(mine):  # the best on top
            axes.barh(0, span.end - span.begin, 0.62, left=span.begin, color=ACCENT, alpha=span.score / best, linewidth=0)
        axes.axhline(0.5, color="#e6e8eb", linewidth=0.8, zorder=0)
        axes.set(xlim=(0, duration), ylim=(-0.5, 1.5), yticks=[])
        short = "\n".join(textwrap.wrap(name, NAME_WIDTH, max_lines=2, placeholder=" …"))
        axes.set_ylabel(short, rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        said = f"{mine[0].score:.2f}" if mine else "none"
        axes.text(1.01, 0.25, said, transform=axes.transAxes, va="center", fontsize=9, color=ACCENT if mine else MUTED)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
    last = panels[-1, 0]
    last.tick_params(axis="x", length=3)
    last.xaxis.set_major_locator(MultipleLocator(next((step for step in TICKS if duration <= 10 * step), duration)))
    last.xaxis.set_major_formatter(lambda seconds, _: clock(seconds, duration))
    more = f"; {left} other classes are not shown" if left > 0 else ""
    figure.suptitle(
        f"{title}: annotated above, found below, with the best score of each class{more}",
        x=0.01,
        ha="left",
        fontsize=10,
        parse_math=False,
    )
    return save(figure, file)
