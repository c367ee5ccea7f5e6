"""A running mean of the weights (`--ema`): smoother than the weights of any step, and often better."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class RunningMean:
    """Of a sharded model's parameters: on every rank of its own shards, float32, 4 bytes a parameter over the ranks of a
    copy."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """It begins with the weights as they are."""
        self._weights, self._decay = dict(model.named_parameters()), decay
        self.state = {name: parameter.detach().clone() for name, parameter in self._weights.items()}
        """By name; what a checkpoint holds of it, and fills."""

    @torch.no_grad()
    def update(self, taken: Tensor) -> None:
        """After a step; `taken` () is 1.0 if it was taken, else 0.0, and the mean stays. The host does not wait."""
        share = taken * (1 - self._decay)
        for name, mean in self.state.items():
            local(mean).lerp_(local(self._weights[name]), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean for its weights. It must be sharded when this begins, and is again when it ends."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, mean in self.state.items():
            ours, theirs = local(mean), local(self._weights[name])
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, of which a DTensor is a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
