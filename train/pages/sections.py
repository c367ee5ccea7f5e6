"""What the page of a training report shows besides the runs themselves (see `train/report.html`)."""

import base64
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.report.charts import Curve, choices, lines
from pipeline.report.page import COLOURS
from train.pages.probe_record import heads_in, names_of_settings, top1_of
from train.pages.run_record import RunRecord
from train.run.folder import flatten
from train.watch.meters import duration

Runs = Sequence[RunRecord]
SHOWN = 12  # lines of a list that may be long
OF_EVERY_RUN = {  # columns of metrics.jsonl, whatever the stage
    *(
        "step",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "clip_ratio",
        "seconds",
        "views_per_second",
        "tflops",
        "mfu",
        "hfu",
        "gemm_share",
    ),
    *("data_wait", "memory_gib", "slowest_rank", "slowest_behind", "skipped", "loss_scale", "time"),
}
OFTEN = 0.1  # share of the lines from which on a rank that was the slowest is named


def values(runs: Runs) -> dict[str, Any]:
    """For the template: what has to be computed or drawn."""
    longest = max(run.hours[-1] for run in runs)
    unit, seconds = ("hours", 3600.0) if longest > 2 else ("minutes", 60.0)
    use, its_name = ("mfu", "MFU") if any(run.typical("mfu") for run in runs) else ("gemm_share", "Share of GEMM rate")
    return {
        "runs": runs,
        "css": [f"c{number % COLOURS}" for number in range(len(runs))],
        "learning": {
            "Loss": _chart(runs, "loss"),
            "Loss over time": _chart(runs, "loss", f"{unit} of training", seconds),
            "Gradient norm, before clipping": _chart(runs, "grad_norm", log=True),
            "Learning rate": _chart(runs, "lr", zero=True, noisy=False),
            **{_title(name): _chart(runs, name) for name in _scalars(runs)},
        },
        "evaluations": _evaluations(runs),
        "probes": [(number, *_settings(run)) for number, run in enumerate(runs) if len(heads_in(run)) > 1],
        "speed": {
            "views/s": _chart(runs, "views_per_second", zero=True),
            its_name: _chart(runs, use, zero=True, percent=True),
            "Waiting for data, share of the time": _chart(runs, "data_wait", zero=True, percent=True),
            "Memory, GiB": _chart(runs, "memory_gib", zero=True, noisy=False),
        },
        "skipped": {"Skipped steps, so far": _chart(runs, "skipped", zero=True, noisy=False)}
        if any(run.lines[-1]["skipped"] for run in runs)
        else {},
        "troubles": any(run.skipped or run.failures for run in runs),
        "differences": _differences(runs),
        "sources": _sources(runs),
        "pictures": [(number, *_picture(run)) for number, run in enumerate(runs) if run.picture()],
        "environment": _environment(runs),
        "told": _told,
        "failed": lambda run: Counter(failure["key"] for failure in run.failures).most_common(SHOWN),
        "duration": duration,
        "join": shlex.join,
        "many": SHOWN,
        "often": OFTEN,
    }


def _told(notes: Sequence[Mapping[str, Any]]) -> str:
    """How many there are for each reason."""
    return ", ".join(f"{n} × {why}" for why, n in Counter(str(note["reason"]) for note in notes).most_common())


def _chart(runs: Runs, column: str, x_name: str = "step", unit: float = 0.0, **how: bool) -> Markup:
    """A column of every run by step, or by time in units of so many seconds."""
    curves = []
    for number, run in enumerate(runs):
        x = run.hours * 3600 / unit if unit else run.steps
        marks = np.interp(run.restarts, run.steps, x).tolist() if run.restarts else ()
        curves.append(Curve(name=run.name, colour=f"c{number % COLOURS}", x=x, y=run.column(column), marks=marks))
    return lines(curves, x_name, **how)


def _scalars(runs: Runs) -> list[str]:
    """Columns that are a stage's own."""
    names = dict.fromkeys(name for run in runs for name, value in run.lines[-1].items() if isinstance(value, float))
    return [name for name in names if name not in OF_EVERY_RUN and not name.endswith(_of_settings(runs))]


