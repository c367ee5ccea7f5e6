"""How good the detections on held-out key frames are while a run trains."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from pipeline.console import complain
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.storage.key_frames import KeyFrames
from pipeline.storage.manifest import Manifest
from pipeline.workers.delivery import FailedClip
from train.compute.parallel import Ranks
from train.detection.detections import (
    Found,
    TestBoxes,
    detections,
    evaluated,
    key_frames_of,
    keys_of,
    rows_found,
    rows_of_truth,
)
from train.detection.mean_precision import mean_precision
from train.parts import open_loader
from train.stage import ClipStage, Evaluation, Evaluator


class HeldOutBoxes:
    """An evaluator: mean average precision over the key frames of `--evaluate-split`, whole frames, every clip once. Its name
    says whose rules it follows, and whether the boxes are annotated ones."""

    def __init__(
        self, stage: ClipStage, ranks: Ranks, manifest: Manifest, frames: KeyFrames, boxes: TestBoxes, style: str
    ) -> None:
        """Of the clips of the `manifest`; `frames` may have more. Raises ValueError if there is no such key frame, nothing true
        of them, or no box to look at."""
        split = checked_split(stage.config.evaluate_split)
        rows = key_frames_of(frames, rows_of_split(manifest, split))
        if not len(rows_of_truth(frames, rows)):
            raise ValueError(f"--evaluate-split {split}: no key frame of {manifest.place} has an annotated box")
        boxes.check(frames, rows)
        self._stage, self._ranks, self._frames, self._boxes, self._rows, self._style = stage, ranks, frames, boxes, rows, style

    @property
    def figure(self) -> str:
        return f"held_out_map_{self._style}" + ("_of_truth" if self._boxes.kind == "truth" else "")

    def __call__(self, model: nn.Module, step: int) -> Evaluation:
        config, ranks, frames = self._stage.config, self._ranks, self._frames
        share = config.views.views_per_step // ranks.world_size // config.accumulation(ranks.world_size)

        def opened(recipe: Any, sampler: Any) -> Any:
            return open_loader(config, ranks, recipe, sampler=sampler, clips_per_batch=share, label_map=frames.names)

        found, missing = list[Found](), list[FailedClip]()
        for each in detections(model, opened, config.sampling, frames, self._rows, self._boxes):
            (missing if isinstance(each, FailedClip) else found).append(each)  # type: ignore[arg-type]
        counted = evaluated(frames)
        kept = [replace(each, scores=each.scores[:, counted]) for each in found]
        every = [one for rank in ranks.gather(kept) for one in rank]
        mean = ranks.first(partial(self._mean, every))
        clips = sum(len(each.rows) for each in every)
        return Evaluation({self.figure: mean}, clips=clips, of=len(self._rows), missing=keys_of(ranks.gather(missing)))

    def _mean(self, found: Sequence[Found]) -> float:
        """Of the clips that were seen; NaN, which is never the best, where some scores are not finite."""
        if not all(each.finite for each in found):
            complain("detect: some scores of the evaluation are not finite, so there is no mean average precision")
            return math.nan
        seen = np.concatenate([each.rows for each in found]) if found else np.empty(0, np.int64)
        numbers = [self._frames.actions[place].id for place in evaluated(self._frames)]
        rows = rows_found(self._frames, found, range(len(numbers)))
        return mean_precision(rows_of_truth(self._frames, seen), rows, numbers, self._style).mean


def held_out_boxes(
    stage: ClipStage, ranks: Ranks, manifest: Manifest, frames: KeyFrames, boxes: TestBoxes, style: str
) -> list[Evaluator]:
    """If `--evaluate-every` asks for it; the weights with the best figure are kept."""
    if not (every := stage.config.evaluate_every):
        return []
    held_out = HeldOutBoxes(stage, ranks, manifest, frames, boxes, style)
    return [Evaluator(every, held_out, best=held_out.figure)]
