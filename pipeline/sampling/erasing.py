"""RandomErasing's boxes as arithmetic. A box is (x, y, width, height) in pixels of a view, int64; all its frames share it."""

import numpy as np

from pipeline import keyed

AREA = (0.02, 1 / 3)  # of the view
ASPECT = (0.3, 1 / 0.3)  # of height to width
TRIES = 10
WHETHER, AREAS, ASPECTS, PLACE = range(4)  # purposes of the draws from one view's key


def erasing_boxes(keys: np.ndarray, height: int, width: int, rate: float) -> np.ndarray:
    """Keys (n,), the size of a view -> boxes (n, 4); nothing is erased in one of width 0.

    Official arithmetic (timm's): of 10 draws of an area and an aspect ratio, uniform in its logarithm, the first that is
    smaller than the view in both directions stands at a uniform place.
    """
    tries, (low, high) = np.arange(TRIES), np.log(ASPECT)
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * keyed.unit(keyed.mix(keys[:, None], AREAS, tries)))
    # rounded, because the last bit of an exponential differs between machines
    aspect = np.round(np.exp(low + (high - low) * keyed.unit(keyed.mix(keys[:, None], ASPECTS, tries))), 9)
    sides = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=2))).astype(np.int64)  # (n, tries, 2)
    size = np.array([width, height])
    fits = (sides < size).all(axis=2)
    box = np.take_along_axis(sides, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    erased = fits.any(axis=1) & (keyed.unit(keyed.mix(keys, WHETHER)) < rate)
    box = np.where(erased[:, None], box, 0)
    place = keyed.below(keyed.mix(keys[:, None], PLACE, np.arange(2)), size - box + 1)
    return np.concatenate([place, box], axis=1)
