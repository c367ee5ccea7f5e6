"""The sections of a training report, each a piece of HTML made of what runs left in their folders."""

import base64
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.report.charts import shown, table
from train.pages.line_chart import COLOURS, Curve, chart
from train.pages.run_record import RunRecord
from train.run.folder import flatten
from train.watch.meters import duration

Runs = Sequence[RunRecord]
SHOWN = 12  # lines of a list that may be long
OFTEN = 0.1  # share of the lines from which on a rank that was the slowest is named


def summary(runs: Runs) -> str:
    """A row for each run."""
    head = (
        *("run", "state", "training", "loss", "views/s", "MFU", "HFU", "of GEMM", "waits for data", "memory", "skipped"),
        *("failed clips", "starts"),
    )
    rows = []
    for number, run in enumerate(runs):
        last, total = run.lines[-1], run.total_steps
        state = "complete" if run.complete else f"{last['step'] / total:.0%} of {total:,} steps" if total else "unfinished"
        memory = run.column("memory_gib")
        rows.append(
            (
                _name(run, number),
                f"{state}, {last['step']:,} steps" if run.complete or not total else state,
                duration(run.hours[-1] * 3600),
                _value(run.loss, ".4f"),
                _value(run.typical("views_per_second"), ",.1f"),
                *(_value(run.typical(name), ".1%") for name in ("mfu", "hfu", "gemm_share", "data_wait")),
                _value(float(np.nanmax(memory)), ".1f") + " GiB",
                f"{last['skipped']:,}",
                f"{len(run.failures):,}",
                f"{len(run.starts)}",
            )
        )
    note = (
        "Loss: mean of the run's last twentieth. Rates, MFU and waiting: median without the first tenth. MFU counts every "
        "product once, HFU also what activation checkpointing computes again; both of the data sheet's rate, a dash where that "
        "is not known. “of GEMM”: HFU's FLOPs by those of a large matrix product on this device."
    )
    return f'<section>{table(head, rows)}<p class="note">{note}</p></section>'


def learning(runs: Runs) -> str:
    longest = max(run.hours[-1] for run in runs)
    unit, seconds = ("hours", 3600.0) if longest > 2 else ("minutes", 60.0)
    panels = [
        ("Loss", chart(_by_step(runs, "loss"), "step")),
        ("Loss over time", chart(_by_time(runs, "loss", seconds), f"{unit} of training")),
        ("Gradient norm, before clipping", chart(_by_step(runs, "grad_norm"), "step", log=True)),
        ("Learning rate", chart(_by_step(runs, "lr"), "step", zero=True, noisy=False)),
    ]
    restarts = any(run.restarts for run in runs)
    note = "Faint: as logged, the mean over the steps since the line before. Bold: running mean over a fortieth of the run."
    note += " Time: of all steps that count, without pauses and what was lost and done again."
    note += " Dotted: the run was started again." if restarts else ""
    return f"<section><h2>Learning</h2>{_legend(runs)}{_panels(panels)}<p class='note'>{note}</p></section>"


def speed(runs: Runs) -> str:
    utilisation, name = ("mfu", "MFU") if any(run.typical("mfu") for run in runs) else ("gemm_share", "Share of GEMM rate")
    panels = [
        ("views/s", chart(_by_step(runs, "views_per_second"), "step", zero=True)),
        (name, chart(_by_step(runs, utilisation), "step", zero=True, percent=True)),
        ("Waiting for data, share of the time", chart(_by_step(runs, "data_wait"), "step", zero=True, percent=True)),
        ("Memory, GiB", chart(_by_step(runs, "memory_gib"), "step", zero=True, noisy=False)),
    ]
    lines = [
        f"{_name(run, number)}: rank {shown(rank)} was the slowest and {behind:.0%} behind the median in {share:.0%} of "
        "the lines"
        for number, run in enumerate(runs)
        for rank, share, behind in run.stragglers()[:3]
        if share >= OFTEN
    ]
    note = "".join(f"<p class='note'>{line}.</p>" for line in lines)
    return f"<section><h2>Speed</h2>{_legend(runs)}{_panels(panels)}{note}</section>"


def differences(runs: Runs) -> str:
    """What differs in their configuration, and, of a single run, nothing."""
    if len(runs) < 2:
        return ""
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    rows = [
        (f"--{name.replace('_', '-')}", *(shown(_plain(run.config.get(name, "–"))) for run in runs))
        for name in names
        if name != "out" and len({str(run.config.get(name)) for run in runs}) > 1
    ]
    if not rows:
        return "<section><h2>What differs</h2><p>Nothing in their configuration.</p></section>"
    head = ("option", *(_name(run, number) for number, run in enumerate(runs)))
    return f"<section><h2>What differs</h2>{table(head, rows, css='facts')}</section>"


