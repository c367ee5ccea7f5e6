"""Running cells: the decoder's masks of VideoMAE V2, section 3.3, as the official code draws them."""

import functools

import numpy as np

from pipeline import keyed
from pipeline.sampling.masks.choice import Grid

CELL_MASKED = {0.25: 1, 0.5: 2, 0.75: 3}  # masked positions of each 2 x 2 cell


def running_cell_masks(keys: np.ndarray, grid: Grid, mask_ratio: float) -> np.ndarray:
    """Keys (n,) -> bool (n, N), True = masked: one of the four patterns. Raises ValueError, see `patterns`."""
    return patterns(grid, mask_ratio)[keyed.below(keys, 4)]


@functools.cache
def patterns(grid: Grid, mask_ratio: float) -> np.ndarray:
    """The four running-cell masks -> bool (4, N), True = masked. Which of them a view gets is the only randomness.

    A 2 x 2 cell, filled from a queue of k ones and 4 - k zeros, tiles the frame; the queue advances by one from frame to
    frame, beginning at rotation (phase + 1), so that every position is decoded equally often in any 4 consecutive frames.
    Raises ValueError for a ratio that is not of quarters, and for an odd grid.
    """
    time, rows, columns = grid
    if mask_ratio not in CELL_MASKED:
        raise ValueError(
            f"decoder_mask_ratio {mask_ratio} is not possible with running cells of 2 x 2 tokens; "
            f"allowed are 0 (decode all that the encoder does not see), {', '.join(map(str, CELL_MASKED))}; random and frame "
            "masks take others"
        )
    if rows % 2 or columns % 2:
        raise ValueError(
            f"running-cell masks tile a frame with 2 x 2 cells, which a grid of {rows} x {columns} tokens does not allow; "
            "make input_size an even multiple of patch_size, or decoder_mask_ratio 0"
        )
    queue = np.arange(4) < CELL_MASKED[mask_ratio]
    masks = np.empty((4, time, rows, columns), bool)
    for phase in range(4):
        for t in range(time):
            cell = np.roll(queue, -((phase + t + 1) % 4)).reshape(2, 2)
            masks[phase, t] = np.tile(cell, (rows // 2, columns // 2))
    masks.setflags(write=False)
    return masks.reshape(4, -1)
