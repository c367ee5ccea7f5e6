"""Curves of several runs as inline SVG, coloured by the page's own variables, so that they follow its light and dark form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 540, 230, 52, 10, 12, 32  # in SVG units
POINTS = 400  # of a curve; more lie closer than a pixel
COLUMNS = 60  # that answer to the pointer with their values
COLOURS = 7  # classes r0 to r6


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One run's values (n,) over x (n,) ascending; NaN where there is none. `marks` are places on x to draw a line at."""

    name: str
    run: int
    """Its number, which gives the colour."""
    x: np.ndarray
    y: np.ndarray
    marks: Sequence[float] = ()


def chart(
    curves: Sequence[Curve],
    x_name: str,
    *,
    noisy: bool = True,
    log: bool = False,
    zero: bool = False,
    percent: bool = False,
) -> str:
    """Each run's values; if they are noisy, faint, and bold their running mean over a fortieth of the run. The axis fits all
    but the 0.5 % of values at each end, or begins at `zero`. Without any value, a sentence that says so."""
    curves = [_finite(curve, log) for curve in curves]
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return '<p class="note">Nothing was logged.</p>'
    smooth = [running_mean(curve.y, log) if noisy else curve.y for curve in curves]
    values = np.concatenate([curve.y for curve in curves])
    low, high = np.quantile(values, [0.005, 0.995]).tolist()
    low, high = min(low, *(mean.min() for mean in smooth)), max(high, *(mean[len(mean) // 20 :].max() for mean in smooth))
    axis = Axis.of(0.0 if zero else low, high, log)
    right = max(curve.x[-1] for curve in curves) or 1.0
    wide, high_px = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_at(x: float) -> float:
        return LEFT + wide * x / right

    def y_at(y: float) -> float:
        return TOP + high_px * (1 - min(1.0, max(0.0, axis.place(y))))

    label = escape(", ".join(curve.name for curve in curves))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for tick in axis.ticks:
        text = f"{tick:.3g}" if not percent else f"{100 * tick:.3g} %"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(tick):.1f}" y2="{y_at(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y_at(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    bottom = TOP + high_px
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    for tick in Axis.of(0.0, right, False).ticks:
        if tick <= right:
            parts.append(f'<line class="axis" x1="{x_at(tick):.1f}" x2="{x_at(tick):.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text x="{x_at(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_name)}</text>')
    for curve in curves:
        for mark in curve.marks:
            x = f'x1="{x_at(mark):.1f}" x2="{x_at(mark):.1f}"'
            parts.append(f'<line class="mark r{curve.run % COLOURS}" {x} y1="{TOP}" y2="{bottom}"/>')
    for css, shown in (("raw", [curve.y for curve in curves] if noisy else []), ("mean", smooth)):
        for curve, y in zip(curves, shown, strict=False):
            points = " ".join(f"{x_at(a):.1f},{y_at(b):.1f}" for a, b in zip(*thinned(curve.x, y), strict=True))
            parts.append(f'<polyline class="{css} r{curve.run % COLOURS}" points="{points}"/>')
    return "".join([*parts, *_columns(curves, smooth, right, x_name, percent), "</svg>"])


@dataclass(frozen=True, slots=True)
class Axis:
    """From its first tick to its last."""

    ticks: list[float]
    log: bool

    @staticmethod
    def of(low: float, high: float, log: bool) -> "Axis":
        """The narrowest axis with round ticks around [low, high], with four to eight of them."""
        if log:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = (1,) if len(decades) > 3 else (1, 2, 5)
            every = -(-len(decades) // 7)
            ticks = [step * 10.0**decade for decade in decades[::every] for step in steps]
            first = max((i for i, tick in enumerate(ticks) if tick <= low), default=0)
            last = min((i for i, tick in enumerate(ticks) if tick >= high), default=len(ticks) - 1)
            return Axis(ticks[first : max(last, first + 1) + 1], log)
        span = (high - low) or abs(high) or 1.0
        unit = 10.0 ** math.floor(math.log10(span / 4))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= 6)
        first = math.floor(low / step + 1e-9)
        last = max(math.ceil(high / step - 1e-9), first + 1)
        return Axis([round(i * step, 12) for i in range(first, last + 1)], log)

    def place(self, value: float) -> float:
        """0 at the first tick, 1 at the last."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)


def running_mean(y: np.ndarray, log: bool = False) -> np.ndarray:
    """(n,) -> (n,): of the last n / 40 values, geometric for a logarithmic axis."""
    window = max(1, len(y) // 40)
    sums = np.cumsum(np.r_[0.0, np.log(y) if log else y])
    begin = np.maximum(np.arange(len(y)) + 1 - window, 0)
    mean = (sums[1:] - sums[begin]) / (np.arange(len(y)) + 1 - begin)
    return np.exp(mean) if log else mean


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` of a curve's points: of each part of it the lowest and the highest, so that no spike is lost."""
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS // 2)
    kept = np.unique([part[place] for part in parts for place in (y[part].argmin(), y[part].argmax())])
    return x[kept], y[kept]


def _finite(curve: Curve, log: bool) -> Curve:
    keep = np.isfinite(curve.y) & ((curve.y > 0) | (not log))
    return Curve(name=curve.name, run=curve.run, x=curve.x[keep], y=curve.y[keep], marks=curve.marks)


def _columns(curves: Sequence[Curve], smooth: Sequence[np.ndarray], right: float, x_name: str, percent: bool) -> list[str]:
    """Invisible columns over the chart, whose tooltips name the value of every run there."""
    wide, parts = (WIDTH - LEFT - RIGHT) / COLUMNS, []
    for column in range(COLUMNS):
        x = right * (column + 0.5) / COLUMNS
        lines = [f"{x_name} {x:,.4g}"]
        for curve, mean in zip(curves, smooth, strict=True):
            if x <= curve.x[-1]:
                value = mean[int(np.searchsorted(curve.x, x))]
                lines.append(f"{curve.name}: {value:.1%}" if percent else f"{curve.name}: {value:.5g}")
        box = f'x="{LEFT + column * wide:.1f}" y="{TOP}" width="{wide:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        parts.append(f'<g><title>{escape(chr(10).join(lines))}</title><rect class="column" {box}/></g>')
    return parts
