"""The sections of a dataset's report that show the clips themselves: histograms and the contact sheet."""

import base64
from collections.abc import Sequence

import numpy as np

from dataset_builders.charts import bars, histogram, shown
from dataset_builders.pages.contact_sheet import Picture
from dataset_builders.pages.counts import OCTAVE, TENTHS, DatasetCounts, quantile


def clips(counts: DatasetCounts) -> str:
    """Histograms."""
    total = counts.total.clips
    if not total:
        return ""
    rates = [(f"{rate:g} fps", n) for rate, n in counts.rates.most_common()]
    sizes = [(f"{width} × {height}", n) for (width, height), n in counts.resolutions.most_common()]
    charts = [("Duration", _durations(counts.durations)), ("Bytes per clip", _sizes(counts.sizes))]
    lists = [
        ("Frames per second", bars(rates, total)),
        (f"Resolution ({len(sizes):,} different)", bars(sizes, total)),
        ("Codec", bars(counts.codecs.most_common(), total)),
    ]
    drawn = [
        f'<div class="{css}">'
        + "".join(f"<figure><figcaption>{title}</figcaption>{body}</figure>" for title, body in figures)
        + "</div>"
        for css, figures in (("charts", charts), ("lists", lists))
    ]
    return f"<section><h2>Clips</h2>{''.join(drawn)}</section>"


def _durations(tenths: np.ndarray) -> str:
    """Tenths of a second -> 20 to 40 bins up to where nearly all clips end, and one for the rest."""
    end = quantile(tenths, 0.995) + 1
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if end / step <= 40)
    number = -(-end // step)
    inside = np.pad(tenths[: number * step], (0, max(0, number * step - TENTHS))).reshape(number, step).sum(1)
    rest = int(tenths.sum() - inside.sum())
    names = [f"{i * step / 10:g} to {(i + 1) * step / 10:g} s" for i in range(number)]
    every = next(every for every in (1, 2, 5, 10, 20) if number / every <= 8)
    ticks = [(float(i), f"{i * step / 10:g}" + (" s" if i == 0 else "")) for i in range(0, number + 1, every)]
    counts = [*inside.tolist(), rest] if rest else inside.tolist()
    names += [f"over {number * step / 10:g} s"] if rest else []
    low, middle, high = (quantile(tenths, part) / 10 for part in (0.05, 0.5, 0.95))
    note = f"median {middle:.1f} s, 5 % under {low:.1f} s, 5 % over {high:.1f} s"
    return histogram(counts, names, ticks, f"durations: {note}") + f'<p class="note">{note}</p>'


def _sizes(bins: np.ndarray) -> str:
    """Quarters of doublings -> the part of them that is used."""
    used = np.flatnonzero(bins)
    first, last = int(used[0]) // OCTAVE * OCTAVE, -(-(int(used[-1]) + 1) // OCTAVE) * OCTAVE
    names = [f"{_size(2 ** (i / OCTAVE))} to {_size(2 ** ((i + 1) / OCTAVE))}" for i in range(first, last)]
    every = OCTAVE * max(1, -(-(last - first) // (7 * OCTAVE)))
    ticks = [(float(i - first), _size(2 ** (i / OCTAVE))) for i in range(first, last + 1, every)]
    low, middle, high = (_size(2 ** ((quantile(bins, q) + 0.5) / OCTAVE)) for q in (0.05, 0.5, 0.95))
    note = f"median about {middle}, 5 % under {low}, 5 % over {high}; the axis doubles every {OCTAVE} bars"
    return histogram(bins[first:last].tolist(), names, ticks, f"bytes per clip: {note}") + f'<p class="note">{note}</p>'


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def sheet(pictures: Sequence[Picture]) -> str:
    """The contact sheet."""
    if not pictures:
        return ""
    cells = []
    for picture in pictures:
        row = picture.row
        image = (
            f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}">'
            if picture.jpeg
            else f"<p>{shown(picture.trouble)}</p>"
        )
        key = shown(row["key"])
        caption = f'<span title="{key}">{key}</span><small>{shown(row["source"])} · {row["duration"]:.1f} s</small>'
        cells.append(f'<figure><div class="frame">{image}</div><figcaption>{caption}</figcaption></figure>')
    failed = sum(not picture.jpeg for picture in pictures)
    trouble = f' <span class="warning">{failed} of them could not be shown: run verify.py.</span>' if failed else ""
    many = f"{len(pictures)} clips at random" if len(pictures) > 1 else "the only clip"
    return (
        f"<section><h2>Contact sheet</h2><p>The middle frame of {many}, always the same for this version.{trouble}</p>"
        f'<div class="sheet">{"".join(cells)}</div></section>'
    )
