"""Blocks: a few rectangles, large or small, hidden through all frames; what V-JEPA trains with.

V-JEPA hides the union of 8 blocks of 15 % of the frame, or of 2 of 70 %, and cuts what it keeps to the least of the batch.
Here a view draws one of the two sizes, and exactly int(ratio · h · w) positions are hidden: blocks are placed one after the
other until it is enough, and the last one gives its surplus back from one of its sides.
"""

import functools

import numpy as np

from pipeline import keyed
from pipeline.sampling.masks.choice import Grid

SCALES = np.array([0.15, 0.7])  # of the frame's area
ASPECT = (0.75, 1.5)  # height by width
# purposes of the draws from one view's key
SCALE, SIDE, ANCHOR, SHAPE, PLACE = range(5)


def multi_block_masks(keys: np.ndarray, grid: Grid, mask_ratio: float) -> np.ndarray:
    """Keys (n,) -> bool (n, N), True = masked: int(ratio · h · w) positions, the same in every frame.

    A block lies about a position that no block before it hides, so each hides more, also in the corners.
    """
    time, rows, columns = grid
    frame, area, places = np.array([rows, columns]), rows * columns, np.arange(max(rows, columns))
    keys = keyed.mix(keys, keyed.HIDDEN)
    scale = SCALES[keyed.below(keyed.mix(keys, SCALE), len(SCALES))]
    side = keyed.below(keyed.mix(keys, SIDE), 4)
    anchors = keyed.mix(keys[:, None], ANCHOR, np.arange(area))
    hidden = np.zeros((len(keys), area), bool)
    missing, block = np.full(len(keys), int(mask_ratio * area)), 0
    while (open := np.flatnonzero(missing)).size:
        aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * keyed.unit(keyed.mix(keys[open], SHAPE, block))
        sides = np.sqrt(np.stack([scale[open] * area * aspect, scale[open] * area / aspect], axis=1))
        sides = np.rint(sides).astype(np.int64).clip(1, frame)  # (n, 2) of height and width
        anchor = np.where(hidden[open], np.uint64(2**64 - 1), anchors[open]).argmin(axis=1)
        anchor = np.stack(np.divmod(anchor, columns), axis=1)
        low, high = np.maximum(anchor - sides + 1, 0), np.minimum(anchor, frame - sides)
        corner = low + keyed.below(keyed.mix(keys[open, None], PLACE, block, np.arange(2)), high - low + 1)
        inside = (places >= corner[:, :, None]) & (places < (corner + sides)[:, :, None])  # (n, 2, the longer side)
        new = (inside[:, 0, :rows, None] & inside[:, 1, None, :columns]).reshape(-1, area) & ~hidden[open]
        # from the drawn side on, until it is enough
        walk = walks(rows, columns)[side[open]]
        walked = np.take_along_axis(new, walk, axis=1)
        np.put_along_axis(new, walk, walked & (walked.cumsum(axis=1) <= missing[open, None]), axis=1)
        hidden[open] |= new
        missing[open] -= new.sum(axis=1)
        block += 1
    return np.tile(hidden, (1, time))


@functools.cache
def walks(rows: int, columns: int) -> np.ndarray:
    """The positions of a frame from top, left, bottom and right -> int64 (4, rows · columns)."""
    across = np.arange(rows * columns).reshape(rows, columns)
    ways = np.stack([across.reshape(-1), across.T.reshape(-1), across[::-1].reshape(-1), across.T[::-1].reshape(-1)])
    ways.setflags(write=False)
    return ways
