"""Whole frames: V1's Table 2b for the encoder (75 % hidden), V2's Table 1 for the decoder (half left out)."""

import numpy as np

from pipeline import keyed
from pipeline.sampling.masks.choice import Grid, choose


def frame_masks(keys: np.ndarray, grid: Grid, mask_ratio: float) -> np.ndarray:
    """Keys (n,) -> bool (n, N), True = masked: all of int(ratio · T') tubelets in time, which a view draws for itself."""
    time, rows, columns = grid
    noise = keyed.mix(keys[:, None], keyed.HIDDEN, np.arange(time))
    return np.repeat(choose(noise, int(mask_ratio * time)), rows * columns, axis=1)
