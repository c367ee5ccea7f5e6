"""Of segments that say the same the best ones: Soft-NMS (Bodla et al., 2017) in one dimension, as ActionFormer does it.

The greedy choice is one after the other by nature. What is vectorised is all that happens between two choices, and all classes
of a video choose at once: the loop is as long as the class with most segments, not as their sum.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["soft", "linear", "hard", "none"]
THICK = 1e-6  # added to the length of every segment


@dataclass(frozen=True, kw_only=True, slots=True)
class Suppression:
    """How it is done. Defaults: ActionFormer on THUMOS14."""

    method: Method = "soft"
    """"soft" lowers scores by the Gaussian of the overlap, "linear" by it where it reaches `overlap`, "hard" drops those;
    "none" keeps all."""
    overlap: float = 0.1
    """IoU; the Gaussian does without."""
    sigma: float = 0.5
    """Width of the Gaussian."""
    least_score: float = 0.001
    """What falls below is dropped."""
    most: int = 200
    """Segments that are kept, of each class and, again, of the video."""
    per_class: bool = True
    """Whether only segments of one class suppress each other."""
    voting: float = 0.7
    """Where classes do not matter: every kept segment becomes the mean of all that overlap it so much; 0 leaves them."""

    def __post_init__(self) -> None:
        for name in ("overlap", "least_score", "voting"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be 0 to 1")
        if not self.sigma > 0:
            raise ValueError(f"sigma {self.sigma} must be over 0")
        if self.most < 1:
            raise ValueError(f"most {self.most} must be at least 1")


def suppressed(segments_n2: Tensor, scores_n: Tensor, labels_n: Tensor, how: Suppression) -> tuple[Tensor, Tensor, Tensor]:
    """Of one video -> what is kept, the best first. On the CPU: a step of the loop is too little for a GPU."""
    segments, scores, labels = segments_n2.float().cpu(), scores_n.float().cpu(), labels_n.cpu()
    if how.method != "none" and len(segments):
        groups = labels if how.per_class else torch.zeros_like(labels)
        kept, lowered = chosen(segments, scores, groups, how)
        voted = segments[kept]
        if how.voting > 0 and not how.per_class:
            voted = by_votes(voted, segments, scores, how.voting)
        segments, scores, labels = voted, lowered, labels[kept]
    best = scores.sort(descending=True, stable=True).indices[: how.most]
    return segments[best], scores[best], labels[best]


def chosen(segments: Tensor, scores: Tensor, groups: Tensor, how: Suppression) -> tuple[Tensor, Tensor]:
    """-> places of those kept (m,), group by group in the order of choice, and their scores. Groups do not know each other."""
    if how.method == "hard":
        alive = (scores > how.least_score).nonzero()[:, 0]
        segments, scores, groups = segments[alive], scores[alive], groups[alive]
    else:
        alive = torch.arange(len(scores))
    _, group = groups.unique(return_inverse=True)
    order = group.argsort(stable=True)
    counts = group.bincount()
    if not len(counts):
        return alive, scores
    first = counts.cumsum(0) - counts
    place = torch.arange(len(order)) - first[group[order]]
    table = torch.full((len(counts), int(counts.max())), -1)  # (G, N): places, -1 where a group has no more
    table[group[order], place] = order
    there = table >= 0
    begin_GN, end_GN = (segments[table, side] for side in (0, 1))
    length_GN = end_GN - begin_GN + THICK
    left_GN = torch.where(there, scores[table], -1.0)
    rows, kept, lowered = torch.arange(len(counts)), [], []
    for _ in range(min(table.shape[1], how.most)):
        score_G, best_G = left_GN.max(1)
        if not bool((score_G >= 0).any()):
            break
        kept.append(torch.where(score_G >= 0, table[rows, best_G], -1))
        lowered.append(score_G)
        left_GN[rows, best_G] = -1.0
        common = torch.minimum(end_GN, end_GN[rows, best_G, None]) - torch.maximum(begin_GN, begin_GN[rows, best_G, None])
        common = common.clamp(min=0)
        iou_GN = common / (length_GN[rows, best_G, None] + length_GN - common)
        if how.method == "soft":
            left_GN = torch.where(left_GN >= 0, left_GN * torch.exp(-(iou_GN * iou_GN) / how.sigma), left_GN)
        else:
            factor = 1 - iou_GN if how.method == "linear" else torch.zeros_like(iou_GN)
            left_GN = torch.where((left_GN >= 0) & (iou_GN >= how.overlap), left_GN * factor, left_GN)
        least = how.least_score if how.method != "hard" else TINY_SCORE
        left_GN = torch.where(left_GN < least, -1.0, left_GN)
    kept_G, lowered_G = (torch.stack(each, 1).flatten() for each in (kept, lowered))
    return alive[kept_G[kept_G >= 0]], lowered_G[kept_G >= 0]


TINY_SCORE = 1e-30  # what "hard" leaves of a score is 0


def by_votes(kept_m2: Tensor, segments_n2: Tensor, scores_n: Tensor, overlap: float) -> Tensor:
    """Each kept segment -> the mean of all that overlap it by at least `overlap`, by score times IoU. (m, 2)"""
    begin = torch.maximum(kept_m2[:, None, 0], segments_n2[:, 0])
    end = torch.minimum(kept_m2[:, None, 1], segments_n2[:, 1])
    common = (end - begin).clamp(min=0)
    lengths = (kept_m2[:, 1] - kept_m2[:, 0])[:, None] + segments_n2[:, 1] - segments_n2[:, 0]
    iou_mn = common / (lengths - common)
    votes_mn = (iou_mn >= overlap) * scores_n * iou_mn
    return votes_mn / votes_mn.sum(1, keepdim=True) @ segments_n2


def fused(
    scores_n: Tensor, segments_n2: Tensor, video_scores_K: Tensor, *, classes: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments without a class, the best first, and what somebody says of the whole video -> scores, segments, labels: each of
    the first `most` for each of the video's best `classes`, with the square root of the product of the two."""
    best_k = video_scores_K.argsort(descending=True, stable=True)[:classes]
    scores, segments = scores_n[:most], segments_n2[:most]
    together = (video_scores_K[best_k, None] * scores).sqrt().flatten()
    return together, segments.repeat(len(best_k), 1), best_k.repeat_interleave(len(scores))