def troubles(runs: Runs) -> str:
    """Skipped steps and clips that failed."""
    blocks = []
    for number, run in enumerate(runs):
        if run.skipped:
            reasons = Counter(line["reason"] for line in run.skipped)
            rows = [(f"{line['step']:,}", shown(line["reason"]), _clips(line["clips"])) for line in run.skipped[-SHOWN:]]
            told = ", ".join(f"{count} × {shown(reason)}" for reason, count in reasons.most_common())
            more = f", the last {SHOWN}" if len(run.skipped) > SHOWN else ""
            blocks.append(f"<h3>{_name(run, number)}: steps that were skipped ({told}){more}</h3>")
            blocks.append(table(("step", "why", "clips"), rows, css="facts"))
        if run.failures:
            reasons = Counter(str(failure["reason"]) for failure in run.failures)
            clips = Counter(failure["key"] for failure in run.failures).most_common(SHOWN)
            told = ", ".join(f"{count} × {shown(reason)}" for reason, count in reasons.most_common())
            counted = [(shown(key), f"{count}") for key, count in clips]
            blocks.append(f"<h3>{_name(run, number)}: clips that could not be decoded ({told})</h3>")
            blocks.append(table(("clip", "times"), counted, css="numbers"))
    if not blocks:
        return "<section><h2>Troubles</h2><p>None: no step was skipped, every clip was decoded.</p></section>"
    panel = ""
    if any(run.lines[-1]["skipped"] for run in runs):
        panel = _panels([("Skipped steps, so far", chart(_by_step(runs, "skipped"), "step", zero=True, noisy=False))])
    return f"<section><h2>Troubles</h2>{panel}{''.join(blocks)}</section>"


def sources(runs: Runs) -> str:
    """Views taken of each source, if there are several."""
    taken = [run.sources() for run in runs]
    names = sorted({name for views in taken for name in views})
    if len(names) < 2:
        return ""
    rows = []
    for name in names:
        cells = [
            f"{views.get(name, 0.0):,.0f} <small>{views.get(name, 0.0) / (sum(views.values()) or 1.0):.1%}</small>"
            for views in taken
        ]
        rows.append((shown(name), *cells))
    head = ("source", *(_name(run, number) for number, run in enumerate(runs)))
    return f"<section><h2>Views by source</h2>{table(head, rows)}</section>"


def pictures(runs: Runs) -> str:
    """The latest reconstruction of each run."""
    figures = []
    for number, run in enumerate(runs):
        if file := run.picture():
            data = base64.b64encode(file.read_bytes()).decode()
            when = f"step {int(file.stem.split('-')[1]):,}" if file.stem.startswith("step-") else shown(file.name)
            caption = f"<figcaption>{_name(run, number)}, {when}</figcaption>"
            figures.append(
                f'<figure>{caption}<img alt="input, seen, reconstruction" src="data:image/png;base64,{data}"></figure>'
            )
    return f'<section><h2>Reconstructions</h2><div class="two">{"".join(figures)}</div></section>' if figures else ""


def environment(runs: Runs) -> str:
    """Hardware and software of the last start of each run, what differs in bold; and every start."""
    of_a_start = ("time", "command", "first_step", "total_steps", "startup")
    found = [flatten({k: v for k, v in (run.starts or [{}])[-1].items() if k not in of_a_start}) for run in runs]
    rows = []
    for name in dict.fromkeys(name for facts in found for name in facts):
        values = [_plain(facts.get(name, "–")) for facts in found]
        measured = name in ("loader", "gemm_tflops")
        mark = ("<b>", "</b>") if len(set(values)) > 1 and not measured else ("", "")
        rows.append((shown(name.replace("_", " ")), *(f"{mark[0]}{shown(value)}{mark[1]}" for value in values)))
    head = ("", *(_name(run, number) for number, run in enumerate(runs)))
    starts = [
        (
            _name(run, number),
            shown(start["time"]),
            f"{start.get('first_step', 0):,}",
            f"{start['world_size']}",
            _startup(start.get("startup", {})),
            f"<code>{shown(shlex.join(start['command']))}</code>",
        )
        for number, run in enumerate(runs)
        for start in run.starts
    ]
    listed = table(("run", "started", "from step", "ranks", "first step after", "command"), starts, css="")
    return (
        f"<section><h2>Environment</h2>{table(head, rows, css='facts')}"
        f"<details><summary>{len(starts)} starts</summary>{listed}</details></section>"
    )


def _by_step(runs: Runs, column: str) -> list[Curve]:
    return [
        Curve(name=run.name, run=number, x=run.steps, y=run.column(column), marks=run.restarts)
        for number, run in enumerate(runs)
    ]


def _by_time(runs: Runs, column: str, unit: float) -> list[Curve]:
    """`unit` of the time in seconds."""
    return [
        Curve(
            name=run.name,
            run=number,
            x=run.hours * 3600 / unit,
            y=run.column(column),
            marks=np.interp(run.restarts, run.steps, run.hours * 3600 / unit).tolist() if run.restarts else (),
        )
        for number, run in enumerate(runs)
    ]


def _panels(panels: Sequence[tuple[str, str]]) -> str:
    return f'<div class="two panels">{"".join(f"<div><h3>{title}</h3>{drawn}</div>" for title, drawn in panels)}</div>'


def _name(run: RunRecord, number: int) -> str:
    return f'<span class="dot r{number % COLOURS}"></span>{shown(run.name)}'


def _legend(runs: Runs) -> str:
    return f'<div class="legend">{"".join(f"<span>{_name(run, n)}</span>" for n, run in enumerate(runs))}</div>'


def _value(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _startup(parts: Mapping[str, float]) -> str:
    """Its length, and in a tooltip what it was spent on."""
    told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
    return f'<span title="{shown(told)}">{sum(parts.values()):.0f} s</span>' if parts else "–"


def _clips(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return shown(", ".join(keys[:SHOWN])) + more
