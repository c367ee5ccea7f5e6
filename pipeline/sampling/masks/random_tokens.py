"""Tokens one by one: V1's Table 2b for the encoder (75 % hidden), V2's Table 1 for the decoder (half left out)."""

import numpy as np

from pipeline import keyed
from pipeline.sampling.masks.choice import Grid, choose


def random_masks(keys: np.ndarray, grid: Grid, mask_ratio: float) -> np.ndarray:
    """Keys (n,) -> bool (n, N), True = masked: int(ratio · N) tokens, anywhere."""
    num_tokens = grid[0] * grid[1] * grid[2]
    noise = keyed.mix(keys[:, None], keyed.HIDDEN, np.arange(num_tokens))
    return choose(noise, int(mask_ratio * num_tokens))
