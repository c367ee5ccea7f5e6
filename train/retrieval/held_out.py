"""What texts find among the held-out videos while a run trains, and videos among the texts."""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn.functional import normalize

from pipeline.captions import Captions
from pipeline.console import complain, may_fail
from pipeline.sampling import EvaluationSampler
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.storage.files import write_durably
from pipeline.storage.manifest import Manifest
from train.accuracy.retrieval import belonging, text_to_video, video_to_text
from train.augmentation import on_device
from train.compute.parallel import Ranks
from train.parts import open_loader
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
        split = checked_split(stage.config.evaluate_split)
        rows = rows_of_split(manifest, split)
        self._rows = rows[captions.counts(rows) > 0]
        if not len(self._rows):
            raise ValueError(f"--evaluate-split {split}: none of its {len(rows)} clips of {manifest.place} has a caption")
        self._stage, self._ranks, self._captions, self._folder = stage, ranks, captions, folder
        self._run, self._manifest, self._split = run, manifest, split

    def __call__(self, model: nn.Module, step: int) -> Evaluation:
        """Every rank makes as many forward passes as the others."""
        config, ranks = self._stage.config, self._ranks
        share = config.views.views_per_step // ranks.world_size
        plain = replace(config.sampling, views_per_clip=1, fresh_windows=False)
        rows, videos, width = list[int](), list[np.ndarray](), 0
        with closing(
            open_loader(config, ranks, plain, sampler=EvaluationSampler(rows=self._rows), clips_per_batch=share)
        ) as loader:
            for batch in loader:
                video_BE, _, _ = model(batch.views)
                there = batch.weight.bool().cpu().numpy()
                found_BE = normalize(video_BE.float(), dim=1).cpu().numpy()
                rows += batch.rows.numpy()[there].tolist()
                videos.append(found_BE[there])
                width = found_BE.shape[1]
            missing = [clip.key for clip in loader.missing]
        own = rows, np.concatenate(videos) if videos else np.empty((0, width), np.float32)
        every = [(row, video) for found in ranks.gather(own) for row, video in zip(*found, strict=True)]
        every.sort(key=lambda pair: pair[0])
        texts = [(place, text) for place, (row, _) in enumerate(every) for text in self._captions.of(row)]
        text_TE = self._texts(model, [text for _, text in texts], share)
        videos_T, words = np.array([place for place, _ in texts], np.int64), [text for _, text in texts]
        video_VE = np.stack([video for _, video in every]) if every else np.empty((0, width), np.float32)
        seen = [row for row, _ in every]
        figures = ranks.first(partial(self._judged, step, seen, text_TE, video_VE, videos_T, words))
        return Evaluation(figures, clips=len(every), of=len(self._rows), missing=[*chain(*ranks.gather(missing))])

    def _judged(
        self, step: int, rows: list[int], text_TE: np.ndarray, video_VE: np.ndarray, videos_T: np.ndarray, words: list[str]
    ) -> Mapping[str, float]:
        """The figures, for which rank 0 writes the page."""
        figures, file = figures_of(text_TE, video_VE, videos_T, words), self._run / PAGE
        if math.isfinite(figures[BEST]):
            with may_fail(str(file)):
                belongs_TV = belonging(videos_T, len(video_VE), words)
                queries = found_by_texts(self._manifest, rows, words, text_TE, video_VE, belongs_TV)
                text = page(self._run.name, step, self._split, figures, queries)
                write_durably(file, text.encode())
        return figures

    def _texts(self, model: nn.Module, texts: Sequence[str], at_once: int) -> np.ndarray:
        """Features of all, float32 (T, E), each made by one rank."""
        ranks = self._ranks
        device, mine = ranks.device, texts[ranks.rank :: ranks.world_size]
        longest = -(-len(texts) // ranks.world_size)  # of a rank's share: all make as many passes
        found: list[np.ndarray] = []
        for first in range(0, longest, at_once):
            some = [*mine[first : first + at_once]]
            tokens = self._folder.tokens(some + [texts[0]] * (at_once - len(some)))
            _, text_BE, _ = model(None, *(on_device(each, device) for each in tokens))
            found.append(normalize(text_BE.float(), dim=1).cpu().numpy()[: len(some)])
        parts = ranks.gather(np.concatenate(found) if found else None)
        if not texts:
            return np.empty((0, 0), np.float32)
        whole = np.empty((len(texts), parts[0].shape[1]), np.float32)
        for rank, part in enumerate(parts):
            whole[rank :: ranks.world_size] = part
        return whole


def figures_of(text_TE: np.ndarray, video_VE: np.ndarray, videos_T: np.ndarray, words: list[str]) -> Mapping[str, float]:
    """Both directions', and what chance would find in first place; NaN, which is never the best, where they are not finite."""
    if not len(text_TE):
        raise ValueError("no clip with a caption could be decoded, so there is nothing to look for")
    belongs_TV, similarity_TV = belonging(videos_T, len(video_VE), words), text_TE @ video_VE.T
    finite = bool(np.isfinite(similarity_TV).all())
    if not finite:
        complain("retrieve: some features of the evaluation are not finite, so nothing is found")
        similarity_TV = np.zeros_like(similarity_TV)
    found: dict[str, Any] = {
        "text_to_video": text_to_video(similarity_TV, belongs_TV),
        "video_to_text": video_to_text(similarity_TV, belongs_TV, videos_T, words),
    }
    figures = {f"held_out_{way}_{name}": value for way, each in found.items() for name, value in each.figures().items()}
    figures["held_out_chance_r1"] = float(belongs_TV.mean())
    return figures if finite else dict.fromkeys(figures, math.nan)


def held_out_pairs(
    stage: ClipStage, ranks: Ranks, run: Path, manifest: Manifest, captions: Captions, folder: TextFolder
) -> list[Evaluator]:
    """If `--evaluate-every` asks for it; the weights with which most texts find their video first are kept."""
    if not (every := stage.config.evaluate_every):
        return []
    return [Evaluator(every, HeldOutPairs(stage, ranks, run, manifest, captions, folder), best=BEST)]
