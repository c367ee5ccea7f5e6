"""How well texts find their videos, and videos their texts: recall at 1, 5 and 10, median and mean rank, mean average
precision.

Of equal similarities those that do not belong come first: a model that makes everything alike finds nothing. (Of the public
codes, frozen-in-time takes the best rank, with which such a model is always right, and CLIP4Clip counts every equal pair.) A
video may have several texts: of each other video only the one most like it stands before them (CLIP4Clip). And a text may be
that of several videos, each of which is then right.

T texts and V videos; Q queries and A answers are either.
"""

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
    return _retrieved(similarity_TV, belongs_TV, np.arange(similarity_TV.shape[1]))


def video_to_text(
    similarity_TV: np.ndarray, belongs_TV: np.ndarray, videos_T: np.ndarray, texts: list[str] | None = None
) -> Retrieval:
    """Of every video the texts, where text t was written for the video in place `videos_T[t]`. Where the `texts` are given, one
    that several videos have in the same words stands before others once, not once for each of them. Raises ValueError as
    `text_to_video` does."""
    group_T = np.asarray(videos_T)
    if texts is not None:
        _, same_T, number = np.unique(texts, return_inverse=True, return_counts=True)
        group_T = np.where(number[same_T] > 1, len(belongs_TV.T) + same_T, group_T)
    return _retrieved(similarity_TV.T, belongs_TV.T, group_T)


def belonging(videos_T: np.ndarray, number: int, texts: list[str] | None = None) -> np.ndarray:
    """Which of so many videos a text belongs to -> bool (T, V): the one that it was written for and, where the `texts` are
    given, all that have one of the same words."""
    videos_T = np.asarray(videos_T)
    same_T = videos_T if texts is None else np.unique(texts, return_inverse=True)[1]
    belongs_XV = np.zeros((int(same_T.max(initial=-1)) + 1, number), np.bool_)
    belongs_XV[same_T, videos_T] = True
    return belongs_XV[same_T]


def _retrieved(similarity_QA: np.ndarray, belongs_QA: np.ndarray, group_A: np.ndarray) -> Retrieval:
    if similarity_QA.shape != belongs_QA.shape or similarity_QA.ndim != 2:
        raise ValueError(f"similarities {similarity_QA.shape} and what belongs {belongs_QA.shape} must be of texts and videos")
    if not len(similarity_QA):
        raise ValueError("there is nothing that could be looked for")
    if not np.isfinite(similarity_QA).all():
        raise ValueError("there are similarities that are not finite; try --compute.precision fp32")
    if len(without := np.flatnonzero(~belongs_QA.any(1))):
        raise ValueError(f"{len(without)} of {len(belongs_QA)} queries have no answer, such as that in place {without[0]}")
    found = [_found(s_A, b_A, group_A) for s_A, b_A in zip(similarity_QA, belongs_QA, strict=True)]
    rank_Q, precision_Q = (np.array(each) for each in zip(*found, strict=True))
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
