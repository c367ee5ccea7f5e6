"""What the page of a loader's report shows besides the profile itself (see `loader_page`)."""

import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.report.charts import steps
from pipeline.report.page import form
from pipeline.report.verdict import STAGE_NAMES, verdict_lines
from pipeline.stage_meters import STAGES

RATES = {
    "loader": "loader alone",
    "model": "model alone",
    "cached": "model and batches from memory",
    "together": "model and loader together",
}
NAMES = {**STAGE_NAMES, "wait": "waits for a batch", "step": "training step"}
COLOURS = {"plan": "c7", "fetch": "c1", "demux": "c2", "decode": "c0", "colour": "c3", "augment": "c4", "resize": "c5"}
COLOURS["wait"] = "c6"
ALONE = {**STAGE_NAMES, "fetch, cold": "reading, page cache dropped", "all but fetch": "all but reading"}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # seconds between two of a picture of at most two seconds


def values(profile: Mapping[str, Any]) -> dict[str, Any]:
    """For the template: what has to be computed or drawn."""
    figures, rates, settings = profile["figures"], profile["rates"], profile["settings"]
    taken = profile["run"] or figures
    queue, gantt, frames, sizes = taken["queue"], taken["gantt"], figures["frames"], figures["bytes"]
    before = max(0.0, frames["decoded"] - frames["spanned"])
    between = frames["decoded"] - frames["kept"] - before
    timed = {line["name"] for line in figures["stages"]}
    stages = [stage for stage in STAGES if stage in timed]
    span = max(gantt["ms"], 1e-3) / 1e3
    tick = next((tick for tick in TICKS if span / tick <= 10), 1.0)
    return {
        "verdict_lines": verdict_lines(profile["verdict"]),
        "names": NAMES,
        "css": {**COLOURS, "step": "step"},
        "rate_bars": [(title, *_rate(rates[name])) for name, title in RATES.items() if name in rates],
        "gain": max(0.0, rates["cached"]["median"] / rates["together"]["median"] - 1) if "cached" in rates else None,
        "stage_parts": [(NAMES[line["name"]], line["core_ms"], COLOURS[line["name"]]) for line in figures["stages"]],
        "points": lambda ms: [_ms(ms[point]) for point in ("mean", "p50", "p90", "p99", "p99.9")],
        "alone": _alone(profile["stages_alone"], settings) if profile["stages_alone"] else None,
        "queue": steps(queue["seconds"], queue["ready"], settings["prefetch"], "batches ready over time"),
        "span": span * 1e3,
        "seconds": [(i * tick / span, f"{i * tick:g}" + (" s" if i == 0 else "")) for i in range(int(span / tick + 1e-6) + 1)],
        "stages": [(NAMES[name], COLOURS.get(name, name)) for name in (*stages, "plan", "wait", "step")],
        "hidden": gantt["workers"] - sum(lane["name"].startswith("worker") for lane in gantt["lanes"]),
        "vain": {
            f"{frames['decoded']:.0f} frames decoded a clip, {frames['kept']:.0f} kept": [
                ("kept", frames["kept"], "c0"),
                ("decoded between them", between, "rest"),
                ("decoded before them, from the key frame on", before, "c1"),
            ],
            f"{sizes['read'] / 1e3:,.0f} kB read a clip, {sizes['used'] / 1e3:,.0f} used": [
                ("given to the decoder", sizes["used"], "c0"),
                ("read with the clip, not used", sizes["read"] - sizes["used"], "rest"),
            ],
        },
        "commands": _commands(profile),
    }


def _rate(rate: Mapping[str, Any]) -> tuple[float, str, str]:
    """The median, as text, and what the rounds were between."""
    rounds = rate["rounds"]
    return rate["median"], form(rate["median"]), f"{form(min(rounds))} to {form(max(rounds))}" if len(rounds) > 1 else ""


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _alone(measured: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A line for each stage alone: name, rates by concurrency, growth from one worker to one a core, whether that alarms."""
    cores, lines = settings["cores"], []
    head = ["clips/s", *(f"{n} worker{'s' * (n > 1)}" for n in measured["workers"]), f"{cores} cores against 1"]
    quiet = cores > 1 and settings.get("neighbours", 0.0) <= 0.1 * cores
    for name, rates in measured["clips_per_s"].items():
        grown = rates[measured["workers"].index(cores)] / rates[0]
        lines.append((ALONE[name], rates, grown, quiet and grown < 0.6 * cores))
    return {"head": head, "lines": lines}


def _commands(profile: Mapping[str, Any]) -> list[str]:
    """That decode the slowest clips again."""
    recipe, base = profile["recipe"], f"tubecell loader-profile --data {shlex.quote(profile['dataset']['path'])}"
    flags = f"--views.views-per-clip {recipe['views_per_clip']} --model.input-size {recipe['input_size']}"
    return [
        f"{base} --replay {shlex.quote(line['key'])}"
        + (f" --frames {line['frames']}" if line["frames"] else "")
        + f" {flags} --model.num-frames {recipe['num_frames']}"
        for line in profile["figures"]["slowest"]
    ]
