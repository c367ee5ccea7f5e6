"""Several linear classifiers of the same features: a probe's. B views, D width, G heads, C classes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model.initialization import initial_value
from model.trainable import Trainable


class LinearHeads(Trainable):
    """Features -> logits of every head, in one product. `heads.I.weight` (C, D) and `heads.I.bias` (C,) are parameters of their
    own, so that each head may have an optimizer's group of its own."""

    def __init__(self, dim: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(num_heads))

    def parts(self) -> dict[str, nn.Module]:
        return {"heads": self}

    def initial_value(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        """The same for every head, a classifier's: what it becomes does not depend on the others."""
        return initial_value(f"head.{name.rpartition('.')[2]}", shape, seed)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B, G C), head by head. (FSDP2 wants no view of it.)"""
        weight_GCD = torch.stack([head.get_parameter("weight") for head in self.heads])
        bias_GC = torch.stack([head.get_parameter("bias") for head in self.heads])
        return linear(x_BD, weight_GCD.flatten(0, 1), bias_GC.flatten())
