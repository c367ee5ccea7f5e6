"""Actions do not exclude each other: a box has a probability of each. n boxes, C classes."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def box_loss(logits_nC: Tensor, labels_nC: Tensor) -> Tensor:
    """Binary cross entropy, the mean over the classes, summed over the boxes -> () (official: the mean over all, times the
    number of boxes, so that a crowd weighs more than one person); without boxes 0. Labels are of any type, 1 for what is
    done."""
    labels_nC = labels_nC.to(logits_nC.dtype)
    return binary_cross_entropy_with_logits(logits_nC, labels_nC, reduction="sum") / logits_nC.shape[1]


def action_scores(logits_nC: Tensor, person_n: Tensor) -> Tensor:
    """What a box counts for in a test (n, C): the probability of an action times how sure the detector of people was."""
    return logits_nC.sigmoid() * person_n[:, None]
