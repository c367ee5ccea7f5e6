"""The best weights of a run, by a figure of what is held out: RUN/best.safetensors and, of their running mean,
RUN/best_ema.safetensors. A better one takes the place of the one before."""

import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.console import may_fail
from pipeline.version import version
from train.checkpoint.source import as_model, metadata_of_run
from train.checkpoint.state import Trained, whole_weights
from train.checkpoint.weights import save_weights

FILES = {"": "best.safetensors", "ema_": "best_ema.safetensors"}  # by what the names of their figures begin with


class Best:
    """Every rank has one."""

    def __init__(self, run: Path, training: Trained, first_step: int) -> None:
        """Of a run of which `first_step` are done. What an earlier start kept of a later one does not count: it comes again, or
        does not."""
        self._run, self._training, self._done = run, training, first_step

    def keep(self, step: int, figure: str, figures: Mapping[str, float], prefix: str) -> None:
        """What the model has for weights after a step, with the `prefix` "ema_" their mean, if no earlier value of the figure
        is as high. All ranks call it, with the same `figures`."""
        file, ranks, value = self._run / FILES[prefix], self._training.ranks, figures[figure]
        reached = ranks.gather(self._reached(file, figure) if ranks.rank == 0 else None)[0]
        self._done = max(self._done, step)
        if not math.isfinite(value) or (reached is not None and reached >= value):
            return
        whole = whole_weights(self._training.model)
        if ranks.rank == 0:
            with may_fail(str(file)):
                metadata = metadata_of_run([self._run], step=step, tubecell=version(), figure=figure, value=repr(value))
                tensors, about = as_model(whole, [self._run], evaluated=figures)
                save_weights(file, tensors, metadata | about)

    def _reached(self, file: Path, figure: str) -> float | None:
        """By the steps that are done."""
        found = reached(file)
        return found[2] if found and found[0] == figure and found[1] <= self._done else None


def reached(file: Path) -> tuple[str, int, float] | None:
    """What a file was kept for: figure, step, value. None if there is no such file."""
    try:
        with safe_open(file, "pt") as opened:
            facts = opened.metadata()
        return facts["figure"], int(facts["step"]), float(facts["value"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
