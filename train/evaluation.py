"""Evaluation inside a run: what is held out, seen through the model as it is, and nothing left behind.

All ranks make the same number of forward passes, also one that has no clip: with `--compute.reshard-after-forward` each pass is
an exchange of weights, and a rank that stays away hangs the others. Before and after, every part of the model is resharded:
after a pass without a backward pass it stays gathered, and what is then written to the weights is lost at the next reshard. So
the running mean takes the weights' place only here. The step that follows is bit for bit what it would have been."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pipeline.console import may_fail
from pipeline.sampling import EvaluationSampler
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.storage.dataset import Dataset
from pipeline.storage.manifest import Manifest
from train.checkpoint.best import FILES, Best, reached
from train.compute.parallel import Ranks
from train.config import LABEL_MAP
from train.parts import open_loader
from train.stage import ClipStage, Evaluation, Evaluator, Stage
from train.training import Training
from train.watch.json_lines import JsonLines, keep_lines, read_lines
from train.watch.meters import Meters

FILE = "evaluations.jsonl"
CLIPS = "clips"  # the name of their sum
SHOWN = 8  # keys, or figures, in a line


class Evaluations:
    """RUN/evaluations.jsonl, a line for each step at which something was due: {"step": 500, "held_out_loss": 0.71, ...}."""

    def __init__(
        self, stage: Stage, training: Training, run: Path, manifest: Dataset, *, first_step: int, total_steps: int
    ) -> None:
        """`first_step` are done; lines of later ones are dropped."""
        self._training, self._total = training, total_steps
        self._best = Best(run, training, first_step)
        self._evaluators = stage.evaluators(training.model, training.ranks, run, manifest)
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
        began, figures, seen = time.perf_counter(), dict[str, float](), dict[str, Any]()
        means: dict[str, Callable[[], AbstractContextManager]] = {"": contextlib.nullcontext}
        if self._training.mean:
            means["ema_"] = self._training.mean.in_place
        for prefix, weights in means.items():
            with undisturbed(self._training.model), weights():
                for evaluator in due:
                    found = evaluator.call(self._training.model, step)
                    reshard(self._training.model)
                    figures |= {f"{prefix}{name}": value for name, value in found.figures.items()}
                    if evaluator.best:
                        self._best.keep(step, evaluator.best, found.figures, prefix)
                    if found.of:
                        seen = {"clips": found.clips, "of": found.of, "missing": list(found.missing)}
                    if meters and not prefix:
                        for name, (file, pixels) in found.pictures.items():
                            meters.picture(name, file, pixels, step)
        if not figures or not meters:
            return []
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._file.add({"step": step, **finite, **seen, "seconds": time.perf_counter() - began, "time": time.time()})
        meters.evaluated(step, figures)
        told = " · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in [*figures.items()][:SHOWN])
        told += f" · {len(figures) - SHOWN} others in {FILE}" if len(figures) > SHOWN else ""
        if not seen:
            return [f"step {step}: {told}"]
        missing = seen["missing"]
        lost = f"; not decoded: {', '.join(missing[:SHOWN])}{' ...' if len(missing) > SHOWN else ''}" if missing else ""
        return [f"step {step}: {told}, of {seen['clips']} of {seen['of']} clips{lost}"]


def comparison(run: Path) -> list[str]:
    """Last and best, of the weights and of their running mean, by the figure that the best ones were kept for: a line each."""
    last = (read_lines(run / FILE) or [{}])[-1]
    said = []
    for prefix, file in FILES.items():
        if best := reached(run / file):
            figure, step, value = best
            name, now = f"{prefix}{figure}".replace("_", " "), last.get(f"{prefix}{figure}")
            now = math.nan if now is None else now  # it was not finite
            said.append(f"{name}: {now:.4g} after step {last['step']}, the best {value:.4g} after step {step}, in {file}")
    return said


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


class HeldOut:
    """An evaluator: the stage's own loss, and its scalars, on every clip of a split once, in its middle view, without noise.
    Masks are drawn by the clip's row, so all evaluations are of the same thing."""

    def __init__(self, stage: ClipStage, ranks: Ranks, run: Path, manifest: Manifest, rows: np.ndarray | None = None) -> None:
        """Labels are looked up in the `run`'s map. `rows` (n,) are those of `--evaluate-split`, or some of them. Raises
        ValueError, with the splits there are, if the dataset has no clip of it."""
        self._stage, self._ranks, self._label_map = stage, ranks, run / LABEL_MAP
        self._rows = rows_of_split(manifest, checked_split(stage.config.evaluate_split)) if rows is None else rows

    def __call__(self, model: nn.Module, step: int) -> Evaluation:
        """Every rank makes as many forward passes as the others: where it has no clip, over black views, which do not count."""
        config, ranks, total = self._stage.config, self._ranks, dict[str, Tensor]()
        plain = replace(config.sampling, views_per_clip=1, fresh_windows=False, randaugment="", crop_resize="antialiased")
        share = config.views.views_per_step // ranks.world_size // config.accumulation(ranks.world_size)
        with closing(
            open_loader(
                config,
                ranks,
                plain,
                sampler=EvaluationSampler(rows=self._rows),
                clips_per_batch=share,
                label_map=self._label_map if self._label_map.exists() else None,
            )
        ) as loader:
            for batch in loader:
                there = batch.weight.nonzero().squeeze(1)
                value, scalars = self._stage.loss(model, batch.of_clips(there) if len(there) else batch, None)
                for name, mean in {"loss": value, **scalars, CLIPS: torch.ones_like(value)}.items():
                    part = mean.double() * len(there) if len(there) else torch.zeros_like(mean.double())
                    total[name] = total[name] + part if name in total else part
            missing = [clip.key for clip in loader.missing]
        sums = dict(zip(total, ranks.sum(torch.stack(list(total.values()))).tolist(), strict=True))
        clips = sums.pop(CLIPS)
        figures = {f"held_out_{name}": value / clips if clips else math.nan for name, value in sums.items()}
        return Evaluation(figures, clips=int(clips), of=len(self._rows), missing=[*chain(*ranks.gather(missing))])


def held_out(
    stage: ClipStage, ranks: Ranks, run: Path, manifest: Manifest, rows: np.ndarray | None = None, best: str | None = None
) -> list[Evaluator]:
    """What every stage evaluates alike, if `--evaluate-every` asks for it; on some `rows` alone if they are given. `best`: see
    `Evaluator`."""
    every = stage.config.evaluate_every
    return [Evaluator(every, HeldOut(stage, ranks, run, manifest, rows), best=best)] if every else []
