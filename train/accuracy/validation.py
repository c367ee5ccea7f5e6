"""Single-view validation of a classifier inside a run: what `--evaluate-every` finds out, by which the best weights are chosen.

A stage's answer:

    def evaluators(self, model, ranks, run, manifest):
        return classification_evaluator(self, ranks, run, manifest)
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.loader import Batch
from pipeline.sampling import EvaluationSampler
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.storage.manifest import Manifest
from train.accuracy.accuracy import TOP, Accuracy, places
from train.compute.parallel import Ranks
from train.config import LABEL_MAP
from train.parts import open_loader
from train.stage import Evaluation, Evaluator, Stage

Logits = Callable[[Any, Batch], Tensor]


def of_views(model: nn.Module, batch: Batch) -> Tensor:
    """A classifier's."""
    return model(batch.views)


class Validation:
    """An evaluator: top-1, top-5 and mean-class accuracy on every clip of a split once, in its middle view, without noise."""

    def __init__(self, stage: Stage, ranks: Ranks, run: Path, manifest: Manifest, logits: Logits) -> None:
        """Labels are looked up in the `run`'s map. Raises ValueError, with the splits there are, if the dataset has no clip of
        `--evaluate-split`."""
        self._stage, self._ranks, self._label_map, self._logits = stage, ranks, run / LABEL_MAP, logits
        self._rows = rows_of_split(manifest, checked_split(stage.config.evaluate_split))

    def __call__(self, model: nn.Module, step: int) -> Evaluation:
        """Every rank makes as many forward passes as the others: where it has no clip, over black views, which do not count.
        Counts stay on the device: the host waits once."""
        config, ranks = self._stage.config, self._ranks
        share = config.views.views_per_step // ranks.world_size // config.accumulation(ranks.world_size)
        counts, clips = None, torch.zeros((), dtype=torch.int64, device=ranks.device)
        with closing(
            open_loader(
                config,
                ranks,
                replace(config.sampling, views_per_clip=1, fresh_windows=False),
                sampler=EvaluationSampler(rows=self._rows),
                clips_per_batch=share,
                label_map=self._label_map if self._label_map.exists() else None,
            )
        ) as loader:
            for batch in loader:
                logits = self._logits(model, batch).float()
                there, labels = batch.weight > 0, batch.labels
                clips += there.sum()
                place = places(logits, labels)
                known, never = there & (labels >= 0), logits.shape[1]  # the last class: of no clip
                counted = (known, known & (place == 0), known & (place < TOP))
                each = [torch.where(which, labels, never) for which in counted]
                each.append(torch.where(known, logits.argmax(1), never))
                if counts is None:
                    counts = torch.zeros(4, never + 1, dtype=torch.int64, device=logits.device)
                for count, classes in zip(counts, each, strict=True):
                    count.index_add_(0, classes, torch.ones_like(classes))
            missing = [clip.key for clip in loader.missing]
        assert counts is not None
        accuracy = Accuracy(*ranks.sum(counts)[:, :-1].cpu().numpy())
        figures = {f"held_out_{name}": value for name, value in accuracy.figures().items()}
        seen = int(ranks.sum(clips))
        return Evaluation(figures, clips=seen, of=len(self._rows), missing=[*chain(*ranks.gather(missing))])


def classification_evaluator(
    stage: Stage, ranks: Ranks, run: Path, manifest: Manifest, logits: Logits = of_views
) -> list[Evaluator]:
    """What a stage of classes evaluates, if `--evaluate-every` asks for it; `logits` (B, C) of a batch of one view a clip."""
    every = stage.config.evaluate_every
    return [Evaluator(every, Validation(stage, ranks, run, manifest, logits))] if every else []
