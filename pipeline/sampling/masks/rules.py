"""The rules by name. A new one is a file beside this one and its name here, twice: as a choice, and in the table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.sampling.masks.choice import Grid
from pipeline.sampling.masks.frame import frame_masks
from pipeline.sampling.masks.multi_block import multi_block_masks
from pipeline.sampling.masks.random_tokens import random_masks
from pipeline.sampling.masks.running_cell import running_cell_masks
from pipeline.sampling.masks.tube import tube_masks

MaskRule = Literal["tube", "random", "frame", "multi-block"]
DecoderMaskRule = Literal["running-cell", "random", "frame"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How masks are drawn, and of what they are made."""

    draw: Callable[[np.ndarray, Grid, float], np.ndarray]
    """Keys (n,) uint64, grid, ratio -> bool (n, N), True = masked, equally many for every key: shapes are constant."""
    of: Literal["tokens", "tubes", "frames", "cells"] = "tokens"
    """What is masked whole: of tubes, frames and cells the number of loss tokens may be known, see `token_counts`."""


RULES: dict[MaskRule, Rule] = {
    "tube": Rule(tube_masks, of="tubes"),
    "random": Rule(random_masks),
    "frame": Rule(frame_masks, of="frames"),
    "multi-block": Rule(multi_block_masks, of="tubes"),
}
DECODER_RULES: dict[DecoderMaskRule, Rule] = {
    "running-cell": Rule(running_cell_masks, of="cells"),
    "random": RULES["random"],
    "frame": RULES["frame"],
}
