"""Crop boxes as arithmetic: MultiScaleCrop, RandomResizedCrop, and the crops of validation and tests.

A box is (x, y, width, height) in pixels of the displayed frame, int64; the decoder cuts it out and resizes it. All frames of
a view share it. Frames are at least 16 px wide and high.
"""

import numpy as np

from pipeline import keyed

SCALES = (1.0, 0.875, 0.75, 0.66)  # of the shorter side
# (width, height) by index into SCALES: at most one step apart, so the aspect ratio stays within 3/4 .. 4/3 or so
PAIRS = np.array([(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1])
# corners, centre, middles of the edges, middles of the quadrants; in quarters of the free space, (x, y)
ANCHORS = np.array([(x, y) for x in range(5) for y in range(5) if x % 2 == y % 2])
AREA = (0.08, 1.0)  # of the frame, and aspect ratio, both of RandomResizedCrop
ASPECT = (3 / 4, 4 / 3)
TRIES = 10
# purposes of the draws from one view's key: of a multi-scale crop, and of a random resized one
SHAPE, ANCHOR = range(2)
AREAS, ASPECTS, PLACE = range(3)


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
    """Keys (n,), frame sizes (n,), the side of the view -> boxes (n, 4): one of 10 shapes at one of 13 places.

    Pre-training, Table 10; the official class, inherited from TSN.
    """
    sides = crop_sides(width, height, size)
    pair = PAIRS[keyed.below(keyed.mix(keys, SHAPE), len(PAIRS))]
    box = np.take_along_axis(sides, pair, axis=1)
    # a side snapped up to `size` may exceed the frame by up to 2 px (the official code then pads with black)
    box = np.minimum(box, np.stack([width, height], axis=1))
    anchor = ANCHORS[keyed.below(keyed.mix(keys, ANCHOR), len(ANCHORS))]
    return np.concatenate([anchor_offsets(width, height, box, anchor), box], axis=1)


def random_resized_crop(keys: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Keys (n,), frame sizes (n,) -> boxes (n, 4): fine-tuning's RandomResizedCrop, with torchvision's arithmetic.

    Of 10 draws of an area (8 to 100 % of the frame) and an aspect ratio (log-uniform in 3/4 .. 4/3) the first that fits
    stands at a uniform place. If none fits: the largest centred box whose aspect ratio is allowed.
    """
    tries = np.arange(TRIES)
    area = (width * height)[:, None] * (AREA[0] + (AREA[1] - AREA[0]) * keyed.unit(keyed.mix(keys[:, None], AREAS, tries)))
    low, high = np.log(ASPECT)
    # rounded, because the last bit of an exponential differs between machines
    aspect = np.round(np.exp(low + (high - low) * keyed.unit(keyed.mix(keys[:, None], ASPECTS, tries))), 9)
    sides = np.rint(np.sqrt(np.stack([area * aspect, area / aspect], axis=2))).astype(np.int64)  # (n, tries, 2)
    frame = np.stack([width, height], axis=1)
    fits = ((sides > 0) & (sides <= frame[:, None])).all(axis=2)
    first = fits.argmax(axis=1)
    drawn = np.take_along_axis(sides, first[:, None, None], axis=1)[:, 0]
    fallback = np.minimum(frame, np.rint(np.stack([height * ASPECT[1], width / ASPECT[0]], axis=1))).astype(np.int64)
    found = fits.any(axis=1)[:, None]
    box = np.where(found, drawn, fallback)
    free = frame - box
    place = keyed.below(keyed.mix(keys[:, None], PLACE, np.arange(2)), np.where(found, free, 0) + 1)
    return np.concatenate([np.where(found, place, free // 2), box], axis=1)


def long_side_crops(width: np.ndarray, height: np.ndarray, size: int, crops: int) -> np.ndarray:
    """Frame sizes (n,), the side of the view, C -> boxes (n, C, 4): squares of the short side, spread over the long one.

    The official test resizes the short side to `size` and takes the pixels from int(j · (long − size) / (C − 1)) on; one crop
    is the middle (validation; the official test divides by zero). Here that place is carried back into the frame and rounded
    to whole pixels, at most half a pixel off, so that a decoder cuts first and resizes less.
    """
    short, long = np.minimum(width, height), np.maximum(width, height)
    resized = size * long // short
    if crops == 1:
        places = ((resized - size) // 2)[:, None]
    else:
        places = np.arange(crops) * (resized - size)[:, None] // (crops - 1)
    offset = (2 * places * long[:, None] + resized[:, None]) // (2 * resized[:, None])  # rounded to nearest
    offset = np.minimum(offset, (long - short)[:, None])
    wide = (width >= height)[:, None]
    side = np.broadcast_to(short[:, None], offset.shape)
    return np.stack([np.where(wide, offset, 0), np.where(wide, 0, offset), side, side], axis=2)
