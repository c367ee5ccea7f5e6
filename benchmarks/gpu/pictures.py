"""Pictures of the GPU suite's figures: decoding.png, and steps.png with end to end."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.gpu.plan import CODECS, DECODERS, GOPS, IN_FLIGHT, MODELS, SIZES, STARTS
from benchmarks.gpu.report import Report

INK, MUTED, GRID = "#1b1f24", "#8a929c", "#e6e8eb"
COLOURS = ("#c2410c", "#1d4ed8", "#0f766e", "#a16207")
MODES = ("mode/eager", "mode/compiled", "mode/cuda_graph", "precision/bf16", "precision/fp16", "precision/paper")
SHARES = (("of_data_sheet", "of the data sheet", 0.45), ("of_gemm", "of the card's matrix products", 0.75))


def draw_all(report: Report, folder: Path) -> None:
    """What there are figures for."""
    found = {figure["name"]: figure for figure in report["figures"]}
    where = str(report["machine"].get("is", "")) + (" – a dry walk: these figures mean nothing" if report["dry"] else "")
    for draw, name, title, parts in (
        (_decoding, "decoding.png", "NVDEC through DALI: decode, colour, four views", ("decoding/",)),
        (_steps, "steps.png", "Training", ("steps/", "end_to_end/")),
    ):
        if any(name.startswith(parts) for name in found):
            with rc_context({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "font.size": 9}):
                figure = Figure(figsize=(11, 7), layout="constrained")
                draw(found, *figure.subplots(2, 2).flat)
                for axes in figure.axes:
                    if axes.get_legend_handles_labels()[0]:
                        axes.legend(frameon=False)
                figure.suptitle(f"{title}. {where}", x=0.01, ha="left", fontsize=9)
                figure.savefig(folder / name, dpi=110)


def _decoding(found: dict, flight: Axes, start: Axes, formats: Axes, cases: Axes) -> None:
    for codec, colour in zip(CODECS, COLOURS, strict=False):
        _line(flight, [(n, _value(found, f"decoding/in_flight/{codec}/{n}")) for n in IN_FLIGHT], codec, colour)
    flight.set(xlabel="decoders in flight", ylabel="clips/s", xticks=IN_FLIGHT, ylim=(0, None))
    _title(flight, "Decoders in flight, 352 x 256, GOP 32")
    names = {s: f"decoding/start/{s}" for s in STARTS}
    trimmed = [(s, found[name]["detail"]["trimmed_ms"]) for s, name in names.items() if name in found]
    _line(start, [(s, _value(found, name)) for s, name in names.items()], "whole clip sent", COLOURS[1])
    _line(start, trimmed, "only the packets needed", COLOURS[0])
    start.set(xlabel="first wanted frame of 300", ylabel="ms/clip", xticks=STARTS, ylim=(0, None))
    _title(start, "Cost of the way to the wanted frames")
    bars = [(f"GOP {gop}", f"decoding/gop/{gop}") for gop in GOPS] + [(f"{w}x{h}", f"decoding/size/{w}x{h}") for w, h in SIZES]
    _bars(formats, found, bars, "clips/s", "Encodings of the clips")
    reuse = ("multiple_of_16", "not_multiple_of_16", "sizes_in_turn", "sizes_mixed")
    _bars(cases, found, [(case.replace("_", " "), f"decoding/reuse/{case}") for case in reuse], "ms/clip", "Sizes of the clips")


def _steps(found: dict, share: Axes, cost: Axes, modes: Axes, whole: Axes) -> None:
    steps = {model: found[name] for model in MODELS if (name := f"steps/{model}/dual") in found}
    for offset, (key, label, goal) in enumerate(SHARES):
        shares = [(i + 0.4 * offset - 0.2, step["detail"].get(key)) for i, step in enumerate(steps.values())]
        if shown := [(place, value) for place, value in shares if value is not None]:
            places, values = zip(*shown, strict=True)
            share.bar(places, values, 0.38, color=COLOURS[offset], label=label)
            share.axhline(goal, color=COLOURS[offset], linewidth=0.8, linestyle="--")
    share.set_xticks(range(len(steps)), [f"{model}\n{step['value']:.0f} views/s" for model, step in steps.items()])
    share.set(ylabel="share", ylim=(0, 1))
    _title(share, "Training step, bf16, dual masking; dashed: bar and goal of ViT-g")
    costs = [(n.rsplit("/", 1)[1].replace("_", " "), n) for n in found if n.startswith("steps/profile/")]
    _bars(cost, found, costs, "share of the device's time", "What a step of ViT-g consists of")
    _bars(modes, found, [(name.split("/")[1].replace("_", " "), f"steps/{name}") for name in MODES], "views/s", "ViT-B by mode")
    kinds = [(f"{m}, {d}", f"end_to_end/{m}/{d}") for m in ("vit-g", "vit-b") for d in (*DECODERS[1:], "discarded")]
    unit, ratios = "views/s by those on a cached batch", {name: {"value": figure["ratio"]} for name, figure in found.items()}
    _bars(whole, ratios, kinds, unit, "End to end; dashed: ViT-g's bar", COLOURS[2])
    whole.axvline(0.97, color=INK, linewidth=0.8, linestyle="--")


def _line(axes: Axes, points: Iterable[tuple[int, float | None]], label: str, colour: str) -> None:
    """Through the points that there is a figure for, if there are any."""
    if known := [(x, y) for x, y in points if y is not None]:
        axes.plot(*zip(*known, strict=True), "o-", color=colour, label=label)


def _bars(axes: Axes, found: dict, bars: list[tuple[str, str]], unit: str, title: str, colour: str = COLOURS[1]) -> None:
    """Horizontal, with their values; those that there is no figure for are left out."""
    rows = [(label, value) for label, name in bars if (value := _value(found, name)) is not None]
    drawn = axes.barh([label for label, _ in rows], [value for _, value in rows], color=colour)
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
