"""Actions as segments of time: the points that answer for them, which point answers for which, and back from what the network
says to segments (ActionFormer, section 3.3).

P points of all levels, N actions, K classes. Time is counted in steps of the features, unless it says seconds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

TIE = 1e-3  # steps: actions that differ less in length are equally long


def points_of(num_steps: int, strides: Sequence[int], ranges: Sequence[tuple[float, float]]) -> list[Tensor]:
    """float32 (P_l, 4) of each level: time, least and largest distance that it regresses, stride."""
    levels = []
    for stride, (least, largest) in zip(strides, ranges, strict=True):
        time = torch.arange(0, num_steps, stride, dtype=torch.float32)
        rest = torch.tensor([least, largest, stride], dtype=torch.float32).expand(len(time), 3)
        levels.append(torch.cat([time[:, None], rest], 1))
    return levels


def assign(
    points_P4: Tensor, segments_N2: Tensor, labels_N: Tensor, num_classes: int, radius: float | None
) -> tuple[Tensor, Tensor]:
    """-> float32 (P, K), the classes of each point's action, none for background, and (P, 2), the distances to its begin and
    end in the point's stride.

    A point answers for the shortest action that it lies in, within `radius` strides of the middle (None: anywhere in it), if
    the farther end is in its range. Of several equally short ones it has all classes, and the distances of the first.
    """
    if not len(segments_N2):
        return points_P4.new_zeros(len(points_P4), num_classes), points_P4.new_zeros(len(points_P4), 2)
    time_P1, least_P1, largest_P1, stride_P1 = points_P4.split(1, 1)
    begin_N, end_N = segments_N2.unbind(1)
    left_PN, right_PN = time_P1 - begin_N, end_N - time_P1
    if radius is None:
        inside_PN = torch.minimum(left_PN, right_PN) > 0
    else:
        middle_N = 0.5 * (begin_N + end_N)
        first_PN = torch.maximum(middle_N - stride_P1 * radius, begin_N)
        last_PN = torch.minimum(middle_N + stride_P1 * radius, end_N)
        inside_PN = torch.minimum(time_P1 - first_PN, last_PN - time_P1) > 0
    farther_PN = torch.maximum(left_PN, right_PN)
    answers_PN = inside_PN & (farther_PN >= least_P1) & (farther_PN <= largest_P1)
    length_PN = torch.where(answers_PN, end_N - begin_N, torch.inf)
    shortest_P, which_P = length_PN.min(1)
    taken_PN = answers_PN & (length_PN <= shortest_P[:, None] + TIE)
    classes_PK = (taken_PN.float() @ one_hot(labels_N, num_classes).float()).clamp(0, 1)
    distances_P2 = torch.stack([left_PN, right_PN], 2)[torch.arange(len(which_P), device=which_P.device), which_P]
    return classes_PK, distances_P2 / stride_P1


def decode(
    points: Sequence[Tensor],
    masks: Sequence[Tensor],
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    *,
    least_score: float,
    most: int,
    least_steps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one video, level by level: points (P, 4), masks (P,), logits (P, K), offsets (P, 2) -> segments (n, 2), scores (n,)
    and labels (n,), before any of them is suppressed.

    Of each level the `most` best pairs of point and class with more than `least_score`; without those not longer than
    `least_steps`.
    """
    found = []
    for points_P4, mask_P, logits_PK, offsets_P2 in zip(points, masks, logits, offsets, strict=True):
        scores = (logits_PK.sigmoid() * mask_P[:, None]).flatten()
        among = (scores > least_score).nonzero()[:, 0]
        scores, best = scores[among].sort(descending=True)
        scores, among = scores[:most], among[best[:most]]
        at, labels = among // logits_PK.shape[1], among % logits_PK.shape[1]
        time, stride = points_P4[at, 0], points_P4[at, 3]
        segments = torch.stack([time - offsets_P2[at, 0] * stride, time + offsets_P2[at, 1] * stride], 1)
        long = segments[:, 1] - segments[:, 0] > least_steps
        found.append((segments[long], scores[long], labels[long]))
    segments, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return segments, scores, labels


def to_steps(seconds: Tensor, stride: float, num_frames: float, fps: float) -> Tensor:
    """Seconds -> steps of features of `num_frames` frames every `stride` frames. A step stands at the middle of its frames."""
    return seconds * fps / stride - 0.5 * num_frames / stride


def to_seconds(steps: Tensor, stride: float, num_frames: float, fps: float, duration: float) -> Tensor:
    """The reverse, within the video."""
    return ((steps * stride + 0.5 * num_frames) / fps).clamp(0.0, duration)


def inside_window(
    segments_N2: Tensor, labels_N: Tensor, start: int, length: int, least_share: float, margin: float
) -> tuple[Tensor, Tensor]:
    """What is left of actions in the window of `length` steps from `start` on, `margin` steps more at each end, counted from
    its first step. An action of which less than `least_share` is in it is left out."""
    begin_N = segments_N2[:, 0].clamp(min=start - margin)
    end_N = segments_N2[:, 1].clamp(max=start + length + margin)
    share_N = (end_N - begin_N).clamp(min=0) / (segments_N2[:, 1] - segments_N2[:, 0]).abs()
    kept_N = share_N >= least_share
    return torch.stack([begin_N, end_N], 1)[kept_N] - start, labels_N[kept_N]
