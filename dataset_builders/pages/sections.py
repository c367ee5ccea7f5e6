"""The sections of a dataset's report, each a piece of HTML."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dataset_builders.charts import number, share, shown, size_unit, stack, table, time_unit
from dataset_builders.pages.counts import DatasetCounts, Example, SourceCounts, classes
from dataset_builders.paper import TABLE_8

PAPER_NAMES = {
    "kinetics": ("K710", "658k"),
    "something": ("SSV2", "169k"),
    "ava": ("AVA", "21k"),
    "webvid": ("WebVid2M", "250k"),
    "instagram": ("self-collected Instagram", "250k"),
}
COLORS = 8  # that the style sheet has for sources; more share the last one


def headline(counts: DatasetCounts, described: Mapping[str, Any], versions: Sequence[Mapping[str, Any]]) -> str:
    total = counts.total
    (time, seconds), (size, unit_bytes) = time_unit(total.seconds), size_unit(total.bytes)
    splits = ", ".join(f"{shown(split)} {count:,}" for split, count in counts.splits.most_common())
    numbers = [
        (f"{total.clips:,}", "clips", splits if len(counts.splits) > 1 else f"of {total.files:,} files"),
        (f"{total.seconds / seconds:,.1f}", time, f"{total.seconds / total.clips:.1f} s a clip" if total.clips else ""),
        (
            f"{total.bytes / unit_bytes:,.1f}",
            size,
            f"{total.bytes / total.clips / 1024:,.0f} KiB a clip" if total.clips else "",
        ),
        (f"{len(counts.sources)}", "sources" if len(counts.sources) != 1 else "source", ""),
        (f"{total.rejected.total():,}", "rejected", f"{total.dropped.total():,} not asked for"),
        (f"{len(versions)}", "versions" if len(versions) > 1 else "version", f"fingerprint {versions[-1]['fingerprint'][:8]}"),
    ]
    if preset := described.get("options", {}).get("preset"):
        numbers.append((shown(str(preset)), "preset", ""))
    cards = "".join(f"<div><b>{value}</b> {what}<small>{more}</small></div>" for value, what, more in numbers)
    warning = (
        "" if total.clips else '<p class="warning">There is no clip to train on: nothing that was asked for could be taken.</p>'
    )
    return f'<section class="cards">{cards}</section>{warning}'


def sources(counts: DatasetCounts, described: Mapping[str, Any]) -> str:
    """From what was asked for to what became of it."""
    total = counts.total
    hours, size = time_unit(total.seconds), size_unit(total.bytes)
    told = described.get("sources", {})
    rows = [
        (_dot(place, name), *_source_cells(source, told.get(name, {}), hours, size))
        for place, (name, source) in enumerate(counts.sources.items())
    ]
    if len(rows) > 1:
        sums = {}
        for field in ("requested", "expected_clips"):
            values = [about.get(field) for about in told.values()]
            sums[field] = None if None in values or not values else sum(values)
        rows.append(("together", *_source_cells(total, sums, hours, size)))
    head = (
        "source",
        "asked for",
        "clips expected",
        "files taken",
        "clips",
        "cut",
        "rejected",
        "not asked for",
        hours[0],
        size[0],
    )
    notes = [
        f"<li><b>{shown(name)}:</b> {shown(str(note).removeprefix(f'{name}: '))}</li>"
        for name, about in told.items()
        for note in about.get("notes", [])
    ]
    return (
        f"<section><h2>Sources</h2>{table(head, rows, foot=len(counts.sources) > 1)}"
        '<p class="note">Clips expected: as far as the lists tell, one for a file of unknown length. Cut: files that gave '
        "more than one clip. Rejected: asked for, but it could not be taken, whole or in part. Not asked for: known to a "
        "source, but left out before any video was touched.</p>"
        f"<ul>{''.join(notes)}</ul>{''.join(_about(*item) for item in told.items())}</section>"
    )


def _source_cells(
    source: SourceCounts, about: Mapping[str, Any], hours: tuple[str, float], size: tuple[str, float]
) -> tuple[str, ...]:
    cut = f"{source.files_cut:,}<small>into {source.clips_of_cut:,}</small>" if source.files_cut else "–"
    return (
        *(number(about.get(field)) for field in ("requested", "expected_clips")),
        number(source.files),
        number(source.clips),
        cut,
        _reasons(source.rejected),
        _reasons(source.dropped),
        f"{source.seconds / hours[1]:,.1f}",
        f"{source.bytes / size[1]:,.1f}",
    )


def _reasons(reasons: Counter[str]) -> str:
    """A number and, below it, its reasons."""
    told = "".join(f"<small>{count:,} {shown(reason)}</small>" for reason, count in reasons.most_common())
    return f"{reasons.total():,}{told}" if reasons else "–"


def _about(name: str, about: Mapping[str, Any]) -> str:
    """What a source itself said of its lists and folders, and how it was set up."""
    folders = about.get("folders", {})
    known = ("counts", "notes", "folders", "requested", "taken", "rejected", "dropped", "expected_clips")
    settings = {key: value for key, value in about.items() if key not in known}
    entries = {**about.get("counts", {}), **{f"folder {key}": path for key, path in folders.items()}, **settings}
    lines = "".join(f"<tr><th>{shown(str(key))}</th><td>{number(value)}</td></tr>" for key, value in entries.items())
    return f"<details><summary>{shown(name)}: lists, folders, settings</summary><table>{lines}</table></details>"


def labels(counts: DatasetCounts) -> str:
    """How many classes each split has, and how even they are."""
    found = classes(counts.labels, counts.splits)
    if not found:
        return ""
    rows = [
        (
            shown(of.split),
            number(of.classes),
            f"{of.least:,}<small>{shown(of.smallest)}</small>",
            f"{of.median:,.10g}",
            f"{of.most:,}<small>{shown(of.largest)}</small>",
            number(of.unlabelled),
        )
        for of in found
    ]
    head = ("split", "classes", "clips of the smallest", "median", "of the largest", "clips without a class")
    known = {label for split, label in counts.labels if split == "train"}
    new = sorted({label for split, label in counts.labels if split != "train"} - known) if known else []
    strange = f'<p class="warning">{len(new):,} classes are in no training clip, such as {shown(new[0])}.</p>' if new else ""
    return f"<section><h2>Classes</h2>{table(head, rows)}{strange}</section>"


def shares(counts: DatasetCounts) -> str:
    """What cutting long videos into clips does to a source's share of an epoch."""
    total = counts.total
    if not total.clips or len(counts.sources) < 2:
        return ""
    rows, stacks = [], {"files": [], "clips": [], "hours": []}  # type: ignore[var-annotated]
    for place, (name, source) in enumerate(counts.sources.items()):
        of_files, of_clips = source.files / total.files, source.clips / total.clips
        of_hours = source.seconds / total.seconds if total.seconds else 0.0
        for what, part in zip(stacks, (of_files, of_clips, of_hours), strict=True):
            stacks[what].append((name, part, f"c{_color(place)}"))
        factor = f"× {of_clips / of_files:.2f}" if of_files else "–"
        mean = f"{source.seconds / source.clips:.1f} s" if source.clips else "–"
        parts = ((source.files, total.files), (source.clips, total.clips), (source.seconds, total.seconds))
        shares = [share(part, whole) if part else "–" for part, whole in parts]
        rows.append((_dot(place, name), *shares, factor, mean))
    cut = (
        f"Of {total.files:,} files {total.files_cut:,} were cut into {total.clips_of_cut:,} clips, which changes how often a "
        "source is seen."
        if total.files_cut
        else "No file was cut into several clips, so a source's share of files is its share of clips."
    )
    head = ("source", "of files", "of clips", "of hours", "clips / files", "a clip lasts")
    drawn = "".join(f'<div class="row"><span>{what}</span>{stack(parts)}</div>' for what, parts in stacks.items())
    return (
        f"<section><h2>Shares</h2><p>An epoch takes every clip once: a source weighs as much as its share of clips. {cut}</p>"
        f'<div class="stacks">{drawn}</div>'
        f"{table(head, rows)}</section>"
    )


