"""The figures as Markdown and as pictures."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.evidence.clips import MOTIONS, TEST
from benchmarks.evidence.grid import READ_AT, Ablated, Accuracy, Compared
from train.pictures import ACCENT, INK, MUTED, plt, save

METHODS = {"scratch": "from scratch", "probe": "frozen encoder, linear probe", "pretrained": "pre-trained, fine-tuned"}
COLOURS = {"scratch": MUTED, "probe": INK, "pretrained": ACCENT}
CHANCE = 1 / MOTIONS


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in percent, and how many; of one seed the value."""
    each = [100 * value for value in values]
    return f"{mean(each):.1f} ± {stdev(each):.1f} ({len(each)})" if len(each) > 1 else f"{each[0]:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines) + "\n"


def labels_table(found: Sequence[Accuracy]) -> str:
    """A row a method, a column for each share of the labels."""
    by = grouped(found, lambda each: (each.method, each.share))
    shares = sorted({each.share for each in found})
    rows = []
    for method, title in METHODS.items():
        cells = [spread([each.top1 for each in by[method, share]]) if by[method, share] else "–" for share in shares]
        if set(cells) != {"–"}:
            rows.append([title, *cells])
    return table(["", *(f"{share} % of the labels" for share in shares)], rows)


def labels_plot(file: Path, found: Sequence[Accuracy], one_frame: float | None) -> None:
    """Accuracy by share of the labels: a point a seed, a line through the means."""
    by = grouped(found, lambda each: (each.method, each.share))
    shares = sorted({each.share for each in found})
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for method, title in METHODS.items():
        points = [(share, [100 * each.top1 for each in by[method, share]]) for share in shares if by[method, share]]
        if not points:
            continue
        axes.plot([share for share, _ in points], [mean(values) for _, values in points], color=COLOURS[method], linewidth=1.8)
        for share, values in points:
            axes.scatter([share] * len(values), values, color=COLOURS[method], s=16, zorder=3)
        share, values = points[-1]
        axes.annotate(title, (share, mean(values)), (6, 0), textcoords="offset points", va="center", color=COLOURS[method])
    axes.axhline(100 * CHANCE, color=MUTED, linewidth=0.8, linestyle=":")
    axes.text(shares[0], 100 * CHANCE - 1, "chance", color=MUTED, va="top", fontsize=9)
    if one_frame is not None:
        axes.plot([shares[-1]], [100 * one_frame], marker="x", color=MUTED)
        axes.annotate("one frame", (shares[-1], 100 * one_frame), (6, 0), textcoords="offset points", va="center", color=MUTED)
    axes.set(xscale="log", xticks=shares, ylim=(0, 100), xlabel="labelled part of the clips", ylabel="top-1, %")
    axes.set_xticks(shares, [f"{share} %" for share in shares])
    axes.set_xticks([], minor=True)
    axes.set_xlim(shares[0] * 0.85, shares[-1] * 3.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{MOTIONS} motions, {TEST} test clips; a point is a seed", loc="left", fontsize=10)
    save(figure, file)


def ablation_table(found: Sequence[Ablated], name: str) -> str:
    """A table of the papers', in small."""
    by = grouped([each for each in found if each.variant.table == name], lambda each: each.variant.title)
    default = next((each for each in found if each.variant.table == name and not each.variant.flags), None)
    rows = []
    for title, each in by.items():
        first, paper = each[0], each[0].variant.paper
        marked = f"**{title}**" if not first.variant.flags else title
        cost = [f"{first.mmac:.1f}", f"{first.kilobytes:.0f}"]
        speed = mean(one.views_per_second for one in each)
        relative = f"{speed:.0f}" if default is None else f"{speed:.0f} ({speed / default.views_per_second:.2f} x)"
        rows.append([marked, spread([one.top1 for one in each]), *cost, relative, "–" if paper is None else f"{paper:g}"])
    return table(["", "top-1, %", "MMAC a view", "activations, kB a view", "views/s", "paper's top-1"], rows)


def ablation_plot(file: Path, found: Sequence[Ablated], names: Sequence[str], titles: Sequence[str]) -> None:
    """A panel a table: top-1 of each row, the default in colour, one standard error of the test's clips on both sides."""
    groups = [
        (title, [each for each in found if each.variant.table == name]) for name, title in zip(names, titles, strict=True)
    ]
    groups = [(title, each) for title, each in groups if each]
    heights = [len({each.variant.title for each in part}) + 0.8 for _, part in groups]
    figure, panels = plt.subplots(
        len(groups),
        figsize=(7.2, 0.34 * sum(heights) + 0.6),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (title, part) in zip(panels.flat, groups, strict=True):
        by = grouped(part, lambda each: each.variant.title)
        for place, each in enumerate(by.values()):
            value = mean(one.top1 for one in each)
            error = (value * (1 - value) / TEST) ** 0.5
            colour = MUTED if each[0].variant.flags else ACCENT
            axes.barh(place, 100 * value, color=colour, height=0.66)
            axes.errorbar(100 * value, place, xerr=100 * error, color=INK, linewidth=1)
            axes.text(100 * (value + error) + 0.7, place, f"{100 * value:.1f}", va="center", fontsize=9)
        axes.set_yticks(range(len(by)), list(by), fontsize=9)
        axes.invert_yaxis()
        axes.set_title(title, loc="left", fontsize=10)
        axes.axvline(100 * CHANCE, color=INK, linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    panels.flat[-1].set_xlabel(f"top-1 with {READ_AT} % of the labels, %; dotted: chance")
    save(figure, file)


def compared_table(found: Sequence[Compared], over: str) -> str:
    """A row a method: the mean over all clips, and every value."""
    rows = []
    for method, each in grouped(found, lambda one: one.method).items():
        clips = sum(one.clips for one in each)
        whole = sum(one.top1 * one.clips for one in each) / clips
        rows.append([method, f"{100 * whole:.1f}", ", ".join(f"{100 * one.top1:.0f}" for one in each), str(clips)])
    return table(["", "top-1, %", over, "test clips"], rows)


def grouped(found, key):  # type: ignore[no-untyped-def]
    """Lists by key, in the order of the first of each."""
    by = defaultdict(list)
    for each in found:
        by[key(each)].append(each)
    return by
