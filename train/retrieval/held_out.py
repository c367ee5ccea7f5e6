"""What texts find among the held-out videos while a run trains, and videos among the texts."""

import math
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from torch import nn

from pipeline.captions import Captions
from pipeline.console import may_fail
from pipeline.sampling import EvaluationSampler, SamplingRecipe
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.storage.files import write_durably
from pipeline.storage.manifest import Manifest
from train.compute.parallel import Ranks
from train.config import RunConfig
from train.parts import open_loader
from train.retrieval.pairs import paired, seen
from train.retrieval.retrieval_page import found_by_texts, page
from train.retrieval.text_folder import TextFolder
from train.stage import ClipStage, Evaluation, Evaluator

BEST = "held_out_text_to_video_r1"
PAGE = "retrieval.html"  # of a run: what texts found in its last evaluation, of the running mean where there is one


class HeldOutPairs:
    """An evaluator: every clip of `--evaluate-split` that has a caption once, in its middle view, and all captions of these. A
    caption that several clips have in the same words is right for each of them."""

    def __init__(
        self, stage: ClipStage, ranks: Ranks, run: Path, manifest: Manifest, captions: Captions, folder: TextFolder
    ) -> None:
        """`PAGE` goes into the `run`'s folder. Raises ValueError if there is no such clip."""
        self._rows = with_caption(manifest, captions, stage.config.evaluate_split)
        self._stage, self._ranks, self._captions, self._folder = stage, ranks, captions, folder
        self._run, self._manifest = run, manifest

    def __call__(self, model: nn.Module, step: int) -> Evaluation:
        config, ranks = self._stage.config, self._ranks
        share = config.views.views_per_step // ranks.world_size
        rows, videos = list[int](), list[np.ndarray]()
        with closing(
            open_loader(config, ranks, middle_view(config), sampler=EvaluationSampler(rows=self._rows), clips_per_batch=share)
        ) as loader:
            for some, _, video_BE in seen(model, loader):
                rows += some
                videos.append(video_BE)
            missing = [*chain(*ranks.gather([clip.key for clip in loader.missing]))]
        pairs = paired(model, self._folder, self._captions, (rows, np.concatenate(videos)), ranks, share)
        figures = pairs.figures(ranks)
        if ranks.rank == 0 and math.isfinite(figures["chance_r1"]):
            with may_fail(PAGE):
                about = {"of": len(self._rows), "missing": missing}
                when = f"after step {step:,}, on split {config.evaluate_split}"
                text = page(self._run.name, when, figures, pairs, found_by_texts(self._manifest, pairs), about)
                write_durably(self._run / PAGE, text.encode())
        named = {f"held_out_{name}": value for name, value in figures.items()}
        return Evaluation(named, clips=len(pairs.rows), of=len(self._rows), missing=missing)


def with_caption(manifest: Manifest, captions: Captions, split: str, flag: str = "--evaluate-split") -> np.ndarray:
    """Rows of a split's clips that have one, int64. Raises ValueError if there is none."""
    rows = rows_of_split(manifest, checked_split(split))
    found = rows[captions.counts(rows) > 0]
    if not len(found):
        raise ValueError(f"{flag} {split}: none of its {len(rows)} clips of {manifest.place} has a caption")
    return found


def middle_view(config: RunConfig) -> SamplingRecipe:
    """How a run's clips are looked at in an evaluation."""
    return replace(config.sampling, views_per_clip=1, fresh_windows=False, split=checked_split(config.evaluate_split))


def held_out_pairs(
    stage: ClipStage, ranks: Ranks, run: Path, manifest: Manifest, captions: Captions, folder: TextFolder
) -> list[Evaluator]:
    """If `--evaluate-every` asks for it; the weights with which most texts find their video first are kept."""
    if not (every := stage.config.evaluate_every):
        return []
    return [Evaluator(every, HeldOutPairs(stage, ranks, run, manifest, captions, folder), best=BEST)]
