"""Clips and their captions as a model sees them, and how well they find each other.

V clips, T texts, E width of the space.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.nn.functional import normalize

from pipeline.captions import Captions
from pipeline.console import complain
from pipeline.loader import ClipLoader
from train.accuracy.retrieval import Belonging, groups, places, same_words, summary
from train.augmentation import on_device
from train.compute.parallel import Ranks
from train.retrieval.text_folder import TextFolder

AT_ONCE = 1 << 25  # similarities: 128 MiB
WAYS, CHANCE = ("text_to_video", "video_to_text"), "chance_r1"
NAMES = tuple(summary(np.ones(1, np.int64), np.ones(1)).figures())


@dataclass(frozen=True, slots=True)
class Pairs:
    """On every rank all of them."""

    rows: np.ndarray
    """Of the clips, int64 (V,)."""
    clip_features: np.ndarray
    """Of length 1, float32 (V, E)."""
    texts: Sequence[str]
    clip_of_text: np.ndarray
    """Which of the clips it was written for, int64 (T,)."""
    text_features: np.ndarray
    """Of length 1, float32 (T, E)."""

    def figures(self, ranks: Ranks) -> Mapping[str, float]:
        """ "text_to_video_r1" and so on of both directions, and "chance_r1", what chance would find first; NaN, which is never
        the best, where no clip was decoded or features are not finite. Ranks share the queries; all call it."""
        V, T = len(self.rows), len(self.texts)
        finite = bool(np.isfinite(self.clip_features).all() and np.isfinite(self.text_features).all())
        if not (T and finite):
            if ranks.rank == 0:
                why = "some features are not finite" if T else "no clip could be decoded"
                complain(f"retrieve: {why}, so nothing is found in this evaluation")
            return dict.fromkeys([*(f"{way}_{name}" for way in WAYS for name in NAMES), CHANCE], math.nan)
        belonging, figures = Belonging(self.clip_of_text, V, self.texts), dict[str, float]()
        texts, clips = self.text_features, self.clip_features
        for way, query_QE, answer_AE, belongs, group_A in (
            (WAYS[0], texts, clips, belonging.of_texts, np.arange(V)),
            (WAYS[1], clips, texts, belonging.of_videos, groups(self.clip_of_text, V, self.texts)),
        ):
            mine = np.arange(ranks.rank, len(query_QE), ranks.world_size)
            found = [places(query_QE[some] @ answer_AE.T, belongs(some), group_A) for some in in_turns(mine, len(answer_AE))]
            each = [part for parts in ranks.gather(found) for part in parts]
            rank_Q, precision_Q = (np.concatenate(parts) for parts in zip(*each, strict=True))
            figures |= {f"{way}_{name}": value for name, value in summary(rank_Q, precision_Q).figures().items()}
        right = sum(int(belonging.of_texts(some).sum()) for some in in_turns(np.arange(T), V))
        return figures | {CHANCE: right / (T * V)}


def in_turns(queries: np.ndarray, answers: int) -> list[np.ndarray]:
    """As many as have `AT_ONCE` similarities with the answers, one at least."""
    return np.array_split(queries, -(-len(queries) * answers // AT_ONCE) or 1)


def seen(model: nn.Module, loader: ClipLoader) -> Iterator[tuple[list[int], list[str], np.ndarray]]:
    """Of every batch of a pass the rows and keys of the clips that could be decoded, and their features of length 1, float32
    (n, E). Every rank makes as many forward passes as the others."""
    for batch in loader:
        video_BE, _, _ = model(batch.views)
        found_BE = normalize(video_BE.float(), dim=1).cpu().numpy()
        there = batch.weight.bool().cpu().numpy()
        places = np.flatnonzero(there).tolist()
        yield batch.rows.numpy()[there].tolist(), [batch.keys[place] for place in places], found_BE[there]


def paired(
    model: nn.Module,
    folder: TextFolder,
    captions: Captions,
    clips: tuple[Sequence[int], np.ndarray],
    ranks: Ranks,
    at_once: int,
) -> Pairs:
    """Rows (n,) and features (n, E) of this rank's clips -> all ranks' clips, with all their captions. All ranks call it, and
    make as many forward passes, of `at_once` texts at most."""
    parts = ranks.gather(clips)
    rows, video_VE = np.concatenate([np.array(part, np.int64) for part, _ in parts]), [each for _, each in parts if len(each)]
    whole_VE = np.concatenate(video_VE) if video_VE else np.empty((0, 0), np.float32)
    order = np.argsort(rows)
    rows, whole_VE = rows[order], whole_VE[order] if len(order) else whole_VE
    written = [(place, text) for place, row in enumerate(rows.tolist()) for text in captions.of(row)]
    texts, videos_T = [text for _, text in written], np.array([place for place, _ in written], np.int64)
    same_T = same_words(texts)  # the same words are read once
    different = [texts[place] for place in np.unique(same_T, return_index=True)[1].tolist()]
    return Pairs(rows, whole_VE, texts, videos_T, read(model, folder, different, ranks, at_once)[same_T])


def read(model: nn.Module, folder: TextFolder, texts: Sequence[str], ranks: Ranks, at_once: int) -> np.ndarray:
    """Features of all texts, of length 1, float32 (T, E), each made by one rank."""
    if not texts:
        return np.empty((0, 0), np.float32)
    device, mine = ranks.device, texts[ranks.rank :: ranks.world_size]
    longest = -(-len(texts) // ranks.world_size)  # of a rank's share: all make as many passes
    at_once = min(at_once, longest)
    found: list[Any] = []
    for first in range(0, longest, at_once):
        some = [*mine[first : first + at_once]]
        tokens = folder.tokens(some + [texts[0]] * (at_once - len(some)))
        _, text_BE, _ = model(None, *(on_device(each, device) for each in tokens))
        found.append(normalize(text_BE.float(), dim=1).cpu().numpy()[: len(some)])
    parts = ranks.gather(np.concatenate(found))
    whole = np.empty((len(texts), parts[0].shape[1]), np.float32)
    for rank, part in enumerate(parts):
        whole[rank :: ranks.world_size] = part
    return whole
