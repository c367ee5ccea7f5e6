"""k-NN: a clip is taken for what the training clips most like it are, by DINO's protocol: cosine similarity, each of the k
nearest votes for its class with exp(similarity / temperature).

N training clips, M others, D width of a feature, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from train.accuracy.accuracy import TOP, places

AT_ONCE = 1 << 26  # similarities


@dataclass(frozen=True, slots=True)
class Vote:
    """What k neighbours found."""

    k: int
    of: int
    """Neighbours that there were: all training clips, if they are fewer than k."""
    top1: float
    """A share of the clips."""
    top5: float
    """Those whose class is among the first five, or, of fewer than five neighbours, the first so many. Classes without a vote
    come last, in their order; of five classes and fewer, five neighbours find all."""


def votes(
    train_ND: Tensor,
    train_labels_N: Tensor,
    others_MD: Tensor,
    labels_M: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> list[Vote]:
    """Of each k, on the device of the features. Memory hangs on neither N nor M beyond the features: similarities are made
    `AT_ONCE` at a time, as few as of one clip. (The original makes a hundredth of M at a time, and none of fewer than 100.)

    Raises ValueError if there is no clip, for a temperature or a k that cannot be, and for features that are not finite.
    """
    if not (len(train_ND) and len(others_MD)):
        raise ValueError(f"{len(train_ND)} training clips and {len(others_MD)} others: k-NN takes at least one of each")
    if not temperature > 0:
        raise ValueError(f"--temperature {temperature} must be over 0")
    if wrong := [k for k in ks if k < 1]:
        raise ValueError(f"--k {wrong[0]} must be at least 1")
    train_ND, others_MD = normalize(train_ND, dim=1), normalize(others_MD, dim=1)
    if not (train_ND.isfinite().all() and others_MD.isfinite().all()):
        raise ValueError("there are features that are not finite; try --precision fp32")
    of = {k: min(k, len(train_ND)) for k in ks}
    right: dict[int, list[Tensor]] = {k: [] for k in ks}
    within: dict[int, list[Tensor]] = {k: [] for k in ks}
    share = max(1, AT_ONCE // len(train_ND))
    for some_mD, labels_m in zip(others_MD.split(share), labels_M.split(share), strict=True):
        nearest_mk, index_mk = (some_mD @ train_ND.T).topk(max(of.values()), sorted=True)
        classes_mk = train_labels_N[index_mk]
        weight_mk = ((nearest_mk - nearest_mk[:, :1]) / temperature).exp()  # by the nearest one's: no power is too large
        for k, there in of.items():
            votes_mC = weight_mk.new_zeros(len(some_mD), num_classes)
            votes_mC.scatter_add_(1, classes_mk[:, :there], weight_mk[:, :there])
            place_m = places(votes_mC, labels_m)
            right[k].append(place_m < 1)
            within[k].append(place_m < min(TOP, there))
    mean = {k: [float(torch.cat(each[k]).double().mean()) for each in (right, within)] for k in ks}
    return [Vote(k, of[k], *mean[k]) for k in ks]
