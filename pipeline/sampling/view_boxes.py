"""Boxes of people, where they are in views: carried along through crop, scale and flip, shaken in training, enlarged in tests.

A box in pixels is (x1, y1, x2, y2) with both corners inside, as in the code that the official numbers come from (which has it
from maskrcnn-benchmark): a picture of W pixels goes from 0 to W - 1, and a box is x2 - x1 + 1 wide. All is arithmetic: what is
drawn hangs on (seed, epoch, position, view, number of the box in its clip), so it is the same on any ranks and after a resume.
"""

from dataclasses import dataclass

import numpy as np

from pipeline import keyed
from pipeline.sampling.crops import Size, whole_frame_size
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.storage.key_frames import KeyFrames, Kind
from pipeline.storage.manifest import Manifest

MOST = 100  # boxes of a clip in training (official)
OUTWARDS, INWARDS = (0.2, 0.1), (0.1, 0.05)  # by how much of its width and height a side moves in training, at most (official)
ENLARGED = (0.1, 0.05)  # by how much of its width and height a box grows in tests, in total (official)
SURE = 0.8  # score from which on a detection counts in tests (official)
WHOLE = (256, 464)  # short side and longest long side of a whole frame in tests (official)


@dataclass(frozen=True, slots=True)
class ViewBoxes:
    """The m boxes of a batch's n views, flat, those of a view adjacent."""

    boxes: np.ndarray  # float32 (m, 4), pixels of the view
    view: np.ndarray  # int64 (m,), which of the n views
    places: np.ndarray  # int64 (m,), in `KeyFrames`


