"""From the notes of the GPU suite to `gpu_suite.json` and `gpu_suite.md`."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Part

Report = dict[str, Any]
# the list that notes of a kind go to
LISTS = {kind: f"{kind}s" for kind in ("recommendation", "remark", "figure", "failure")} | {"absent": "absent"}


def assemble(parts: Sequence[Part], notes: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> Report:
    """Figures, what is absent and why, failures, advice; every figure that a part owes is among the first two."""
    report: Report = {**facts, "machine": {}, **{name: [] for name in ("parts", *LISTS.values(), "measurements")}}
    seconds: dict[str, float] = {}
    put_off: dict[tuple[str, str], str] = {}
    for note in notes:
        if note["kind"] in LISTS:
            report[LISTS[note["kind"]]].append({name: value for name, value in note.items() if name != "kind"})
        elif note["kind"] == "put off":
            put_off[note["part"], note["measurement"]] = f"no time: {note['reason']}"
        elif note["kind"] == "machine":
            report["machine"] = note["facts"]
        elif note["kind"] == "ended":
            seconds[note["part"]] = seconds.get(note["part"], 0.0) + note["seconds"]
            report["measurements"].append({name: note[name] for name in ("part", "measurement", "seconds", "cpu_seconds")})
    known = {entry["name"] for kind in ("figures", "absent") for entry in report[kind]}
    for part in parts:
        report["parts"].append({"name": part.name, "title": part.title, "seconds": round(seconds.get(part.name, 0.0), 1)})
        for measurement in part.measurements:
            for name in (f"{part.name}/{figure}" for figure in measurement.figures):
                if name not in known:
                    place = {"part": part.name, "measurement": measurement.name}
                    reason = put_off.get((part.name, measurement.name), "the suite has not come to it")
                    report["absent"].append({**place, "name": name, "reason": reason})
    return report


def write(report: Report, folder: Path) -> None:
    """Both files, each whole or not at all."""
    for name, text in (("gpu_suite.json", json.dumps(report, indent=1) + "\n"), ("gpu_suite.md", markdown(report))):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text)
        temporary.rename(folder / name)


def markdown(report: Report) -> str:
    """A page for people: what to change, then a table per part, then what is absent and what failed."""
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    lines = [
        "# GPU suite" + (" (a dry walk on a CPU at toy size: its figures mean nothing)" if report["dry"] else ""),
        "",
        f"{report['date']}, commit {report['commit']}, {report['seconds']:.0f} s of {60 * report['minutes']:.0f} s.  ",
        machine or "The machine was not described.",
        "",
        f"{len(report['figures'])} figures, {len(report['absent'])} absent, {len(report['failures'])} failures.",
        "",
    ]
    if report["recommendations"]:
        lines += ["## What to set", "", "| setting | now | should be | why |", "|---|---|---|---|"]
        for advice in report["recommendations"]:
            lines.append(_row(f"`{advice['setting']}`", advice["now"], f"**{advice['value']}**", advice["why"]))
        lines.append("")
    for part in report["parts"]:
        figures = [figure for figure in report["figures"] if figure["part"] == part["name"]]
        lines += [f"## {part['title']} ({part['seconds']:.0f} s)", ""]
        if figures:
            lines += ["| | | | detail |", "|---|---:|---:|---|"]
            lines += [_figure_row(figure) for figure in figures]
            lines.append("")
        lines += [f"{_plain(remark['text'])}\n" for remark in report["remarks"] if remark["part"] == part["name"]]
        lines += _absent_lines([entry for entry in report["absent"] if entry["part"] == part["name"]])
    if report["failures"]:
        lines += ["## Failures", ""]
        for failure in report["failures"]:
            lines += [f"**{failure['part']}, {failure['measurement']}**: {_plain(failure['error'])}", ""]
            lines += ["```", failure["traceback"].strip()[-3000:].replace("```", "'''"), "```", ""]
    return "\n".join(lines)


def _figure_row(figure: Mapping[str, Any]) -> str:
    value = f"{_number(figure['value'])} {figure['unit']}".strip()
    against = "" if figure["ratio"] is None else f"{figure['ratio']:.3g} × {_number(figure['baseline'])}"
    detail = ", ".join(f"{name} {_short(value)}" for name, value in figure["detail"].items())
    return _row(figure["name"].split("/", 1)[1], value, against, detail)


def _absent_lines(absent: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is missing for the same reason in one line."""
    reasons: dict[str, list[str]] = {}
    for entry in absent:
        reasons.setdefault(entry["reason"], []).append(entry["name"].split("/", 1)[1])
    lines = [f"- not measured: {', '.join(names)}: {_plain(reason)}" for reason, names in reasons.items()]
    return [*lines, ""] if lines else []


def _row(*cells: Any) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."


def _number(value: float) -> str:
    """Four digits."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
