"""The picture of `throughput.py`: what a DataLoader and tubecell deliver, what of decoding is left, which part limits."""

from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.parts.results import describe_machine
from benchmarks.parts.stopwatch import Part, ratios
from benchmarks.parts.throughput_table import PEER_VIEWS, Measured, times

GREY, BLUE, LIGHT = "#9a9a9a", "#1f6fb4", "#8fbce0"


def plot(measured: Measured, file: Path) -> None:
    """Up to three panels of bars; the thin line on a bar spans the rounds."""
    panels = [panel for panel in (_over_files, _of_decoding, _of_training) if panel(measured, None)]
    figure, axes = plt.subplots(1, len(panels), figsize=(1.2 + 4.6 * len(panels), 3.4), layout="constrained", squeeze=False)
    for panel, axis in zip(panels, axes[0], strict=True):
        panel(measured, axis)
    figure.suptitle(f"{describe_machine()}; medians of {len(measured.parts[0].rates)} rounds", fontsize=9, color="#555555")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _over_files(measured: Measured, axis: Axes | None) -> bool:
    """DataLoaders and tubecell on the same files."""
    files, best = measured.originals, measured.best_peer
    if files is None or best is None or measured.same_files is None or measured.h264_fast is None:
        return False
    if axis is not None:
        rows = [(peer, peer.title.split(", R")[0], "", GREY) for peer in measured.peers]
        for part, name, colour in (
            (measured.same_files, "tubecell, as they are", LIGHT),
            (measured.h264_fast, "tubecell, as h264-fast", BLUE),
        ):
            rows.append((part, name, f"{times(median(ratios(part, best, in_views=True)))} ×", colour))
        _bars(axis, rows, in_views=True)
        axis.set_title(
            f"{len(files.files)} video files, {files.width} × {files.height}: views/s, R = {PEER_VIEWS}", fontsize=10
        )
    return True


def _of_decoding(measured: Measured, axis: Axes | None) -> bool:
    """The loaders, next to libav doing nothing but decoding."""
    loaders = measured.loaders
    if axis is not None:
        rows = [(measured.decoding, "decode only", "", GREY)]
        for part in loaders:
            share = median(ratios(part, measured.decode_only[part.name], in_views=False))
            rows.append((part, part.title, f"{share:.0%}", BLUE))
        _bars(axis, rows, in_views=False)
        axis.set_title("the loader beside decoding alone: clips/s", fontsize=10)
    return bool(loaders)


def _of_training(measured: Measured, axis: Axes | None) -> bool:
    """Loader, model, and both."""
    model, end_to_end = measured.model, measured.end_to_end
    if model is None or end_to_end is None:
        return False
    if axis is not None:
        loader = next(part for part in measured.loaders if part.views_per_clip == measured.views_per_clip)
        share = f"{median(ratios(end_to_end, model, in_views=True)):.0%} of the model"
        rows = [(loader, "loader alone", "", BLUE), (model, "model alone", "", GREY), (end_to_end, "end to end", share, LIGHT)]
        _bars(axis, rows, in_views=True)
        axis.set_title(f"training: views/s, R = {measured.views_per_clip}", fontsize=10)
    return True


def _bars(axis: Axes, rows: list[tuple[Part, str, str, str]], in_views: bool) -> None:
    """(part, its name, what to write beside its value, colour), from top to bottom."""
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
