"""Pictures of the GPU suite's figures: decoding.png, and steps.png with end to end."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.gpu.plan import CODECS, DECODERS, GOPS, IN_FLIGHT, MODELS, SIZES, STARTS
from benchmarks.gpu.report import Report

INK, MUTED, GRID = "#1b1f24", "#8a929c", "#e6e8eb"
COLOURS = ("#c2410c", "#1d4ed8", "#0f766e", "#a16207")
plt.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "font.size": 9})


def draw_all(report: Report, folder: Path) -> None:
    """What there are figures for."""
    found = {figure["name"]: figure for figure in report["figures"]}
    where = str(report["machine"].get("is", "")) + (" – a dry walk: these figures mean nothing" if report["dry"] else "")
    if any(name.startswith("decoding/") for name in found):
        _decoding(found, where, folder / "decoding.png")
    if any(name.startswith(("steps/", "end_to_end/")) for name in found):
        _steps(found, where, folder / "steps.png")


def _decoding(found: dict, where: str, file: Path) -> None:
    figure, ((flight, start), (formats, cases)) = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for codec, colour in zip(CODECS, COLOURS, strict=False):
        points = [(n, value) for n in IN_FLIGHT if (value := _value(found, f"decoding/in_flight/{codec}/{n}")) is not None]
        if points:
            flight.plot(*zip(*points, strict=True), "o-", color=colour, label=codec)
    flight.set(xlabel="decoders in flight", ylabel="clips/s", xticks=IN_FLIGHT, ylim=(0, None))
    _title(flight, "Decoders in flight, 352 x 256, GOP 32")
    for label, key, colour in (("whole clip sent", None, COLOURS[1]), ("only the packets needed", "trimmed_ms", COLOURS[0])):
        names = [f"decoding/start/{s}" for s in STARTS]
        points = [
            (s, found[name]["detail"][key] if key else found[name]["value"])
            for s, name in zip(STARTS, names, strict=True)
            if name in found
        ]
        if points:
            start.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
    start.set(xlabel="first wanted frame of 300", ylabel="ms/clip", xticks=STARTS, ylim=(0, None))
    _title(start, "Cost of the way to the wanted frames")
    bars = [(f"GOP {gop}", f"decoding/gop/{gop}") for gop in GOPS] + [(f"{w}x{h}", f"decoding/size/{w}x{h}") for w, h in SIZES]
    _bars(formats, found, bars, "clips/s", "Encodings of the clips")
    reuse = ("multiple_of_16", "not_multiple_of_16", "sizes_in_turn", "sizes_mixed")
    _bars(cases, found, [(case.replace("_", " "), f"decoding/reuse/{case}") for case in reuse], "ms/clip", "Sizes of the clips")
    _finish(figure, f"NVDEC through DALI: decode, colour, four views. {where}", file, (flight, start))


def _steps(found: dict, where: str, file: Path) -> None:
    figure, ((share, cost), (modes, whole)) = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    labels = [model for model in MODELS if f"steps/{model}/dual" in found]
    for offset, (key, label, bar) in enumerate(
        (("of_data_sheet", "of the data sheet", 0.45), ("of_gemm", "of the card's matrix products", 0.75))
    ):
        values = [found[f"steps/{model}/dual"]["detail"].get(key) for model in labels]
        places = [i + 0.4 * offset - 0.2 for i in range(len(labels))]
        shown = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        if shown:
            share.bar([p for p, _ in shown], [v for _, v in shown], 0.38, color=COLOURS[offset], label=label)
            share.axhline(bar, color=COLOURS[offset], linewidth=0.8, linestyle="--")
    rates = [found[f"steps/{model}/dual"]["value"] for model in labels]
    share.set_xticks(range(len(labels)), [f"{m}\n{r:.0f} views/s" for m, r in zip(labels, rates, strict=True)])
    share.set(ylabel="share", ylim=(0, 1))
    _title(share, "Training step, bf16, dual masking; dashed: bar and goal of ViT-g")
    costs = [(n.rsplit("/", 1)[1].replace("_", " "), n) for n in found if n.startswith("steps/profile/")]
    _bars(cost, found, costs, "share of the device's time", "What a step of ViT-g consists of")
    names = ("mode/eager", "mode/compiled", "mode/cuda_graph", "precision/bf16", "precision/fp16", "precision/paper")
    _bars(modes, found, [(name.split("/")[1].replace("_", " "), f"steps/{name}") for name in names], "views/s", "ViT-B by mode")
    kinds = [(f"{m}, {d}", f"end_to_end/{m}/{d}") for m in ("vit-g", "vit-b") for d in (*DECODERS[1:], "discarded")]
    rows = [(label, found[name]["ratio"]) for label, name in kinds if name in found and found[name]["ratio"]]
    whole.barh([label for label, _ in rows], [value for _, value in rows], color=COLOURS[2])
    whole.axvline(0.97, color=INK, linewidth=0.8, linestyle="--")
    whole.set(xlabel="views/s by those on a cached batch", xlim=(0, 1.15 * max((v for _, v in rows), default=1)))
    whole.invert_yaxis()
    _title(whole, "End to end; dashed: ViT-g's bar")
    _finish(figure, f"Training. {where}", file, (share,))


def _bars(axes: Axes, found: dict, bars: list[tuple[str, str]], unit: str, title: str) -> None:
    """Horizontal, with their values; those that there is no figure for are left out."""
    rows = [(label, value) for label, name in bars if (value := _value(found, name)) is not None]
    drawn = axes.barh([label for label, _ in rows], [value for _, value in rows], color=COLOURS[1])
    axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=unit, xlim=(0, 1.15 * max((value for _, value in rows), default=1)))
    _title(axes, title)


def _value(found: dict, name: str) -> float | None:
    return found[name]["value"] if name in found else None


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontweight="bold", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _finish(figure: plt.Figure, title: str, file: Path, with_legend: tuple[Axes, ...]) -> None:
    for axes in with_legend:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)
