"""Charts as inline SVG, drawn by matplotlib and coloured by the page's own variables, so that they follow its light and dark
form. What a value is, tooltips say: of columns that lie over the drawing."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from pipeline.report.page import COLOURS, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INKS = ("soft", "line", "bar", *(f"c{number}" for number in range(COLOURS)))  # variables of the style sheet
POINTS = 400  # of a curve; more lie closer than a pixel
COLUMNS = 60  # of a curve that answer to the pointer with their values
ROUND = (1, 2, 2.5, 5, 10)  # steps between ticks
# what matplotlib writes and the page has no use for: every id and font, and clipping, as nothing reaches beyond the axes
NEEDLESS = re.compile(
    r"<\?xml.*?>|<!DOCTYPE.*?>|<defs>.*?</defs>| (id|clip-path|version|width|height|xmlns(:xlink)?)=\"[^\"]*\"|<g [^>]*/>"
    r"|font-size: [^;]*; font-family: [^;\"]*(; )?| transform=\"rotate\(-0 [^\"]*\"",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One run's values (n,) over x (n,) ascending; NaN where there is none. `marks` are places on x to draw a line at."""

    name: str
    colour: str
    x: np.ndarray
    y: np.ndarray
    marks: Sequence[float] = ()


def histogram(counts: Sequence[int], names: Sequence[str], ticks: Sequence[tuple[float, str]], note: str) -> Markup:
    """Counts of bins side by side. `names` say what each bin is, in a tooltip; `ticks` are (place in bins, label)."""
    axes, total, highest = _axes(460, 170, 12, 12, 16, 22), sum(counts), max(counts)
    places = np.flatnonzero(counts)
    tall = np.maximum(np.array(counts)[places], highest / 132)  # a pixel at least
    axes.bar(places + 0.5, tall, 1 - len(counts) / 436, color=_ink("bar"))
    axes.set(xlim=(0, len(counts)), ylim=(0, highest), yticks=[])
    axes.set_xticks(*map(list, zip(*ticks, strict=True)))
    axes.annotate(f"{highest:,}", (0, 1), (0, 5), "axes fraction", "offset points", color=_ink("soft"))
    return _svg(axes, note, [f"{name}: {n:,} ({n / total:.1%})" for name, n in zip(names, counts, strict=True)])


