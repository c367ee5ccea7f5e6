"""What a target is."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from model.config import ModelConfig, TokenMethod
from train.stage import Frozen


class Target(Protocol):
    """Made of the student's sizes, `--compute.tokens`, and the weights of a teacher, which a target without one refuses."""

    values: int
    """Numbers to be predicted of a token."""
    gmac: float
    """Products of its frozen models, of a view, in units of 10⁹."""
    parameters: int
    """Of its frozen models."""

    def __init__(self, config: ModelConfig, tokens: TokenMethod, teacher: str | None) -> None: ...

    def frozen(self) -> Mapping[str, Frozen]:
        """The models it runs; on the meta device."""
        ...

    def __call__(
        self, views_BTHWC: Tensor, visible_idx: Tensor, target_idx: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Views uint8, indices (B, V) and (B, L) -> patches (B, V, P) in `dtype`, the encoder's input, and targets
        (B, L, values), float32."""
        ...
