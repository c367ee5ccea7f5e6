"""Tubes: the same positions are hidden in every frame (VideoMAE V1, section 3.2), the masks of both papers' encoders."""

import numpy as np

from pipeline import keyed
from pipeline.sampling.masks.choice import Grid, choose


def tube_masks(keys: np.ndarray, grid: Grid, mask_ratio: float, arithmetic: int = 2) -> np.ndarray:
    """Keys (n,) -> bool (n, N), True = masked: int(ratio · h · w) of the positions, truncated as in the official code.

    `arithmetic` 1, of older runs: the noise of tube i is mix(key, i).
    """
    time, rows, columns = grid
    purpose = () if arithmetic == 1 else (keyed.TUBES,)
    noise = keyed.mix(keys[:, None], *purpose, np.arange(rows * columns))
    return np.tile(choose(noise, int(mask_ratio * rows * columns)), (1, time))
