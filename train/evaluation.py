"""Evaluation inside a run: what is held out, seen through the model as it is, and nothing left behind.

All ranks make the same number of forward passes, also one that has no clip: with `--compute.reshard-after-forward` each pass is
an exchange of weights, and a rank that stays away hangs the others. Before and after, every part of the model is resharded:
after a pass without a backward pass it stays gathered, and what is then written to the weights is lost at the next reshard. So
the running mean takes the weights' place only here. The step that follows is bit for bit what it would have been."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from pipeline.console import may_fail
from train.compute.parallel import Ranks
from train.stage import Evaluator, Stage
from train.training import Training
from train.watch.json_lines import JsonLines, keep_lines, read_lines
from train.watch.meters import Meters

FILE = "evaluations.jsonl"


class Evaluations:
    """RUN/evaluations.jsonl, a line for each step at which something was due: {"step": 500, "held_out_loss": 0.71, ...}."""

    def __init__(self, stage: Stage, training: Training, run: Path, first_step: int, total_steps: int) -> None:
        """`first_step` are done; lines of later ones are dropped."""
        self._training, self._total = training, total_steps
        self._evaluators = stage.evaluators(training.model, training.ranks, run)
        self._file = JsonLines(run / FILE)
        self._done: set[int] = set()
        if training.ranks.rank == 0 and self._evaluators:
            with may_fail(str(self._file.file)):
                keep_lines(self._file.file, lambda line: line["step"] <= first_step)
                self._done = {line["step"] for line in read_lines(self._file.file)}

    def after(self, step: int, meters: Meters | None, *, again: bool = False) -> list[str]:
        """Of a step that is done -> lines for people. `again`: not if an earlier start wrote its line. All ranks call it."""
        due = [evaluator for evaluator in self._evaluators if step and evaluator.due(step, self._total)]
        ranks = self._training.ranks
        if not due or (again and ranks.gather(step in self._done)[0]):
            return []
        began, figures = time.perf_counter(), dict[str, float]()
        means: dict[str, Callable[[], AbstractContextManager]] = {"": contextlib.nullcontext}
        if self._training.mean:
            means["ema_"] = self._training.mean.in_place
        for prefix, weights in means.items():
            with undisturbed(self._training.model), weights():
                for evaluator in due:
                    found = evaluator.call(self._training.model, step)
                    reshard(self._training.model)
                    figures |= {f"{prefix}{name}": value for name, value in found.figures.items()}
                    if meters and not prefix:
                        for name, (file, pixels) in found.pictures.items():
                            meters.picture(name, file, pixels, step)
        if not figures or not meters:
            return []
        line = {"step": step, **figures, "seconds": time.perf_counter() - began, "time": time.time()}
        self._file.add(line)
        meters.evaluated(step, figures)
        told = " · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
        return [f"step {step}: {told}"]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Without gradients, sharded when it begins and when it ends. Shapes are those of an evaluation: not worth compiling
    for."""
    reshard(model)
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train()
        reshard(model)


def reshard(model: nn.Module) -> None:
    """Every part that is sharded."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def held_out(stage: Stage, model: nn.Module, ranks: Ranks) -> list[Evaluator]:
    """The stage's own loss on clips that are held out, if `--evaluate-every` asks for it."""
    return []
