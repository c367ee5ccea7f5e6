"""Labels as distributions over the classes: smoothed, mixed, or a teacher's, and the losses against them.

n views, C classes. A view without a label, -1, has zeros everywhere, and adds nothing to the loss.
"""

import torch
from torch import Tensor
from torch.nn.functional import kl_div


def soft_labels(labels_n: Tensor, num_classes: int, smoothing: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Labels (n,) int64 -> (n, C): `smoothing` is the share that goes to all classes alike, the label's own included."""
    every = smoothing / num_classes
    soft_nC = torch.full((len(labels_n), num_classes), every, dtype=dtype, device=labels_n.device)
    soft_nC.scatter_(1, labels_n.clamp(min=0)[:, None], 1 - smoothing + every)
    return soft_nC * (labels_n >= 0)[:, None]


def soft_cross_entropy(logits_nC: Tensor, soft_nC: Tensor) -> Tensor:
    """The mean over all views -> (). With `soft_labels` it is the label-smoothing loss of timm and of torch."""
    return -(soft_nC * logits_nC.log_softmax(1)).sum(1).mean()


def distillation_loss(student_nC: Tensor, teacher_nC: Tensor, temperature: float, squared: bool) -> Tensor:
    """KL(teacher || student) of logits divided by a temperature, the mean over all views -> (); `squared`: times temperature²,
    with which the gradient's size does not hang on it (Hinton et al., 2015)."""
    student_nC, teacher_nC = ((logits_nC / temperature).log_softmax(1) for logits_nC in (student_nC, teacher_nC))
    loss = kl_div(student_nC, teacher_nC, reduction="batchmean", log_target=True)
    return loss * temperature**2 if squared else loss
