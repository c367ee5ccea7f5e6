"""From the notes of the GPU suite to `gpu_suite.json` and `gpu_suite.md`."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Part

Report = dict[str, Any]
KINDS = ("figure", "remark", "absent", "failure")  # of notes that a part's lists have
# what becomes of a part
ENDS = {"not done": "not done: {reason}", "ended": "done", "absent": "absent: {reason}", "failure": "failed: {error}"}


def assemble(parts: Sequence[Part], notes: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> Report:
    """What became of every part, with its figures, remarks, what is absent and why, and failures."""
    found: dict[str, dict[str, Any]] = {
        part.name: {"name": part.name, "title": part.title, "status": "not done: the suite has not come to it", "seconds": 0.0}
        | {kind: [] for kind in KINDS}
        for part in parts
    }
    machine: Mapping[str, Any] = {}
    for note in notes:
        kind, entry = note["kind"], found[note["part"]]
        if kind == "machine":
            machine = note["facts"]
        elif kind == "began":
            entry["status"] = "not done: it was begun"
        elif kind in KINDS:
            entry[kind].append({name: value for name, value in note.items() if name not in ("kind", "part", "time")})
        if kind == "ended":
            entry["seconds"] = round(note["seconds"], 1)
        whole = note.get("name") == note["part"] if kind == "absent" else True
        if kind in ENDS and whole and not (kind == "ended" and entry["status"].startswith(("absent", "failed"))):
            entry["status"] = ENDS[kind].format(**{"error": "", "reason": "", **note}).splitlines()[0][:300]
    return {**facts, "machine": machine, "parts": list(found.values())}


def write(report: Report, folder: Path) -> None:
    """Both files, each whole or not at all."""
    for name, text in (("gpu_suite.json", json.dumps(report, indent=1) + "\n"), ("gpu_suite.md", markdown(report))):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text)
        temporary.rename(folder / name)


def markdown(report: Report) -> str:
    """A page for people: what was done, then a table a part, then what failed."""
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    lines = [
        "# GPU suite" + (" (a dry walk on a CPU at toy size: its figures mean nothing)" if report["dry"] else ""),
        "",
        f"{report['date']}, commit {report['commit']}, {report['seconds']:.0f} s of {60 * report['minutes']:.0f} s.  ",
        machine or "The machine was not described.",
        "",
    ]
    for part in report["parts"]:
        lines += [f"## {part['title']}", "", f"{part['name']}, {part['seconds']:.0f} s, {_plain(part['status'])}", ""]
        if part["figure"]:
            lines += ["| | | | detail |", "|---|---:|---:|---|", *map(_figure_row, part["figure"]), ""]
        lines += [f"{_plain(remark['text'])}\n" for remark in part["remark"]]
        lines += [f"- not measured: {_plain(entry['name'])}: {_plain(entry['reason'])}" for entry in part["absent"]]
        lines += [""] if part["absent"] else []
        for failure in part["failure"]:
            lines += [f"**{_plain(failure['name'])} failed**: {_plain(failure['error'])}", ""]
            lines += ["```", failure["traceback"].strip()[-3000:].replace("```", "'''"), "```", ""]
    return "\n".join(lines)


def _figure_row(figure: Mapping[str, Any]) -> str:
    value = f"{_number(figure['value'])} {figure['unit']}".strip()
    against = "" if figure["ratio"] is None else f"{figure['ratio']:.3g} × {_number(figure['baseline'])}"
    detail = ", ".join(f"{name} {_short(value)}" for name, value in figure["detail"].items())
    return "| " + " | ".join(map(_plain, (figure["name"], value, against, detail))) + " |"


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
