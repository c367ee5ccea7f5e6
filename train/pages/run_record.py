"""What a run left in its folder, read back: the material of `train/report.py`."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.checkpoint import descent
from train.checkpoint.descent import Descent
from train.config import read_config
from train.watch.json_lines import read_lines

STEADY = 0.1  # share of a run's lines that is left out where a rate is typical: compilation, and the loader finding its threads


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run's files. Lines cut off by a kill are left out."""

    path: Path
    name: str
    lines: list[dict[str, Any]]
    """metrics.jsonl, by step."""
    config: dict[str, Any]
    """config.json, flat: {"optim.base_lr": ...}."""
    starts: list[dict[str, Any]]
    """environment.json, one for each start."""
    evaluations: list[dict[str, Any]]
    """evaluations.jsonl, by step."""
    skipped: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    complete: bool
    descent: Descent
    """descent.json: what it began with, and so on."""

    @staticmethod
    def read(path: Path) -> "RunRecord":
        """Raises ValueError if the folder is no run, or nothing was logged yet."""
        lines = read_lines(path / "metrics.jsonl")
        if not lines:
            raise ValueError(f"{path} has no metrics.jsonl with a line in it; give the --out folder of a run")
        starts, begun = path / "environment.json", path / descent.FILE
        return RunRecord(
            path=path,
            name=path.resolve().name,
            lines=lines,
            config=read_config(path / "config.json"),
            starts=json.loads(starts.read_text()) if starts.exists() else [],
            evaluations=read_lines(path / "evaluations.jsonl"),
            skipped=read_lines(path / "skipped.jsonl"),
            failures=read_lines(path / "failures.jsonl"),
            complete=(path / "complete").exists(),
            descent=descent.read_descent(begun.read_text() if begun.exists() else None),
        )

    @property
    def total_steps(self) -> int | None:
        """That the last start wanted."""
        return next((start["total_steps"] for start in reversed(self.starts) if "total_steps" in start), None)

    @property
    def state(self) -> str:
        """How far it has come."""
        done, total = self.lines[-1]["step"], self.total_steps
        if self.complete or not total:
            return f"{'complete' if self.complete else 'unfinished'}, {done:,} steps"
        return f"{done / total:.0%} of {total:,} steps"

    @property
    def notices(self) -> list[str]:
        """What the loader said of the dataset at the last start."""
        return self.starts[-1].get("notices", []) if self.starts else []

    @property
    def steps(self) -> np.ndarray:
        return self.column("step")

    @property
    def hours(self) -> np.ndarray:
        """(n,) of training until each line: without pauses, and steps that were lost and done again."""
        return np.nancumsum(self.column("seconds")) / 3600

    def column(self, name: str) -> np.ndarray:
        """(n,) float64, NaN where a line has none."""
        return np.array([np.nan if line.get(name) is None else line[name] for line in self.lines], np.float64)

    def typical(self, name: str) -> float | None:
        """The median, without the run's beginning; None if no line has one."""
        values = self.column(name)[int(STEADY * len(self.lines)) :]
        return float(np.nanmedian(values)) if np.isfinite(values).any() else None

    def most(self, name: str) -> float | None:
        """The largest; None if no line has one."""
        values = self.column(name)
        return float(np.nanmax(values)) if np.isfinite(values).any() else None

    @property
    def loss(self) -> float | None:
        """Mean of the last twentieth of the lines."""
        values = self.column("loss")[-max(1, len(self.lines) // 20) :]
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    @property
    def restarts(self) -> list[int]:
        """Steps that were done when the run was started again."""
        return [start["first_step"] for start in self.starts if start.get("first_step")]

    def sources(self) -> dict[str, float]:
        """Views of each source taken, so far as lines tell."""
        taken: Counter[str] = Counter()
        for line in self.lines:
            for source, rate in line.get("views_per_second_of", {}).items():
                taken[source] += rate * line["seconds"]
        return dict(taken)

    def stragglers(self, from_behind: float = 0.05) -> list[tuple[str, float, float]]:
        """(rank and host, share of the lines in which it was at least so far behind, by how much in the median)."""
        behind: dict[str, list[float]] = {}
        for line in self.lines:
            if line.get("slowest_behind", 0.0) >= from_behind:
                behind.setdefault(f"{line['slowest_rank']} on {line['slowest_host']}", []).append(line["slowest_behind"])
        found = [(rank, len(values) / len(self.lines), float(np.median(values))) for rank, values in behind.items()]
        return sorted(found, key=lambda item: -item[1])

    def picture(self) -> Path | None:
        """The latest reconstruction, of those that the run made by itself or of train/visualize.py's."""
        by_itself = max((self.path / "reconstructions").glob("step-*.png"), default=None)
        drawn = self.path / "reconstruction.png"
        return by_itself or (drawn if drawn.exists() else None)
