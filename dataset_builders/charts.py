"""Charts as inline SVG and HTML, coloured by the page's own variables, so that they follow its light and dark form."""

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 170, 8, 22, 16  # of a histogram, in SVG units


def shown(value: bytes | str) -> str:
    """Text from outside (names of files, messages) for HTML: what is not printable is written as an escape."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text))


def histogram(counts: Sequence[int], names: Sequence[str], ticks: Sequence[tuple[float, str]], note: str) -> str:
    """Counts of bins side by side -> SVG. `names` say what each bin is, in a tooltip; `ticks` are (place in bins, label)."""
    total, highest = sum(counts), max(counts)
    wide, high = (WIDTH - 2 * LEFT) / len(counts), HEIGHT - TOP - BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(note)}">']
    for number, (count, name) in enumerate(zip(counts, names, strict=True)):
        x, tall = LEFT + number * wide, max(1.0, high * count / highest) if count else 0.0
        box = f'x="{x + 0.5:.1f}" y="{TOP + high - tall:.1f}" width="{max(0.5, wide - 1):.1f}" height="{tall:.1f}"'
        bar = f'<rect class="bar" {box}/>'
        # the whole column answers to the pointer, however short its bar
        hover = f'<rect class="hover" x="{x:.1f}" y="{TOP}" width="{wide:.1f}" height="{high}"/>'
        parts.append(f"<g><title>{escape(name)}: {count:,} ({count / total:.1%})</title>{bar}{hover}</g>")
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{TOP + high}" y2="{TOP + high}"/>')
    for place, label in ticks:
        x = LEFT + place * wide
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP + high}" y2="{TOP + high + 4}"/>')
        anchor = "start" if x < 3 * LEFT else "end" if x > WIDTH - 3 * LEFT else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{escape(label)}</text>')
    parts.append(f'<text x="{LEFT}" y="11">{highest:,}</text></svg>')
    return "".join(parts)


def bars(items: Sequence[tuple[str, int]], total: int, most: int = 8) -> str:
    """(name, count), largest first, as horizontal bars; what is beyond `most` is added up."""
    rows = [(name, count, "") for name, count in items[:most]]
    if rest := items[most:]:
        rows.append((f"{len(rest)} others", sum(count for _, count in rest), ' class="others"'))
    longest = max(count for _, count, _ in rows)
    cells = "".join(
        f'<tr{css}><th>{shown(name)}</th><td class="track"><i style="width:{100 * count / longest:.2f}%"></i></td>'
        f"<td>{count:,}</td><td>{share(count, total)}</td></tr>"
        for name, count, css in rows
    )
    return f'<table class="bars">{cells}</table>'


def stack(parts: Sequence[tuple[str, float, str]]) -> str:
    """(name, share of the whole, CSS class) side by side in one bar."""
    cells = []
    for name, part, color in parts:
        if part > 0:
            text = f"{part:.0%}" if part > 0.045 else ""
            cells.append(f'<span class="{color}" style="flex-grow:{part:.6f}" title="{shown(name)}: {part:.1%}">{text}</span>')
    return f'<div class="stack">{"".join(cells)}</div>'


def share(part: float, whole: float) -> str:
    """ "12.3 %", with a sign for what is there but too small to show."""
    if not whole:
        return "–"
    return "&lt; 0.1 %" if 0 < part / whole < 0.0005 else f"{100 * part / whole:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], foot: bool = False, css: str = "numbers") -> str:
    """Cells are HTML already."""
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    for number, row in enumerate(rows):
        kind = ' class="foot"' if foot and number == len(rows) - 1 else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>")
    return f'<div class="scroll"><table class="{css}">{"".join(lines)}</table></div>'


def number(value: Any) -> str:
    """As people write it: thousands apart, a dash for nothing."""
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else shown(str(value))


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit to write an amount of time in -> (its name, in seconds)."""
    return ("hours", 3600.0) if seconds >= 7200 else ("minutes", 60.0)


def size_unit(size: int) -> tuple[str, int]:
    """The unit to write an amount of data in -> (its name, in bytes)."""
    return ("TiB", 1 << 40) if size >= 1 << 41 else ("GiB", 1 << 30) if size >= 1 << 31 else ("MiB", 1 << 20)