def _of_settings(runs: Runs) -> tuple[str, ...]:
    """What the names of figures end in that the settings of a probe have a table of their own for."""
    return tuple(name for run in runs for name in names_of_settings(run))


def _settings(run: RunRecord) -> tuple[list[str], list[list[str]], Markup, list[tuple[str, str]]]:
    """Of a probe: top-1 by learning rate and weight decay as a table's heads and rows, the best ones marked, and as a chart
    with a legend."""
    heads, top1 = heads_in(run), top1_of(run)
    order = np.argsort([head.lr for head in heads[:: top1.shape[1]]])
    lrs, decays = ([f"{value:g}" for value in dict.fromkeys(values)] for values in zip(*map(astuple, heads), strict=True))
    lrs, top1, best = [lrs[row] for row in order], top1[order], np.nanmax(top1, initial=-1)
    cells = [["–" if np.isnan(one) else f"{one:.2%}" + " ★" * bool(one == best) for one in row] for row in top1]
    curves = {f"weight decay {decay}": column for decay, column in zip(decays, top1.T, strict=True)}
    return (
        ["peak lr, for 256 views", *curves],
        [[lr, *row] for lr, row in zip(lrs, cells, strict=True)],
        choices(lrs, curves, "peak learning rate, for 256 views"),
        [(name, f"c{number % COLOURS}") for number, name in enumerate(curves)],
    )


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _evaluations(runs: Runs) -> dict[str, Markup]:
    """A chart of each figure that some run's evaluations found."""
    about = ("step", "clips", "of", "missing", "seconds", "time")
    names = dict.fromkeys(name for run in runs for line in run.evaluations for name in line if name not in about)
    names = dict.fromkeys(name for name in names if not name.endswith(_of_settings(runs)))
    charts = {}
    for name in names:
        curves = []
        for number, run in enumerate(runs):
            lines_of = [line for line in run.evaluations if line.get(name) is not None]
            x, y = (np.array([line[key] for line in lines_of], np.float64) for key in ("step", name))
            curves += [Curve(name=run.name, colour=f"c{number % COLOURS}", x=x, y=y, marks=())] if lines_of else []
        if curves:
            charts[_title(name)] = lines(curves, "step", noisy=False)
    return charts


def _differences(runs: Runs) -> list[tuple[str, list[str], bool]]:
    """Of their configuration, a line for each option that differs: its name and values."""
    names = dict.fromkeys(name for run in runs for name in run.config if name != "out")
    return [
        (f"--{name.replace('_', '-')}", [_plain(run.config.get(name, "–")) for run in runs], False)
        for name in names
        if len({str(run.config.get(name)) for run in runs}) > 1
    ]


def _sources(runs: Runs) -> list[tuple[str, list[Markup], bool]]:
    """Views taken of each source."""
    taken = [run.sources() for run in runs]
    shares = Markup("{:,.0f} <small>{:.1%}</small>")
    return [
        (name, [shares.format(of.get(name, 0.0), of.get(name, 0.0) / (sum(of.values()) or 1.0)) for of in taken], False)
        for name in sorted({name for views in taken for name in views})
    ]


def _picture(run: RunRecord) -> tuple[str, str]:
    """What the latest reconstruction is of, and the PNG in base64."""
    file = run.picture()
    assert file is not None
    when = f"step {int(file.stem.split('-')[1]):,}" if file.stem.startswith("step-") else file.name
    return when, base64.b64encode(file.read_bytes()).decode()


def _environment(runs: Runs) -> list[tuple[str, list[str], bool]]:
    """Hardware and software of the last start of each run, and what differs that was not measured."""
    of_a_start = ("time", "command", "first_step", "total_steps", "startup", "notices", "init")
    found = [flatten({k: v for k, v in (run.starts or [{}])[-1].items() if k not in of_a_start}) for run in runs]
    rows = []
    for name in dict.fromkeys(name for facts in found for name in facts):
        told = [_plain(facts.get(name, "–")) for facts in found]
        rows.append((name.replace("_", " "), told, len(set(told)) > 1 and name not in ("loader", "gemm_tflops")))
    begun = ["; from ".join(str(each.get("place")) for each in run.descent) or "–" for run in runs]
    return rows + ([("descends from", begun, len(set(begun)) > 1)] if any(run.descent for run in runs) else [])


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
