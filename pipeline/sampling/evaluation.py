"""One finite pass: every clip once, for any number of ranks, in views that are the same in every pass.

    loader = ClipLoader("DATASET", recipe, sampler=EvaluationSampler(views="full", segments=5, crops=3), rank=r, world_size=W)
    for batch in loader:  # len(loader) of them, as many on every rank
        scores = model(batch.views).unflatten(0, (-1, 15)).mean(1)  # 15 views of each clip, from one decode
        right += ((scores.argmax(1) == batch.labels) * batch.weight).sum()
    print(f"{right} of {loader.num_clips - missing}, {missing} of {loader.num_clips} could not be decoded")  # summed over ranks

Position p is the p-th of the chosen rows; rank r of W takes the positions ≡ r modulo W, `share` of them at a time, and what is
not divisible leaves places empty, of weight 0. A clip that fails is not substituted: it is such a place, too.
"""

import zlib
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np

from pipeline.sampling.recipe import SamplingRecipe
from pipeline.sampling.sampler import NOBODY, Sampler
from pipeline.sampling.samples import ClipSamples, multi_view_clips, sample_masks, validation_clips
from pipeline.sampling.splits import rows_of_split
from pipeline.storage.manifest import Manifest

NO_EPOCH = -1  # in the key of the masks: that of no training


class EvaluationSampler(Sampler):
    """Every one of the rows once. The recipe's `views_per_step` says how many views a step has over all ranks, at most, but a
    clip for each. With masks, each view comes `views_per_clip` times, with masks drawn by the clip's row."""

    finite = True
    _chosen: np.ndarray  # (N,), rows of the dataset that it is `of`

    def __init__(
        self,
        *,
        views: Literal["centre", "full"] = "centre",
        segments: int = 5,
        crops: int = 3,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """`views`: the middle one (`validation_clips`), or all S `segments` x C `crops` (`multi_view_clips`); `rows` of the
        manifest, distinct, in the order in which they are taken, whatever the recipe's split; None: all of the split.

        Raises ValueError for what cannot be.
        """
        if views not in ("centre", "full"):
            raise ValueError(f"views {views!r} is not known; allowed are 'centre', 'full'")
        if min(segments, crops) < 1:
            raise ValueError(f"{segments} segments x {crops} crops: a test takes at least one of each")
        self.views, self.segments, self.crops = views, *((segments, crops) if views == "full" else (1, 1))
        self.picked = rows is not None
        self._rows = None if rows is None else np.asarray(rows, np.int64).reshape(-1)

    def of(self, manifest: Manifest, recipe: SamplingRecipe) -> Self:
        bound = super().of(manifest, recipe)
        rows = bound._chosen = rows_of_split(manifest, recipe.split) if self._rows is None else self._rows
        if not len(rows):
            raise ValueError(f"of the {len(manifest)} clips of {manifest.place} none was chosen for a pass")
        if not 0 <= rows.min() <= rows.max() < len(manifest):
            last = len(manifest) - 1
            raise ValueError(f"rows {rows.min()} to {rows.max()} were chosen; {manifest.place} has rows 0 to {last}")
        if len(np.unique(rows)) < len(rows):
            raise ValueError(f"of the {len(rows)} chosen rows some are the same; a pass takes every clip once")
        if recipe.crop == "none" and self.crops > 1:
            raise ValueError(f"with crop 'none' {self.crops} crops would all be the whole frame; give crops=1")
        if bound.key_frames is not None:
            if self.views != "centre":
                raise ValueError(f"temporal {recipe.temporal!r} has one view of a key frame: views 'centre', not 'full'")
            bound._check_key_frames(rows)
        return bound

    def __str__(self) -> str:
        """`a pass over 19404 clips (0a1b2c3d), full, 5 segments x 3 crops`"""
        which = zlib.crc32(self._chosen.tobytes())
        return (
            f"a pass over {len(self._chosen)} clips ({which:08x}), {self.views}, {self.segments} segments x {self.crops} crops"
        )

    @property
    def views_per_clip(self) -> int:
        return self.segments * self.crops * self._masks_per_view

    @property
    def _masks_per_view(self) -> int:
        return self.recipe.views_per_clip if self.recipe.masks else 1

    @property
    def frames_per_clip(self) -> int:
        return self.recipe.num_frames * (self.views_per_clip if self.views == "full" else 1)

    @property
    def epoch_end(self) -> int:
        return len(self._chosen)

    def share(self, rank: int, world_size: int, asked: int | None) -> int:
        of_step = max(1, self.recipe.views_per_step // (self.views_per_clip * world_size))
        return min(asked or of_step, -(-len(self._chosen) // world_size))

    def stride(self, share: int, world_size: int) -> int:
        return share * world_size

    def positions(self, mark: int, rank: int, world_size: int, share: int) -> np.ndarray:
        positions = mark + rank + world_size * np.arange(share)
        return np.where(positions < len(self._chosen), positions, NOBODY)

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        return self._chosen[positions]

    def clips(self, epoch: int, positions: np.ndarray, attempts: np.ndarray) -> ClipSamples:
        rows, masks = self.rows(epoch, positions), self._masks_per_view
        if self.views == "centre":
            one = validation_clips(self.manifest, self.recipe, rows, self.key_frames)
            return ClipSamples(rows, one.frames, np.repeat(one.boxes, masks, axis=1), one.repeated)
        all_of_them = multi_view_clips(self.manifest, self.recipe, rows, self.segments, self.crops)
        frames, boxes = (np.repeat(array, masks, axis=1) for array in (all_of_them.frames, all_of_them.boxes))
        return ClipSamples(rows, frames, boxes, masks * all_of_them.repeated)

    def crops_of(self, epoch: int, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.clips(epoch, positions, np.zeros(len(positions), np.int64)).boxes

    def masks(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        return sample_masks(self.recipe, NO_EPOCH, self.rows(epoch, positions), self.views_per_clip)
