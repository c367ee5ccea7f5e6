"""What a localizer learns by: focal loss of the classes, distance-IoU loss of the distances; both in float32."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

ALPHA, GAMMA = 0.25, 2.0
TINY = 1e-8
LEAST_DISTANCES = 0.01  # of the loss, where the automatic weight divides by it


@dataclass(frozen=True, slots=True)
class SegmentLosses:
    """() float32 each."""

    classes: Tensor
    distances: Tensor
    whole: Tensor


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed over all, () float32 (Lin et al., 2017; alpha 0.25, gamma 2). Targets, of the logits' shape, are 0 to 1."""
    logits, targets = logits.float(), targets.float()
    probability = logits.sigmoid()
    entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = probability + targets - 2 * probability * targets  # 1 - the probability of what is right
    weight = ALPHA * targets + (1 - ALPHA) * (1 - targets)
    return (weight * entropy * wrong**GAMMA).sum()


def distance_iou_loss(offsets_n2: Tensor, targets_n2: Tensor) -> Tensor:
    """Of distances from a point to begin and end, and those that are right -> (n,) float32: one minus the overlap, plus the
    squared distance of the middles by the length of both together (Zheng et al., 2020, in one dimension)."""
    offsets_n2, targets_n2 = offsets_n2.float(), targets_n2.float()
    common = torch.minimum(offsets_n2, targets_n2).sum(1)
    union = offsets_n2.sum(1) + targets_n2.sum(1) - common
    around = torch.maximum(offsets_n2, targets_n2).sum(1)
    (left, right), (true_left, true_right) = offsets_n2.unbind(1), targets_n2.unbind(1)
    apart = 0.5 * (right - left - true_right + true_left)
    return 1 - common / union.clamp(min=TINY) + (apart / around.clamp(min=TINY)) ** 2


def segment_losses(
    mask_BP: Tensor,
    logits_BPK: Tensor,
    offsets_BP2: Tensor,
    classes_BPK: Tensor,
    distances_BP2: Tensor,
    *,
    normaliser: float | Tensor,
    smoothing: float = 0.0,
    weight: float = 1.0,
) -> SegmentLosses:
    """Of B videos, by the `normaliser`, a running mean of the number of points that answer for an action (`running_mean`).

    `smoothing` takes that share of each target and adds it divided by K + 1. The distances count `weight` times; with a weight
    of 0 or less as much as the classes do.
    """
    positive_BP = (classes_BPK.sum(2) > 0) & mask_BP
    targets_BPK = classes_BPK * (1 - smoothing) + smoothing / (classes_BPK.shape[2] + 1)
    classes = focal_loss(logits_BPK[mask_BP], targets_BPK[mask_BP]) / normaliser
    # none answers: the sum of nothing, whose gradient is zeros
    distances = distance_iou_loss(offsets_BP2[positive_BP], distances_BP2[positive_BP]).sum() / normaliser
    share = weight if weight > 0 else classes.detach() / distances.detach().clamp(min=LEAST_DISTANCES)
    return SegmentLosses(classes, distances, classes + distances * share)


def running_mean(before: float, positives: float) -> float:
    """The normaliser after a step whose videos have so many points that answer for an action."""
    return 0.9 * before + 0.1 * max(positives, 1.0)