def steps(x: Sequence[float], y: Sequence[int], top: int, note: str) -> Markup:
    """Steps y over seconds x, as an area from 0 to `top`."""
    axes, times, values = _axes(1120, 150, 78, 10, 12, 28), np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
    axes.fill([*times, times[-1], times[0]], [*values, 0, 0], color=_ink("bar"), alpha=0.22, linewidth=0)
    axes.plot(times, values, color=_ink("bar"), linewidth=1.4)
    axes.set(xlim=(0, max(x[-1], 1e-9)), ylim=(0, max(top, 1)))
    axes.set_yticks(sorted({0, top, *([top // 2] if top > 3 else [])}))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" + (" s" if value == 0 else ""))
    axes.grid(axis="y", color=_ink("line"))
    return _svg(axes, note)


def lines(
    curves: Sequence[Curve], x_name: str, *, noisy: bool = True, log: bool = False, zero: bool = False, percent: bool = False
) -> Markup:
    """Each run's values; if they are noisy, faint, and bold their running mean over a fortieth of the run. The axis fits all
    but the 0.5 % of values at each end, or begins at `zero`. Without any value, a sentence that says so."""
    curves = [curve for one in curves if len((curve := _finite(one, log)).x)]
    if not curves:
        return Markup('<p class="note">Nothing was logged.</p>')
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    means = [running_mean(curve.y, log) if noisy else curve.y for curve in curves]
    low, high = np.quantile(np.concatenate([curve.y for curve in curves]), [0.005, 0.995]).tolist()
    low, high = min(low, *(mean.min() for mean in means)), max(high, *(mean[len(mean) // 20 :].max() for mean in means))
    right = max(curve.x[-1] for curve in curves) or 1.0
    axes = _axes(540, 230, 56, 28, 12, 32)  # room for half of "400,000" beyond the right end
    if log:
        axes.set_yscale("log")
        logarithmic = LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,), numticks=9)
        axes.yaxis.set(
            major_locator=logarithmic if high / low > 10 else MaxNLocator(6, steps=ROUND), minor_locator=NullLocator()
        )
        axes.set_ylim(low / 1.1, high * 1.1)
    else:
        if zero or high <= low:
            low, high = min(0.0, low), max(0.0, high) or 1.0
        ticks = MaxNLocator(6, steps=ROUND).tick_values(low, high)
        axes.set(ylim=(ticks[0], ticks[-1]), yticks=ticks)
    axes.set(xlim=(0, right))
    axes.xaxis.set(major_locator=MaxNLocator(5, steps=ROUND), major_formatter=lambda value, _: f"{value:,g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %" if percent else tick(value))
    axes.set_xlabel(x_name, loc="right", color=_ink("soft"), labelpad=3)
    axes.grid(axis="y", color=_ink("line"))
    for curve, mean in zip(curves, means, strict=True):
        axes.vlines(curve.marks, *axes.get_ylim(), colors=_ink(curve.colour), linestyles=(0, (2, 3)), linewidth=1)
        for y, width, alpha in ((curve.y, 0.8, 0.35), (mean, 1.8, 1.0))[not noisy :]:
            x, y = thinned(curve.x, np.clip(y, *axes.get_ylim()))
            axes.plot(x, y, color=_ink(curve.colour), linewidth=width, alpha=alpha, zorder=2 + alpha)
    tips = []
    for x in right * (np.arange(COLUMNS) + 0.5) / COLUMNS:
        there = [(curve, mean) for curve, mean in zip(curves, means, strict=True) if x <= curve.x[-1]]
        values = [(curve.name, mean[np.searchsorted(curve.x, x)]) for curve, mean in there]
        told = [f"{name}: {value:.1%}" if percent else f"{name}: {value:.5g}" for name, value in values]
        tips.append(Markup("\n").join(map(shown, [f"{x_name} {x:,.4g}", *told])))
    return _svg(axes, ", ".join(curve.name for curve in curves), tips)


def tick(value: float) -> str:
    """A number in at most eight characters, which is what fits beside an axis."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    if 1e4 <= abs(value) < 1e7:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value / 1e6:.3g} M"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def choices(names: Sequence[str], curves: Mapping[str, np.ndarray], x_name: str) -> Markup:
    """Shares (n,) at n places that have names, a curve and a colour for each; NaN where there is none."""
    from matplotlib.ticker import MaxNLocator

    axes, places = _axes(540, 230, 52, 10, 12, 32), np.arange(len(names))
    values = np.concatenate([y[np.isfinite(y)] for y in curves.values()])
    if not len(values):
        return Markup('<p class="note">Nothing was evaluated.</p>')
    ticks = MaxNLocator(6, steps=ROUND).tick_values(*((values.min(), values.max()) if np.ptp(values) else (0.0, 1.0)))
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(ticks[0], ticks[-1]), yticks=ticks)
    axes.set_xticks(places, names)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.set_xlabel(x_name, loc="right", color=_ink("soft"), labelpad=3)
    axes.grid(axis="y", color=_ink("line"))
    for number, y in enumerate(curves.values()):
        ink = _ink(f"c{number % COLOURS}")
        axes.plot(places, y, color=ink, linewidth=1.8)
        for place in places:  # a marker would be a definition, which the page drops
            axes.plot([place, place + 1e-3], [y[place], y[place]], color=ink, linewidth=7, solid_capstyle="round")
    tips = [
        Markup("\n").join(map(shown, [f"{x_name} {at}", *(f"{name}: {y[place]:.2%}" for name, y in curves.items())]))
        for place, at in enumerate(names)
    ]
    return _svg(axes, ", ".join(curves), tips)


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
    return Curve(name=curve.name, colour=curve.colour, x=curve.x[keep], y=curve.y[keep], marks=curve.marks)


def _axes(width: int, height: int, left: int, right: int, top: int, bottom: int) -> "Axes":
    """On a figure of so many SVG units, with such margins."""
    from matplotlib.figure import Figure  # here: a second

    figure = Figure(figsize=(width / 72, height / 72))
    inner = (width - left - right) / width, (height - top - bottom) / height
    axes = figure.add_axes((left / width, bottom / height, *inner))
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set(color=_ink("soft"), linewidth=0.7)
    axes.tick_params(length=0, pad=7, labelcolor=_ink("soft"))
    axes.tick_params("x", pad=9)
    axes.set_axisbelow(True)
    return axes


def _svg(axes: "Axes", note: str, tips: Sequence[str] = ()) -> Markup:
    """The drawing, and over its inner part a column for each of `tips`."""
    import matplotlib

    axes.vlines(axes.get_xticks(), -0.03, 0, colors=_ink("soft"), linewidth=0.7, transform=axes.get_xaxis_transform())
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        axes.figure.savefig(  # type: ignore[union-attr]
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawn = " ".join(NEEDLESS.sub("", text.getvalue()).split())
    drawn = re.sub(r' [dxy]="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), drawn)
    drawn = re.sub(r"#0000(\d\d)", lambda found: f"var(--{INKS[int(found[1])]})", drawn)
    drawn = drawn.replace("<svg", str(Markup('<svg role="img" aria-label="{}"').format(shown(note))), 1)
    box = axes.get_position()
    inset = " ".join(f"{100 * part:.2f}%" for part in (1 - box.y1, 1 - box.x1, box.y0, box.x0))
    columns = Markup("").join(Markup('<i title="{}"></i>').format(tip) for tip in tips)
    return Markup('<div class="chart">{}<div class="tips" style="inset:{}">{}</div></div>').format(
        Markup(drawn), inset, columns
    )


def _ink(name: str) -> str:
    """A colour that stands for a variable of the style sheet until the SVG is written."""
    return f"#0000{INKS.index(name):02d}"
