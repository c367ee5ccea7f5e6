"""How well texts find their videos, and videos their texts: recall at 1, 5 and 10, median and mean rank, mean average
precision.

Of equal similarities those that do not belong come first: a model that makes everything alike finds nothing. (Of the public
codes, frozen-in-time takes the best rank, with which such a model is always right, and CLIP4Clip counts every equal pair.) A
video may have several texts: of each other video only the one most like it stands before them (CLIP4Clip). And a text may be
that of several videos, each of which is then right.

T texts and V videos; Q queries and A answers are either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AT = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What the queries of one direction found."""

    recall: dict[int, float]
    """By k: the share of queries with an answer of theirs among the first k."""
    median_rank: float
    """Of a query's best answer, from 1; of an even number of queries the mean of the middle two."""
    mean_rank: float
    mean_precision: float
    """Of a query the mean, over its answers, of the share of answers of its own among all that stand as high. Texts count one
    by one; nothing is interpolated."""

    def figures(self) -> dict[str, float]:
        """By name: "r1", "r5", "r10", "median_rank", "mean_rank", "map"."""
        ranks = {"median_rank": self.median_rank, "mean_rank": self.mean_rank, "map": self.mean_precision}
        return {f"r{k}": share for k, share in self.recall.items()} | ranks


def text_to_video(similarity_TV: np.ndarray, belongs_TV: np.ndarray) -> Retrieval:
    """Of every text the videos. Similarities of any real type; `belongs_TV` is bool, see `belonging`. Raises ValueError if a
    text has no video, there is no text, or a similarity is not finite."""
    return summary(*places(similarity_TV, belongs_TV, np.arange(similarity_TV.shape[1])))


def video_to_text(
    similarity_TV: np.ndarray, belongs_TV: np.ndarray, videos_T: np.ndarray, texts: Sequence[str] | None = None
) -> Retrieval:
    """Of every video the texts, where text t was written for the video in place `videos_T[t]`. Where the `texts` are given, one
    that several videos have in the same words stands before others once, not once for each of them. Raises ValueError as
    `text_to_video` does."""
    return summary(*places(similarity_TV.T, belongs_TV.T, groups(np.asarray(videos_T), len(belongs_TV.T), texts)))


def belonging(videos_T: np.ndarray, number: int, texts: Sequence[str] | None = None) -> np.ndarray:
    """Which of so many videos a text belongs to -> bool (T, V): the one that it was written for and, where the `texts` are
    given, all that have one of the same words."""
    return Belonging(videos_T, number, texts).of_texts(np.arange(len(videos_T)))


class Belonging:
    """The same for some texts or videos at a time: the whole is too large for many."""

    def __init__(self, videos_T: np.ndarray, number: int, texts: Sequence[str] | None = None) -> None:
        self._videos_T, self._number = np.asarray(videos_T, np.int64), number
        self._same_T = self._videos_T if texts is None else same_words(texts)
        by_words, by_video = np.argsort(self._same_T, kind="stable"), np.argsort(self._videos_T, kind="stable")
        self._words = int(self._same_T.max(initial=-1)) + 1
        self._of_words = np.split(self._videos_T[by_words], np.searchsorted(self._same_T[by_words], np.arange(1, self._words)))
        self._of_video = np.split(self._same_T[by_video], np.searchsorted(self._videos_T[by_video], np.arange(1, number)))

    def of_texts(self, places: np.ndarray) -> np.ndarray:
        """Places of Q texts -> bool (Q, V)."""
        found_QV = np.zeros((len(places), self._number), np.bool_)
        for query, words in enumerate(self._same_T[places].tolist()):
            found_QV[query, self._of_words[words]] = True
        return found_QV

    def of_videos(self, places: np.ndarray) -> np.ndarray:
        """Places of Q videos -> bool (Q, T)."""
        found_QX = np.zeros((len(places), self._words), np.bool_)
        for query, video in enumerate(np.asarray(places).tolist()):
            found_QX[query, self._of_video[video]] = True
        return found_QX[:, self._same_T]


def same_words(texts: Sequence[str]) -> np.ndarray:
    """A number for each, int64 (T,), equal ones for the same words. (A NumPy array of texts is as wide as the longest.)"""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)


def groups(videos_T: np.ndarray, number: int, texts: Sequence[str] | None) -> np.ndarray:
    """What texts stand before others together, int64 (T,): those of one of so many videos and, where the `texts` are given, one
    that several videos have in the same words."""
    if texts is None:
        return videos_T
    same_T = same_words(texts)
    return np.where(np.bincount(same_T)[same_T] > 1, number + same_T, videos_T)


def places(similarity_QA: np.ndarray, belongs_QA: np.ndarray, group_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of some queries: the rank of the best answer, from 1, int64 (Q,), and the average precision, float64 (Q,). Answers of a
    group stand before others once."""
    if similarity_QA.shape != belongs_QA.shape or similarity_QA.ndim != 2:
        raise ValueError(f"similarities {similarity_QA.shape} and what belongs {belongs_QA.shape} must be of texts and videos")
    if not np.isfinite(similarity_QA).all():
        raise ValueError("there are similarities that are not finite; try --compute.precision fp32")
    if len(without := np.flatnonzero(~belongs_QA.any(1))):
        raise ValueError(f"{len(without)} of {len(belongs_QA)} queries have no answer, such as that in place {without[0]}")
    found = [_found(s_A, b_A, group_A) for s_A, b_A in zip(similarity_QA, belongs_QA, strict=True)]
    return np.array([rank for rank, _ in found], np.int64), np.array([precision for _, precision in found], np.float64)


def summary(rank_Q: np.ndarray, precision_Q: np.ndarray) -> Retrieval:
    """Of all queries' `places`. Raises ValueError if there is none."""
    if not len(rank_Q):
        raise ValueError("there is nothing that could be looked for")
    recall = {k: float((rank_Q <= k).mean()) for k in AT}
    return Retrieval(recall, float(np.median(rank_Q)), float(rank_Q.mean()), float(precision_Q.mean()))


def _found(similarity_A: np.ndarray, belongs_A: np.ndarray, group_A: np.ndarray) -> tuple[int, float]:
    """Of a query: the rank of its best answer, from 1, and the average precision."""
    own = np.sort(similarity_A[belongs_A])[::-1]
    others = np.sort(similarity_A[~belongs_A])
    above = len(others) - np.searchsorted(others, own, "left")  # as high as each answer, or higher
    before = len(np.unique(group_A[~belongs_A & (similarity_A >= own[0])]))
    number = np.arange(1, len(own) + 1)
    return before + 1, float((number / (number + above)).mean())
