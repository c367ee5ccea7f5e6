"""What a trainer asks of a model."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from model.initialization import initial_value
from model.layers import PatchEmbed, reset_buffers


class Trainable(nn.Module):
    """A module that the trainer shards, initialises and trains. A model of several parts, or with initial values of its own,
    says so."""

    def parts(self) -> Mapping[str, nn.Module]:
        """{"encoder": module, "decoder": module}: what has a precision of its own, in forward order, by the names there
        (`Precision`); what is in none belongs to the last. A part's `blocks` are sharded, compiled and checkpointed one by
        one."""
        return {"encoder": self}

    def initial_value(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        """Of a parameter, whole, float32 on the CPU: a function of these three alone."""
        embed = next((module for module in self.modules() if isinstance(module, PatchEmbed)), None)
        # of the shape alone: taking a row of a sharded weight is an exchange of all ranks, for each parameter
        return initial_value(name, shape, seed, None if embed is None else math.prod(embed.proj.weight.shape[1:]))

    def reset_buffers(self) -> None:
        """Compute what no checkpoint holds, after the model has left the meta device."""
        reset_buffers(self)


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """In forward order; a part may have none."""
    return list(getattr(part, "blocks", ()))
