"""What a loader takes, in which order: a sampler, told apart by whether its passes end.

The sidecar plans each batch with three calls, for all of its clips at once: `positions` of this rank in a step, the `clips`
that stand there, and their `masks`. `TrainingSampler` goes on without end and has substitutes for clips that fail;
`evaluation.EvaluationSampler` takes every clip once.
"""

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np

from pipeline.sampling.draws import in_pairs
from pipeline.sampling.frames import AT_KEY_FRAMES
from pipeline.sampling.order import Order, check_reading_order, order_of
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.sampling.samples import ClipSamples, sample_clips, sample_crops, sample_masks
from pipeline.storage.key_frames import NONE, KeyFrames
from pipeline.storage.manifest import Manifest

NOBODY = -1  # the position of a place that no clip stands at


class Sampler(ABC):
    """Its options are given to it first, by the user; `of` makes of it the one for a dataset and a recipe, which a sidecar is
    sent. Where a rank is in an epoch, its *mark*, is a number of steps, or in a finite pass of clips."""

    finite: ClassVar[bool]  # an epoch is a pass of its own: it ends, and clips that fail leave their places empty
    picked: bool = False  # its clips were named by row: no share of what a job's ranks have to do
    lanes: int = 0  # of shuffle "window", see `order`
    manifest: Manifest
    recipe: SamplingRecipe
    key_frames: np.ndarray | None = None  # int32 (N,) of the manifest's clips, where the recipe's `temporal` asks for them
    annotated: str = ""  # digest of what is annotated there, see `KeyFrames.annotated`

    def of(self, manifest: Manifest, recipe: SamplingRecipe) -> Self:
        """The same for this dataset. Raises ValueError if it cannot be sampled so."""
        bound = copy.copy(self)
        bound.manifest, bound.recipe = manifest, recipe
        if recipe.temporal in AT_KEY_FRAMES:
            frames = KeyFrames(manifest)
            bound.key_frames, bound.annotated = frames.frame.copy(), frames.annotated
        return bound

    def _check_key_frames(self, rows: np.ndarray) -> None:
        """Raises ValueError if some of the clips to take have none."""
        if self.key_frames is None or not (lacking := rows[self.key_frames[rows] == NONE]).size:
            return
        example = self.manifest.clip(int(lacking[0])).key
        raise ValueError(
            f"temporal {self.recipe.temporal!r}: {len(lacking):,} of {len(rows):,} clips of {self.manifest.place} have no key "
            f"frame, such as {example}; take them from a dataset that `tubecell build-detection` made"
        )

    @property
    @abstractmethod
    def views_per_clip(self) -> int:
        """Of a clip in a batch."""

    @property
    def pixels(self) -> type[np.integer]:
        """What views are made of: in a finite pass uint8."""
        return np.uint8

    @property
    @abstractmethod
    def frames_per_clip(self) -> int:
        """Frames that are sampled of a clip, for all of its views."""

    @property
    @abstractmethod
    def epoch_end(self) -> int:
        """The mark at which an epoch is through."""

    @abstractmethod
    def share(self, rank: int, world_size: int, asked: int | None) -> int:
        """Clips of this rank in a step; `asked` of a batch, if somebody did. Raises ValueError for an impossible world size."""

    @abstractmethod
    def stride(self, share: int, world_size: int) -> int:
        """From one step's mark to the next."""

    @abstractmethod
    def positions(self, mark: int, rank: int, world_size: int, share: int) -> np.ndarray:
        """The positions of this rank in a step, in order -> int64 (share,), NOBODY where there is none."""

    @abstractmethod
    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Positions (n,) -> rows of the manifest (n,) int64; any row for NOBODY."""

    @abstractmethod
    def clips(self, epoch: int, positions: np.ndarray, attempts: np.ndarray) -> ClipSamples:
        """As `sample_clips`, at once for a batch."""

    @abstractmethod
    def crops_of(self, epoch: int, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What the views at B positions show, at which these clips stand -> boxes (B, R, 4), as in `ClipSamples`."""

    @abstractmethod
    def masks(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """As `sample_masks`; None if the recipe has none."""

    def window(self, epoch: int, position: int) -> np.ndarray:
        """Positions whose clips are read in one go with this one, where there are lanes."""
        raise NotImplementedError


class TrainingSampler(Sampler):
    """Epoch after epoch, as the recipe shuffles and mixes: see `order`."""

    finite = False

    def __init__(self, *, pairs: bool = False) -> None:
        """`pairs`: a batch of an even number of clips holds, of each of them, the one half a step away, too: mixup's partner.
        `check_pairs` says which numbers of ranks and batches can be."""
        self._pairs = pairs

    def __str__(self) -> str:
        return "training"

    @property
    def order(self) -> Order:
        return order_of(self.manifest, self.recipe)

    def of(self, manifest: Manifest, recipe: SamplingRecipe) -> Self:
        bound = super().of(manifest, recipe)
        bound.lanes = bound.order.lanes
        if bound.lanes:
            check_reading_order(manifest)
        if bound.key_frames is not None:
            bound._check_key_frames(bound.order.clips())
        return bound

    @property
    def views_per_clip(self) -> int:
        return self.recipe.views_per_clip

    @property
    def pixels(self) -> type[np.integer]:
        return self.recipe.pixels

    @property
    def frames_per_clip(self) -> int:
        return self.recipe.frames_per_clip

    @property
    def epoch_end(self) -> int:
        return self.order.steps_per_epoch

    def share(self, rank: int, world_size: int, asked: int | None) -> int:
        return len(self.order.rank_positions(0, rank, world_size))

    def stride(self, share: int, world_size: int) -> int:
        return 1

    def positions(self, mark: int, rank: int, world_size: int, share: int) -> np.ndarray:
        positions = self.order.rank_positions(mark, rank, world_size)
        return in_pairs(positions) if self._pairs else positions

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        return self.order.rows(epoch, positions)

    def clips(self, epoch: int, positions: np.ndarray, attempts: np.ndarray) -> ClipSamples:
        return sample_clips(self.manifest, self.recipe, epoch, positions, attempts, self.key_frames)

    def crops_of(self, epoch: int, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return sample_crops(self.manifest, self.recipe, epoch, positions, rows)

    def masks(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        return sample_masks(self.recipe, epoch, positions)

    def window(self, epoch: int, position: int) -> np.ndarray:
        return self.order.window_positions(epoch, position)
