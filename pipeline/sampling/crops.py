"""Crop boxes as arithmetic: MultiScaleCrop, RandomResizedCrop, and the crops of validation and tests.

A box is (x, y, width, height) in pixels of the displayed frame, int64; the decoder cuts it out and resizes it. All frames of
a view share it. Frames are at least 16 px wide and high. A view may be a rectangle: where the official code says "the shorter
side" of a frame, this says the largest box of the view's aspect, which is the same for a square.
"""

import numpy as np

from pipeline import keyed

Size = tuple[int, int]  # (height, width) of a view in pixels

SCALES = (1.0, 0.875, 0.75, 0.66)  # of the shorter side
# (width, height) by index into SCALES: at most one step apart, so the aspect ratio stays within 3/4 .. 4/3 or so
PAIRS = np.array([(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1])
# corners, centre, middles of the edges, middles of the quadrants; in quarters of the free space, (x, y)
ANCHORS = np.array([(x, y) for x in range(5) for y in range(5) if x % 2 == y % 2])
SHORT_SIDES = (256, 320)  # pixels, that "random_scale" resizes to
AREA = (0.08, 1.0)  # of the frame, and aspect ratio, both of RandomResizedCrop
ASPECT = (3 / 4, 4 / 3)
TRIES = 10
# purposes of the draws from one view's key: of a multi-scale crop, of a random resized one, and of one of a random scale
SHAPE, ANCHOR = range(2)
AREAS, ASPECTS, PLACE = range(3)
SCALE, CORNER = range(2)


def largest_box(width: np.ndarray, height: np.ndarray, size: Size) -> np.ndarray:
    """Frame sizes (n,) -> (width, height) (n, 2) of the largest box with the aspect of a view, to whole pixels."""
    high, wide = size
    fitting = np.stack([(2 * height * wide + high) // (2 * high), (2 * width * high + wide) // (2 * wide)], axis=1)
    return np.clip(fitting, 1, np.stack([width, height], axis=1))


def crop_sides(base: np.ndarray, size: Size) -> np.ndarray:
    """Largest boxes (n, 2) -> the four widths and heights (n, 4, 2) a crop chooses from, snapped to the view's when less than
    3 px off."""
    sides, of_view = np.maximum((base[:, None] * np.array(SCALES)[:, None]).astype(np.int64), 1), np.array(size[::-1])
    return np.where(np.abs(sides - of_view) < 3, of_view, sides)


def anchor_offsets(width: np.ndarray, height: np.ndarray, box: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """Top left corners (n, 2) for boxes (n, 2) of (width, height) at anchors (n, 2)."""
    free = np.stack([width, height], axis=1) - box
    return anchor * (free // 4)


def multi_scale_crop(keys: np.ndarray, width: np.ndarray, height: np.ndarray, size: Size) -> np.ndarray:
    """Keys (n,), frame sizes (n,), the size of the view -> boxes (n, 4): one of 10 shapes at one of 13 places.

    Pre-training, Table 10; the official class, inherited from TSN.
    """
    sides = crop_sides(largest_box(width, height, size), size)
    pair = PAIRS[keyed.below(keyed.mix(keys, SHAPE), len(PAIRS))]
    box = np.take_along_axis(sides, pair[:, None], axis=1)[:, 0]
    # a side snapped up to `size` may exceed the frame by up to 2 px (the official code then pads with black)
    box = np.minimum(box, np.stack([width, height], axis=1))
    anchor = ANCHORS[keyed.below(keyed.mix(keys, ANCHOR), len(ANCHORS))]
    return np.concatenate([anchor_offsets(width, height, box, anchor), box], axis=1)


def random_resized_crop(keys: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Keys (n,), frame sizes (n,) -> boxes (n, 4): fine-tuning's RandomResizedCrop, with torchvision's arithmetic, which does
    not ask for the aspect of the view.

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


def random_scale_crop(
    keys: np.ndarray, width: np.ndarray, height: np.ndarray, size: Size, short_sides: tuple[int, int] = SHORT_SIDES
) -> np.ndarray:
    """Keys (n,), frame sizes (n,), the size of the view -> boxes (n, 4): detection's crop (SlowFast; V2, Table 12).

    There a frame's short side is resized to a length drawn from `short_sides`, both ends included, and a view is cut out at a
    uniform place. Here the view's box is carried back into the frame, to whole pixels; it is never larger than the frame.
    """
    low, high = short_sides
    short = low + keyed.below(keyed.mix(keys, SCALE), high - low + 1)
    frame = np.stack([width, height], axis=1)
    sides = (2 * np.array(size[::-1]) * np.minimum(width, height)[:, None] + short[:, None]) // (2 * short[:, None])
    sides = np.clip(sides, 1, frame)
    place = keyed.below(keyed.mix(keys[:, None], CORNER, np.arange(2)), frame - sides + 1)
    return np.concatenate([place, sides], axis=1)


def whole_frame_size(width: int, height: int, short: int, longest: int, multiple: int) -> Size:
    """Of a view that shows a whole frame: its short side resized to `short`, but the long one to `longest` at most, each to the
    nearest multiple of a patch. (Official detection tests resize so and fill up to multiples of 16 with black.)"""
    scale = min(short / min(width, height), longest / max(width, height))
    high, wide = (max(1, round(side * scale / multiple)) * multiple for side in (height, width))
    return high, wide


def long_side_crops(width: np.ndarray, height: np.ndarray, size: Size, crops: int, lower: bool = False) -> np.ndarray:
    """Frame sizes (n,), the size of the view, C -> boxes (n, C, 4): the largest that have its aspect, spread over the frame.

    The official test and validation, of squares, resize the short side to `size` and cut there: see `resized_side` and
    `spread`. Here that place is carried back into the frame and rounded to whole pixels, at most half a pixel off, so that a
    decoder cuts first and resizes less.
    """
    box = largest_box(width, height, size)
    wide = width * size[0] >= height * size[1]  # than the view: the boxes are as high as the frame
    short, long, own = np.where(wide, height, width), np.where(wide, width, height), np.where(wide, *box.T)
    across, along = np.where(wide, size[0], size[1]), np.where(wide, size[1], size[0])  # sides of the view
    resized = np.maximum(resized_side(long, short, across), along)
    places = spread(resized - along, crops, lower)
    offset = (2 * places * long[:, None] + resized[:, None]) // (2 * resized[:, None])  # rounded to nearest
    offset, wide = np.minimum(offset, (long - own)[:, None]), wide[:, None]
    sides = (np.broadcast_to(side[:, None], offset.shape) for side in box.T)
    return np.stack([np.where(wide, offset, 0), np.where(wide, 0, offset), *sides], axis=2)


def resized_side(long: np.ndarray, short: np.ndarray, to: np.ndarray) -> np.ndarray:
    """How long the long side gets when the short one is resized, all in whole pixels, cut off (official)."""
    return to * long // short


def spread(free: np.ndarray, crops: int, lower: bool = False) -> np.ndarray:
    """Free pixels beside a crop (n,) -> where C of them begin (n, C): int(j · free / (C − 1)), the official test's.

    One is the middle (validation; the official test divides by zero); of two middles the even one, officially, or the `lower`.
    """
    if crops > 1:
        return np.arange(crops) * free[:, None] // (crops - 1)
    return (free // 2 if lower else np.rint(free / 2).astype(np.int64))[:, None]


def whole_frames(width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Frame sizes (n,) -> boxes (n, 4)."""
    zero = np.zeros_like(width)
    return np.stack([zero, zero, width, height], axis=1)