def training_boxes(
    frames: KeyFrames,
    recipe: SamplingRecipe,
    epoch: int,
    positions: np.ndarray,
    rows: np.ndarray,
    crops: np.ndarray,
    flips: np.ndarray | None = None,
    *,
    jitter: bool = True,
    most: int = MOST,
) -> ViewBoxes:
    """The annotated boxes of the R views of B clips, as a batch has them: its epoch, positions (B,), rows (B,) and crops
    (B, R, 4).

    `flips` bool (B · R,): which views are mirrored, see `Draws.flips`. Of a clip at most `most` boxes are taken. Those of which
    a view shows nothing are left out; others are cut at its edge, then shaken, if `jitter`.
    """
    views = crops.shape[1]
    places, view = _in_views(frames, rows, views, "truth", 0.0, most)
    seen, boxes = _cut_out(frames, places, view, crops.reshape(-1, 4), recipe.view_size, flips)
    if jitter:
        number = places - frames.first_of(frames.row[places])
        keys = keyed.mix(recipe.seed, keyed.BOXES, epoch, positions[view // views], view % views, number)
        uniform = keyed.unit(keyed.mix(keys[:, None], np.arange(4)))
        boxes = jittered(boxes, uniform, *recipe.view_size[::-1])
    return ViewBoxes(boxes[seen].astype(np.float32), view[seen], places[seen])


def evaluation_boxes(
    frames: KeyFrames,
    size: Size,
    rows: np.ndarray,
    crops: np.ndarray,
    kind: Kind = "detection",
    *,
    weight: np.ndarray | None = None,
    at_least: float = SURE,
    enlarge: tuple[float, float] = ENLARGED,
) -> ViewBoxes:
    """The boxes of the R views of B clips in a pass of evaluation, whose views have `size`; the same in every pass.

    Every box of the kind and score is there, whatever a view shows of it: each must get its scores. `weight` (B,) of the batch:
    where it is 0 no clip stands, and so no box.
    """
    places, view = _in_views(frames, rows, crops.shape[1], kind, at_least, None)
    if weight is not None:
        there = np.asarray(weight)[view // crops.shape[1]] > 0
        places, view = places[there], view[there]
    _, boxes = _cut_out(frames, places, view, crops.reshape(-1, 4), size, None)
    boxes = enlarged(boxes, *size[::-1], by=enlarge)
    return ViewBoxes(boxes.astype(np.float32), view, places)


def whole_frames_by_size(
    manifest: Manifest, rows: np.ndarray, multiple: int, whole: tuple[int, int] = WHOLE
) -> dict[Size, np.ndarray]:
    """Rows (n,) of key frames -> {(height, width) of a view that shows all of the frame: the rows with that}, every row once.

    For tests of whole frames (crop "none"): a pass for each size, since the views of a pass have one. Sides are multiples of a
    patch.
    """
    sizes = np.stack([manifest.width[rows], manifest.height[rows]], axis=1)
    kinds, of = np.unique(sizes, axis=0, return_inverse=True)
    views = [whole_frame_size(int(width), int(height), *whole, multiple) for width, height in kinds]
    return {
        size: rows[np.isin(of.reshape(-1), [i for i, view in enumerate(views) if view == size])] for size in sorted({*views})
    }


def inclusive(fractions: np.ndarray, width: np.ndarray | float, height: np.ndarray | float) -> np.ndarray:
    """Boxes (n, 4) as fractions of a picture -> in its pixels, float64 (n, 4)."""
    sides = _sides(width, height)
    return np.asarray(fractions, np.float64) * sides - [0, 0, 1, 1]


def as_fractions(boxes: np.ndarray, size: tuple[float, float], width: float, height: float) -> np.ndarray:
    """Boxes (n, 4) in pixels of a picture that was resized from (width, height) to `size`, which is (width, height), too -> as
    fractions, float64 (n, 4): official results."""
    scale = np.array([width / size[0], height / size[1]] * 2)
    return (np.asarray(boxes, np.float64) * scale + [0, 0, 1, 1]) / _sides(width, height)


def placed(
    boxes: np.ndarray, scale: np.ndarray, offset: np.ndarray, width: float, height: float, flips: np.ndarray | None = None
) -> np.ndarray:
    """Boxes (n, 4) in pixels of a picture -> of what is cut out of it after it is resized by `scale` (x, y), beginning at
    `offset` (x, y) of the resized one and `width` x `height` large; where `flips` (n,) says so, mirrored. Cut at its edges."""
    moved = np.asarray(boxes, np.float64) * np.tile(scale, 2) - np.tile(offset, 2)
    moved = np.clip(moved, 0, _sides(width, height) - 1)
    if flips is not None:
        mirrored = np.stack([width - 1 - moved[:, 2], moved[:, 1], width - 1 - moved[:, 0], moved[:, 3]], axis=1)
        moved = np.where(flips[:, None], mirrored, moved)
    return moved


def enlarged(boxes: np.ndarray, width: float, height: float, by: tuple[float, float] = ENLARGED) -> np.ndarray:
    """Boxes (n, 4) in pixels of a view -> grown by a share of their width and height in total, half on each side; cut at the
    view's edges."""
    boxes = np.asarray(boxes, np.float64)
    grown = (boxes[:, 2:] - boxes[:, :2] + 1) * np.array(by) / 2
    return np.clip(np.concatenate([boxes[:, :2] - grown, boxes[:, 2:] + grown], axis=1), 0, _sides(width, height) - 1)


def jittered(boxes: np.ndarray, uniform: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes (n, 4) in pixels of a view, uniforms (n, 4) in [0, 1) of x1, y1, x2, y2 -> each side moved by up to OUTWARDS or
    INWARDS of the box's width or height; cut at the view's edges."""
    boxes = np.asarray(boxes, np.float64)
    sides, inwards_and_outwards = np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2), np.tile(np.add(OUTWARDS, INWARDS), 2)
    moved = boxes + sides * (inwards_and_outwards * np.asarray(uniform, np.float64) - [*OUTWARDS, *INWARDS])
    return np.clip(moved, 0, _sides(width, height) - 1)


def _in_views(
    frames: KeyFrames, rows: np.ndarray, views: int, kind: Kind, at_least: float, most: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of B clips -> places of boxes (m,) and which of the B · R views each is in (m,), ascending."""
    places, clips = frames.of_clips(np.repeat(rows, views), kind, at_least, most)
    return places, clips


def _cut_out(
    frames: KeyFrames, places: np.ndarray, view: np.ndarray, crops: np.ndarray, size: Size, flips: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """-> (which of the boxes a view shows something of, bool (m,); the boxes in pixels of their views, float64 (m, 4))."""
    rows, crop = frames.row[places], crops[view].astype(np.float64)
    manifest, (height, width) = frames.manifest, size
    boxes = inclusive(frames.in_clip(places), manifest.width[rows], manifest.height[rows])
    scale = np.array([width, height]) / crop[:, 2:]
    boxes = placed(boxes, scale, crop[:, :2] * scale, width, height, None if flips is None else flips[view])
    wide, high = (boxes[:, 2:] - boxes[:, :2]).T
    return (wide > 0) & (high > 0), boxes


def _sides(width: np.ndarray | float, height: np.ndarray | float) -> np.ndarray:
    """-> float64 (4,), or (n, 4): what each of the four numbers of a box is measured by."""
    return np.stack([width, height, width, height], axis=-1).astype(np.float64)
