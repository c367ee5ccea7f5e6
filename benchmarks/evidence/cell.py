"""A cell of the grid: a command of ours, what it needs to be done before, and the figures that it leaves."""

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.clips import CLIPS

Figures = dict[str, float]


@dataclass(frozen=True, eq=False)
class Cell:
    """`tubecell *words --out RUNS/name`; of words that are cells, the folder stands there."""

    name: str
    """Also of its folder: "pretrain/default/0"."""
    words: tuple["str | Cell | Path", ...]
    read: Callable[[Path], Figures]
    """The figures in its folder when it is done."""
    proof: str
    """A file in its folder that is there when it is done, and not before."""

    @property
    def needs(self) -> list["Cell"]:
        return [word for word in self.words if isinstance(word, Cell)]

    def command(self, runs: Path) -> list[str]:
        """The words of the command line."""
        given = [str(runs / word.name) if isinstance(word, Cell) else str(word) for word in self.words]
        return [*given, "--out", str(runs / self.name)]

    @property
    def said(self) -> str:
        """The same for people, and to tell whether what is on record is of the same command: folders of the machine are left
        out."""
        given = [f"RUNS/{word.name}" if isinstance(word, Cell) else _short(word) for word in self.words]
        return shlex.join(["tubecell", *given, "--out", f"RUNS/{self.name}"])

    @property
    def digest(self) -> str:
        """Of all that its figures hang on: its command, those of what it needs, and the clips that were generated."""
        text = "\n".join([self.said, *(need.digest for need in self.needs), CLIPS])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _short(word: "str | Path") -> str:
    return f"DATA/{word.name}" if isinstance(word, Path) else word


def pretrained(run: Path) -> Figures:
    """Of a pre-training run: the mean loss of the last tenth of its lines, and its rate."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    last = lines[-max(1, len(lines) // 10) :]
    rates = sorted(line["views_per_second"] for line in lines)
    return {"loss": sum(line["loss"] for line in last) / len(last), "views_per_second": rates[len(rates) // 2]}


def held_out(run: Path) -> Figures:
    """Of a run with evaluations: top-1 of the last one, on the part that choices are made by."""
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    return {"val_top1": max(value for name, value in last.items() if name.endswith("top1") and "ema" not in name)}


def evaluated(folder: Path) -> Figures:
    """Of `evaluate`: top-1 of the test part, and of how many clips."""
    found = json.loads((folder / "evaluation.json").read_text())
    return {"test_top1": found["top1"], "clips": found["clips"]}


def nothing(_: Path) -> Figures:
    """Of a run whose figures others read."""
    return {}
