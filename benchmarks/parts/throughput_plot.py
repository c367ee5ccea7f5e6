"""The picture of `throughput.py`: what a DataLoader and tubecell deliver, what of decoding is left, which part limits."""

from pathlib import Path
from statistics import median
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.parts.results import describe_machine
from benchmarks.parts.stopwatch import Part, ratios
from benchmarks.parts.throughput_table import FAST, PEER_VIEWS, SAME, Measured, times, why_not_told

GREY, BLUE, LIGHT, ALARM = "#9a9a9a", "#1f6fb4", "#8fbce0", "#a8321f"
Rows = list[tuple[Part, str, str, str]]  # (part, its name, what to write beside its value, colour), from top to bottom


def plot(measured: Measured, file: Path) -> None:
    """Up to three panels of bars, each with what it shows on its axis; the thin line on a bar spans the rounds. Where nothing
    can be told no ratio is written, and the picture says why."""
    files, config, told = measured.originals, measured.views_per_clip, not (doubts := why_not_told(measured))
    of = f"{len(files.files)} video files, {files.width} × {files.height}" if files else ""
    panels = [
        (_over_files(measured), True, f"{of} become training data", f"views per second, {PEER_VIEWS} of each clip"),
        (_of_decoding(measured), False, "The loader, and decoding alone", "clips per second"),
        (_of_training(measured), True, "Training", f"views per second, {config} of each clip"),
    ]
    panels = [panel for panel in panels if panel[0]]
    figure = Figure(figsize=(1.6 + 5.4 * len(panels), 3.9), layout="constrained")
    for axis, (rows, in_views, title, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _bars(axis, rows, in_views, told)
        axis.set_title(title, fontsize=11, loc="left")
        axis.set_xlabel(f"{shown} (longer is better →)", fontsize=9)
    foot = (
        f"A view is a training example of some frames. Bars: medians of {len(measured.parts[0].rates)} rounds; thin lines: all."
    )
    figure.supxlabel(f"{foot}\n{describe_machine()}", fontsize=8, color="#555555")
    if not told:
        figure.suptitle("\n".join(wrap(f"Cannot tell: {'; '.join(doubts)}", 60 * len(panels))), fontsize=11, color=ALARM)
    figure.savefig(file, dpi=130)


def _over_files(measured: Measured) -> Rows:
    """DataLoaders and tubecell on the same files."""
    if not measured.compared:
        return []
    same, fast = measured.on_files[SAME], measured.on_files[FAST]
    said = [f"{times(median(of_rounds))} ×" for of_rounds in measured.compared.values()]
    rows = [(peer, peer.title.split(", R")[0], "", GREY) for peer in measured.peers]
    return [*rows, (same, "tubecell, files as they are", said[0], LIGHT), (fast, "tubecell, built (h264-fast)", said[1], BLUE)]


def _of_decoding(measured: Measured) -> Rows:
    """The loaders, next to libav doing nothing but decoding."""
    alone = measured.decode_only
    shares = [(part, median(ratios(part, alone[part.name], in_views=False))) for part in measured.loaders]
    rows = [(part, part.title, f"{share:.0%}", BLUE) for part, share in shares]
    return [(measured.decoding, "decode only", "", GREY), *rows] if rows else []


def _of_training(measured: Measured) -> Rows:
    """Loader, model, and both."""
    model, both = measured.model, measured.end_to_end
    if model is None or both is None:
        return []
    share = f"{median(ratios(both, model, in_views=True)):.0%} of the model"
    return [(measured.loader, "loader alone", "", BLUE), (model, "model alone", "", GREY), (both, "end to end", share, LIGHT)]


def _bars(axis: Axes, rows: Rows, in_views: bool, told: bool) -> None:
    for place, (part, _, said, colour) in enumerate(rows):
        factor = part.views_per_clip if in_views else 1
        value, low, high = (factor * rate for rate in (part.clips, min(part.rates), max(part.rates)))
        axis.barh(place, value, color=colour, height=0.62)
        axis.plot([low, high], [place, place], color="black", linewidth=1)
        words = f" {value:,.0f}" if value >= 100 else f" {value:.3g}"
        axis.annotate(f"{words}  {said if told else ''}".rstrip(), (max(value, high), place), va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [name for _, name, _, _ in rows], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35 * axis.get_xlim()[1])
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