def paper(counts: DatasetCounts, described: Mapping[str, Any]) -> str:
    """The plan and what became of it against Table 8, in clips of the training split."""
    told = described.get("sources", {})
    of_kind = {kind: [name for name in counts.sources if told.get(name, {}).get("kind") == kind] for kind in TABLE_8}
    ours = [name for names in of_kind.values() for name in names]
    if not ours:
        return ""
    rows = [
        _against(PAPER_NAMES[kind], wanted, of_kind[kind], counts, told, shown(", ".join(of_kind[kind])) or "–")
        for kind, wanted in TABLE_8.items()
    ]
    rows.append(_against(("UnlabeledHybrid", "1.348M"), sum(TABLE_8.values()), ours, counts, told, ""))
    head = ("dataset", "paper", "planned", "files here", "training clips here", "of the paper's", "", "sources")
    others = [name for name in counts.sources if name not in ours]
    beside = f" Not in the paper and not counted here: {shown(', '.join(others))}." if others else ""
    return (
        "<section><h2>Against the paper</h2><p>VideoMAE V2, Table 8: how many clips each part of UnlabeledHybrid has. "
        f"Instagram's are videos of 34 s on average, which may be cut here.{beside}</p>"
        f"{table(head, rows, foot=True, css='numbers paper')}</section>"
    )


