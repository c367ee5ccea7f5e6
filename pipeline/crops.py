"""Crop boxes as arithmetic: MultiScaleCrop (Table 10; the official class inherited from TSN).

A box is (x, y, width, height) in pixels of the displayed frame. All frames of a view share it.
"""

import numpy as np

from pipeline import keyed

SCALES = (1.0, 0.875, 0.75, 0.66)  # of the shorter side
# (width, height) by index into SCALES: at most one step apart, so the aspect ratio stays within 3/4 .. 4/3 or so
PAIRS = np.array([(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1])
# corners, centre, middles of the edges, middles of the quadrants; in quarters of the free space, (x, y)
ANCHORS = np.array([(x, y) for x in range(5) for y in range(5) if x % 2 == y % 2])


def crop_sides(width: np.ndarray, height: np.ndarray, size: int) -> np.ndarray:
    """Frame sizes (n,) -> the four side lengths (n, 4) a crop chooses from, snapped to `size` when less than 3 px off."""
    base = np.minimum(width, height)
    sides = (base[:, None] * np.array(SCALES)).astype(np.int64)
    return np.where(np.abs(sides - size) < 3, size, sides)


def anchor_offsets(width: np.ndarray, height: np.ndarray, box: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """Top left corners (n, 2) for boxes (n, 2) of (width, height) at anchors (n, 2)."""
    free = np.stack([width, height], axis=1) - box
    return anchor * (free // 4)


def multi_scale_crop(keys: np.ndarray, width: np.ndarray, height: np.ndarray, size: int) -> np.ndarray:
    """Keys (n,), frame sizes (n,), the side of the view -> boxes (n, 4) int64: one of 10 shapes at one of 13 places."""
    sides = crop_sides(width, height, size)
    pair = PAIRS[keyed.below(keyed.mix(keys, 0), len(PAIRS))]
    box = np.take_along_axis(sides, pair, axis=1)
    # a side snapped up to `size` may exceed the frame by up to 2 px (the official code then pads with black)
    box = np.minimum(box, np.stack([width, height], axis=1))
    anchor = ANCHORS[keyed.below(keyed.mix(keys, 1), len(ANCHORS))]
    return np.concatenate([anchor_offsets(width, height, box, anchor), box], axis=1)
