"""What the page of a dataset's report shows besides its counts (see `dataset_builders/report.html`)."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from dataset_builders.media.presets import called_now
from dataset_builders.pages.contact_sheet import Picture
from dataset_builders.pages.counts import FEW, OCTAVE, TENTHS, VIEW, DatasetCounts, classes, quantile
from dataset_builders.paper import TABLE_8
from pipeline.report.charts import histogram
from pipeline.report.page import colour, share

PAPER_NAMES = {
    "kinetics": ("K710", "658k"),
    "something": ("SSV2", "169k"),
    "ava": ("AVA", "21k"),
    "webvid": ("WebVid2M", "250k"),
    "instagram": ("self-collected Instagram", "250k"),
}
UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20))
MOST = 8  # of a list that may be long; the rest is added up
TOLD = ("counts", "notes", "folders", "requested", "taken", "rejected", "dropped", "expected_clips")  # of a source, elsewhere


def values(
    counts: DatasetCounts,
    described: Mapping[str, Any],
    versions: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture],
    took: str = "",
) -> dict[str, Any]:
    """For the template: what has to be computed or drawn."""
    total, told, made = counts.total, described.get("sources", {}), described.get("versions", [])
    known = {label for split, label in counts.labels if split == "train"}
    options = described.get("options", {})
    rows, beside = _paper(counts, told)
    return {
        "counts": counts,
        "versions": versions,
        "pictures": pictures,
        "told": told,
        "options": options and {**options, "preset": called_now(options)},
        "tools": [made[place].get("tools", {}) if place < len(made) else {} for place in range(len(versions))],
        "time": ("hours", 3600.0) if total.seconds >= 7200 else ("minutes", 60.0),
        "size": next((unit for unit in UNITS if total.bytes >= 2 * unit[1]), UNITS[-1]),
        "sums": {field: _sum([about.get(field) for about in told.values()]) for field in ("requested", "expected_clips")},
        "notes": [(name, str(note).removeprefix(f"{name}: ")) for name in told for note in told[name].get("notes", [])],
        "abouts": {name: _about(about) for name, about in told.items()},
        "classes": classes(counts.labels, counts.splits),
        "strange": sorted({label for split, label in counts.labels if split != "train"} - known) if known else [],
        "shares": {
            what: [(name, getattr(of, field), colour(place)) for place, (name, of) in enumerate(counts.sources.items())]
            for what, field in (("files", "files"), ("clips", "clips"), ("hours", "seconds"))
        },
        "paper": rows,
        "beside": beside,
        "left_out": [
            ("Rejected", total.rejected, counts.rejects, "rejects.parquet"),
            ("Not asked for", total.dropped, counts.drops, "dropped.parquet"),
        ],
        "charts": {"Duration": _durations(counts.durations), "Bytes per clip": _sizes(counts.sizes)} if total.clips else {},
        "lists": [
            ("Frames per second", *_longest(counts.rates, "{:g} fps")),
            (f"Resolution ({len(counts.resolutions):,} different)", *_longest(counts.resolutions, "{0[0]} × {0[1]}")),
            ("Codec", *_longest(counts.codecs, "{}")),
        ],
        "few": FEW,
        "took": took,
        "duplicates": described.get("duplicates", {}),
        "view": VIEW,
        "failed": sum(not picture.jpeg for picture in pictures),
        "base64": lambda jpeg: base64.b64encode(jpeg).decode(),
    }


def _sum(numbers: list[int | None]) -> int | None:
    """None unless each is known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def _about(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a source itself said of its lists and folders, and how it was set up."""
    folders = {f"folder {name}": path for name, path in about.get("folders", {}).items()}
    return {**about.get("counts", {}), **folders, **{key: value for key, value in about.items() if key not in TOLD}}


def _paper(counts: DatasetCounts, told: Mapping[str, Any]) -> tuple[list[tuple[Any, ...]], str]:
    """The plan and what became of it against Table 8, in clips of the training split; the sources that are not in it."""
    of_kind = {kind: [name for name in counts.sources if told.get(name, {}).get("kind") == kind] for kind in TABLE_8}
    ours = [name for names in of_kind.values() for name in names]
    lines = [(*PAPER_NAMES[kind], wanted, of_kind[kind], ", ".join(of_kind[kind]) or "–") for kind, wanted in TABLE_8.items()]
    rows = []
    for name, in_print, wanted, names, listed in [*lines, ("UnlabeledHybrid", "1.348M", sum(TABLE_8.values()), ours, "")]:
        planned = sum(told[source].get("expected_clips") or 0 for source in names)
        files = sum(counts.sources[source].files for source in names)
        clips = sum(counts.sources[source].train_clips for source in names)
        rows.append((name, in_print, wanted, planned, files, clips, listed))
    return rows if ours else [], ", ".join(name for name in counts.sources if name not in ours)


def _longest(counted: Counter[Any], form: str) -> tuple[list[tuple[str, int, str, str]], bool]:
    """The most frequent as bars, what is beyond them added up, and whether there was any."""
    items = [(form.format(value), n) for value, n in counted.most_common()]
    if rest := items[MOST:]:
        items[MOST:] = [(f"{len(rest)} others", sum(n for _, n in rest))]
    return [(name, n, f"{n:,}", share(n, counted.total())) for name, n in items], bool(rest)


def _durations(tenths: np.ndarray) -> tuple[Markup, str]:
    """Tenths of a second -> 20 to 40 bins up to where nearly all clips end, and one for the rest; what there is to say."""
    end = quantile(tenths, 0.995) + 1
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if end / step <= 40)
    number = -(-end // step)
    inside = np.pad(tenths[: number * step], (0, max(0, number * step - TENTHS))).reshape(number, step).sum(1)
    rest = int(tenths.sum() - inside.sum())
    names = [f"{i * step / 10:g} to {(i + 1) * step / 10:g} s" for i in range(number)] + [f"over {number * step / 10:g} s"]
    every = next(every for every in (1, 2, 5, 10, 20) if number / every <= 8)
    ticks = [(float(i), f"{i * step / 10:g}" + (" s" if i == 0 else "")) for i in range(0, number + 1, every)]
    low, middle, high = (quantile(tenths, part) / 10 for part in (0.05, 0.5, 0.95))
    note = f"median {middle:.1f} s, 5 % under {low:.1f} s, 5 % over {high:.1f} s"
    shown = number + (rest > 0)
    return histogram([*inside.tolist(), rest][:shown], names[:shown], ticks, f"durations: {note}"), note


def _sizes(bins: np.ndarray) -> tuple[Markup, str]:
    """Quarters of doublings -> the part of them that is used; what there is to say."""
    used = np.flatnonzero(bins)
    first, last = int(used[0]) // OCTAVE * OCTAVE, -(-(int(used[-1]) + 1) // OCTAVE) * OCTAVE
    names = [f"{_size(i)} to {_size(i + 1)}" for i in range(first, last)]
    every = OCTAVE * max(1, -(-(last - first) // (7 * OCTAVE)))
    ticks = [(float(i - first), _size(i)) for i in range(first, last + 1, every)]
    low, middle, high = (_size(quantile(bins, part) + 0.5) for part in (0.05, 0.5, 0.95))
    note = f"median about {middle}, 5 % under {low}, 5 % over {high}; the axis doubles every {OCTAVE} bars"
    return histogram(bins[first:last].tolist(), names, ticks, f"bytes per clip: {note}"), note


def _size(quarters: float) -> str:
    value = 2 ** (quarters / OCTAVE)
    unit = next(unit for unit in range(4) if value < 1000 * 1024**unit or unit == 3)
    return f"{value / 1024**unit:.3g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