def _against(
    printed: tuple[str, str],
    wanted: int,
    names: Sequence[str],
    counts: DatasetCounts,
    told: Mapping[str, Any],
    ours: str,
) -> tuple[str, ...]:
    files, clips = (sum(getattr(counts.sources[name], of) for name in names) for of in ("files", "train_clips"))
    planned = sum(told[name].get("expected_clips") or 0 for name in names)
    bar = f'<span class="track wide"><i style="width:{min(100.0, 100 * clips / wanted):.2f}%"></i></span>' if clips else ""
    in_print = f"{wanted:,}<small>{printed[1]} in print</small>"
    return printed[0], in_print, number(planned), number(files), number(clips), share(clips, wanted), bar, ours


def left_out(counts: DatasetCounts) -> str:
    """Reasons of rejects and of drops, an example of each."""
    total = counts.total
    parts = []
    for title, reasons, examples, file in (
        ("Rejected", total.rejected, counts.rejects, "rejects.parquet"),
        ("Not asked for", total.dropped, counts.drops, "dropped.parquet"),
    ):
        if not reasons:
            parts.append(f'<h3>{title}</h3><p class="note">Nothing.</p>')
            continue
        rows = [
            (shown(why), number(n), share(n, reasons.total()), *_example(examples[why])) for why, n in reasons.most_common()
        ]
        drawn = table(("reason", "count", "share", "for example", "because"), rows, css="reasons")
        parts.append(f'<h3>{title}</h3>{drawn}<p class="note">All of them: {file}</p>')
    return f"<section><h2>What was left out</h2>{''.join(parts)}</section>"


def _example(example: Example) -> tuple[str, str]:
    path = f"<code>{shown(example.path)}</code>" if example.path is not None else "no file"
    return f"{shown(example.source)}: {path}", shown(example.detail)


def making(described: Mapping[str, Any], versions: Sequence[Mapping[str, Any]]) -> str:
    """Versions, options, tools."""
    entries = described.get("versions", [])
    rows = []
    for place, version in enumerate(versions):
        tools = entries[place].get("tools", {}) if place < len(entries) else {}
        told = "<br>".join(f"{shown(str(k))}: {shown(str(v).split(' Copyright')[0])}" for k, v in tools.items())
        rows.append((str(place + 1), number(version["rows"]), f"<code>{shown(version['fingerprint'])}</code>", told))
    options = "".join(f"<tr><th>{shown(str(k))}</th><td>{number(v)}</td></tr>" for k, v in described.get("options", {}).items())
    chosen = f'<h3>Options</h3><table class="options">{options}</table>' if options else ""
    head = ("version", "clips", "fingerprint", "made with")
    return f"<section><h2>How it was made</h2>{table(head, rows, css='versions')}{chosen}</section>"


def _dot(place: int, name: str) -> str:
    return f'<i class="dot c{_color(place)}"></i>{shown(name)}'


def _color(place: int) -> int:
    return min(place, COLORS - 1)
