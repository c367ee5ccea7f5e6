"""Charts as inline SVG and HTML, coloured by the page's own variables, so that they follow its light and dark form."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH = 1120  # of a chart over the page's whole width, in SVG units
LEFT = 78  # for the names of lanes


def shown(value: object) -> str:
    """Text from outside (keys, messages) for HTML: what is not printable is written as an escape."""
    text = str(value)
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], css: str = "numbers", foot: bool = False) -> str:
    """Cells are HTML already."""
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    for number, row in enumerate(rows):
        kind = ' class="foot"' if foot and number == len(rows) - 1 else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>")
    return f'<div class="scroll"><table class="{css}">{"".join(lines)}</table></div>'


def bars(items: Sequence[tuple[str, float, str, str]]) -> str:
    """(name, value, its text, a note) as horizontal bars from 0."""
    longest = max(value for _, value, _, _ in items)
    rows = "".join(
        f'<tr><th>{shown(name)}</th><td class="track"><i style="width:{100 * value / longest:.2f}%"></i></td>'
        f"<td>{text}</td><td>{note}</td></tr>"
        for name, value, text, note in items
    )
    return f'<table class="bars">{rows}</table>'


def stack(parts: Sequence[tuple[str, float, str]]) -> str:
    """(name, amount, CSS class) side by side in one bar."""
    total, cells = sum(part for _, part, _ in parts) or 1.0, []
    for name, part, css in parts:
        if part > 0:
            text = f"{part / total:.0%}" if part / total > 0.04 else ""
            title = f"{shown(name)}: {part / total:.1%}"
            cells.append(f'<span class="{css}" style="flex-grow:{part / total:.6f}" title="{title}">{text}</span>')
    return f'<div class="stack">{"".join(cells)}</div>'


def legend(items: Sequence[tuple[str, str]]) -> str:
    """(name, CSS class)"""
    dots = "".join(f'<span><span class="dot {css}"></span>{shown(name)}</span>' for name, css in items)
    return f'<div class="legend">{dots}</div>'


def pair(samples: float, time: float) -> str:
    """Two shares, one below the other."""
    return (
        f'<div title="{samples:.1%} of the samples"><i class="other" style="width:{100 * samples:.2f}%"></i></div>'
        f'<div title="{time:.1%} of the time"><i style="width:{100 * time:.2f}%"></i></div>'
    )


def curve(x: Sequence[float], y: Sequence[int], top: int, note: str) -> str:
    """Steps y over seconds x, as an area from 0 to `top`."""
    height, low, high = 150, 122, 12
    span, wide = max(x[-1], 1e-9), WIDTH - LEFT - 10

    def place(seconds: float, value: float) -> str:
        return f"{LEFT + wide * seconds / span:.1f},{low - (low - high) * value / max(top, 1):.1f}"

    steps = [place(0, y[0])]
    for i in range(1, len(x)):
        steps += [place(x[i], y[i - 1]), place(x[i], y[i])]
    line = " ".join(steps)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(note)}">']
    for value in sorted({0, top, *([top // 2] if top > 3 else [])}):
        at = low - (low - high) * value / max(top, 1)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value}</text>')
    parts.append(f'<polygon class="area" points="{LEFT},{low} {line} {LEFT + wide},{low}"/>')
    parts.append(f'<polyline class="curve" points="{line}"/>')
    parts += _seconds(span, wide, low, height)
    return "".join([*parts, "</svg>"])


def gantt(drawn: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Lanes of spans [stage, begin, ms] over a window -> SVG. `names` are the stages' for the tooltips."""
    lanes, span = drawn["lanes"], max(drawn["ms"], 1e-3)
    row, bottom, wide = 20, 24, WIDTH - LEFT - 10
    low = row * len(lanes)
    parts = [f'<svg viewBox="0 0 {WIDTH} {low + bottom}" role="img" aria-label="What every worker did">']
    for number, lane in enumerate(lanes):
        y = row * number
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{shown(lane["name"])}</text>')
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y + row - 1}" y2="{y + row - 1}"/>')
        for stage, begin, took in lane["spans"]:
            x, w = LEFT + wide * begin / span, max(0.4, wide * took / span)
            w -= 1 if stage == "step" and w > 3 else 0  # a gap between steps
            box = f'x="{x:.1f}" y="{y + 2}" width="{w:.2f}" height="{row - 5}"'
            parts.append(f'<rect class="f-{stage}" {box}><title>{names[stage]}: {took:.2f} ms</title></rect>')
    return "".join([*parts, *_seconds(span / 1e3, wide, low, low + bottom), "</svg>"])


def _seconds(span: float, wide: float, low: float, height: float) -> list[str]:
    """The axis below a chart over time."""
    step = next(
        step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 1e9) if span / step <= 10
    )
    parts = [f'<line class="axis" x1="{LEFT}" x2="{LEFT + wide}" y1="{low}" y2="{low}"/>']
    for i in range(int(span / step + 1e-6) + 1):
        x = LEFT + wide * i * step / span
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{low}" y2="{low + 4}"/>')
        unit = " s" if i == 0 else ""
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{i * step:g}{unit}</text>')
    return parts
