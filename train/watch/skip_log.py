"""RUN/skipped.jsonl: the steps that were not taken, a line each, with the clips that they were made of.

    {"step": 117, "epoch": 0, "reason": "loss not finite", "grad_norm": null, "ranks": [3], "clips": ["kinetics-000412", ...]}

Where a forward pass had a loss that is not finite, only the clips of such passes are named; otherwise all clips of the step. On
the device nothing of this is known but the step: its clips are computed, as every sample is.
"""

import math
from pathlib import Path
from typing import Any

from pipeline.batches import AnyLoader
from pipeline.console import may_fail
from train.compute.parallel import Ranks
from train.watch.guard import SkippedStep, Verdict
from train.watch.json_lines import JsonLines, keep_lines, read_lines

SHOWN = 8  # clips in a message


class SkipLog:
    """Every rank has one, because each knows its own clips; rank 0 writes."""

    def __init__(self, run: Path, loader: AnyLoader, ranks: Ranks, step: int) -> None:
        """Goes on after `step` steps; lines of later ones are dropped."""
        self.file, self._loader, self._ranks = run / "skipped.jsonl", loader, ranks
        self._lines = JsonLines(self.file)
        self._row: list[dict[str, Any]] = []  # the last lines, of steps in a row
        self._longest: list[dict[str, Any]] = []
        if ranks.rank == 0:
            with may_fail(str(self.file)):
                keep_lines(self.file, lambda line: line["step"] <= step)
                for line in read_lines(self.file):
                    self._count(line)

    def write(self, skipped: list[SkippedStep]) -> None:
        """All ranks call it, for the same steps, which were taken since the start of this process."""
        if not skipped:
            return
        clips = self._ranks.gather([self._clips(step) for step in skipped])  # rank, step -> keys
        if self._ranks.rank != 0:
            return
        for number, step in enumerate(skipped):
            of_ranks = [keys[number] for keys in clips]
            line = {
                "step": step.step,
                "epoch": (step.step - 1) // self._loader.steps_per_epoch,
                "reason": str(step.verdict),
                "grad_norm": step.grad_norm if math.isfinite(step.grad_norm) else None,
                "ranks": [rank for rank, keys in enumerate(of_ranks) if keys],
                "clips": [key for keys in of_ranks for key in keys],
            }
            self._lines.add(line)
            self._count(line)

    def explain(self) -> str:
        """The longest row of skipped steps, for the message that ends the run; on every rank."""
        text = ""
        if self._ranks.rank == 0:
            row = self._longest
            keys = list(dict.fromkeys(key for line in row for key in line["clips"]))
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            text = (
                f"steps {row[0]['step']} to {row[-1]['step']} (epoch {row[-1]['epoch']}) were skipped: "
                f"{', '.join(dict.fromkeys(line['reason'] for line in row))}; their clips: {', '.join(keys[:SHOWN])}{more}, "
                f"see {self.file}"
            )
        return self._ranks.gather(text)[0]

    def _count(self, line: dict[str, Any]) -> None:
        follows = self._row and line["step"] == self._row[-1]["step"] + 1
        self._row = [*self._row, line] if follows else [line]
        if len(self._row) > len(self._longest):
            self._longest = self._row

    def _clips(self, step: SkippedStep) -> list[str]:
        """Of this rank, that may be to blame."""
        epoch, of_epoch = divmod(step.step - 1, self._loader.steps_per_epoch)
        if step.verdict != Verdict.LOSS:
            return self._loader.keys(epoch, of_epoch)
        parts = [part for part, loss in enumerate(step.losses) if not math.isfinite(loss)]
        return [key for part in parts for key in self._loader.keys(epoch, of_epoch, part)]
