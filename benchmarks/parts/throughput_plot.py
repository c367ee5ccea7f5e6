"""The picture of `throughput.py`: what a DataLoader and tubecell deliver, what of decoding is left, which part limits."""

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.parts.results import describe_machine
from benchmarks.parts.stopwatch import Part, ratios
from benchmarks.parts.throughput_table import FAST, PEER_VIEWS, SAME, Measured, times

GREY, BLUE, LIGHT = "#9a9a9a", "#1f6fb4", "#8fbce0"
Rows = list[tuple[Part, str, str, str]]  # (part, its name, what to write beside its value, colour), from top to bottom


def plot(measured: Measured, file: Path) -> None:
    """Up to three panels of bars, in views/s or else in clips/s; the thin line on a bar spans the rounds."""
    files = measured.originals
    where = f"{len(files.files)} video files, {files.width} × {files.height}: " if files else ""
    panels = [
        (_over_files(measured), True, f"{where}views/s, R = {PEER_VIEWS}"),
        (_of_decoding(measured), False, "the loader beside decoding alone: clips/s"),
        (_of_training(measured), True, f"training: views/s, R = {measured.views_per_clip}"),
    ]
    panels = [panel for panel in panels if panel[0]]
    figure = Figure(figsize=(1.2 + 4.6 * len(panels), 3.4), layout="constrained")
    for axis, (rows, in_views, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _bars(axis, rows, in_views)
        axis.set_title(title, fontsize=10)
    figure.suptitle(f"{describe_machine()}; medians of {len(measured.parts[0].rates)} rounds", fontsize=9, color="#555555")
    figure.savefig(file, dpi=130)


def _over_files(measured: Measured) -> Rows:
    """DataLoaders and tubecell on the same files."""
    best = measured.best_peer
    if best is None or not measured.on_files:
        return []
    same, fast = measured.on_files[SAME], measured.on_files[FAST]
    said = [f"{times(median(ratios(part, best, in_views=True)))} ×" for part in (same, fast)]
    rows = [(peer, peer.title.split(", R")[0], "", GREY) for peer in measured.peers]
    return [*rows, (same, "tubecell, as they are", said[0], LIGHT), (fast, "tubecell, as h264-fast", said[1], BLUE)]


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


def _bars(axis: Axes, rows: Rows, in_views: bool) -> None:
    for place, (part, _, said, colour) in enumerate(rows):
        factor = part.views_per_clip if in_views else 1
        value, low, high = (factor * rate for rate in (part.clips, min(part.rates), max(part.rates)))
        axis.barh(place, value, color=colour, height=0.62)
        axis.plot([low, high], [place, place], color="black", linewidth=1)
        words = f" {value:,.0f}" if value >= 100 else f" {value:.3g}"
        axis.annotate(f"{words}  {said}".rstrip(), (max(value, high), place), va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [name for _, name, _, _ in rows], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35 * axis.get_xlim()[1])
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
