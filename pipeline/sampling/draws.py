"""What a training step draws besides its batch: stochastic depth, dropout, RandAugment, flips, mixup, CutMix, random erasing.

Arithmetic like crops and masks: a draw is a function of (seed, purpose, epoch, position, view), so a step has the same noise on
any number of ranks, in any division into forward passes and after any restart. B clips of a pass, R views of each, n = B · R.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import keyed
from pipeline.sampling.erasing import erasing_boxes
from pipeline.sampling.mixing import Mixing, mixing
from pipeline.sampling.randaugment import RandAugment, plans
from pipeline.sampling.recipe import SamplingRecipe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Draws:
    """Those of one forward pass: of the views of the clips at B positions of an epoch, the views of a clip adjacent."""

    recipe: SamplingRecipe
    epoch: int
    positions: np.ndarray  # int64 (B,)

    def keys(self, purpose: int) -> np.ndarray:
        """A key per view -> uint64 (n,). `purpose` is one of keyed's: DEPTH, DROPOUT, MIXUP, ERASING, FLIP, RANDAUGMENT or
        CAPTION."""
        views = np.arange(self.recipe.views_per_clip)
        return keyed.mix(self.recipe.seed, purpose, self.epoch, self.positions[:, None], views).reshape(-1)

    def keep(self, rates: Sequence[float]) -> np.ndarray:
        """The drop rate of each block -> bool (depth, n, 2), whether a view keeps the block's attention and its MLP.

        One array, for one copy to the device; 0.3 ms for 64 views of 40 blocks.
        """
        blocks = np.arange(len(rates))[:, None, None]
        drawn = keyed.unit(keyed.mix(self.keys(keyed.DEPTH)[:, None], blocks, np.arange(2)))
        return drawn >= np.asarray(rates, float)[:, None, None]

    def keep_features(self, rate: float, width: int) -> np.ndarray:
        """Dropout -> bool (n, width), whether a view keeps a feature."""
        return keyed.unit(keyed.mix(self.keys(keyed.DROPOUT)[:, None], np.arange(width))) >= rate

    def flips(self, rate: float) -> np.ndarray:
        """Bool (n,), whether a view is mirrored."""
        return keyed.unit(self.keys(keyed.FLIP)) < rate

    def captions(self, counts: np.ndarray) -> np.ndarray:
        """How many captions each view's clip has, at least 1, int64 (n,) -> which of them is taken, int64 (n,)."""
        return keyed.below(self.keys(keyed.CAPTION), counts)

    def randaugment(self, how: RandAugment) -> np.ndarray:
        """Plans float64 (n, layers, 2), see `randaugment.plans`: those of `ClipSamples.operations`."""
        return plans(self.keys(keyed.RANDAUGMENT), how)

    def erasing(self, rate: float) -> np.ndarray:
        """Boxes int64 (n, 4), see `erasing_boxes`; the noise in them is made on the device."""
        return erasing_boxes(self.keys(keyed.ERASING), *self.recipe.view_size, rate)

    def mixing(self, mixup: float, cutmix: float, switch: float) -> Mixing:
        """Of each pair of views, two in the same place of clips half a step apart: see `mixing`."""
        half, partners = self.recipe.clips_per_step // 2, self.partners()
        place = self.positions % self.recipe.clips_per_step
        lower = self.positions - np.where(place < half, 0, half)
        keys = Draws(self.recipe, self.epoch, lower).keys(keyed.MIXUP)
        return mixing(keys, partners, *self.recipe.view_size, mixup, cutmix, switch)

    def generators(self, purpose: int, device: "torch.device | str" = "cpu") -> "list[torch.Generator]":
        """One for each view, seeded with its key: for noise that is made on the device. Its numbers are the device kind's."""
        import torch  # here, because the sidecar imports the sampling and does without torch's two seconds

        return [torch.Generator(device).manual_seed(key) for key in self.keys(purpose).tolist()]

    def partners(self) -> np.ndarray:
        """Mixup's partner of each view -> int64 (n,), indices within the pass: the same view of the clip half a step away."""
        step, views = self.recipe.clips_per_step, self.recipe.views_per_clip
        place = self.positions % step
        wanted = self.positions - place + (place + step // 2) % step
        order = np.argsort(self.positions)
        clip = order[np.searchsorted(self.positions, wanted, sorter=order).clip(max=len(order) - 1)]
        assert (self.positions[clip] == wanted).all(), "a forward pass holds whole pairs, see in_pairs"
        return (clip[:, None] * views + np.arange(views)).reshape(-1)


def check_pairs(clips_per_step: int, ranks: int, passes: int = 1) -> None:
    """Whether `ranks`, with so many forward passes each, can mix every clip with the one half a step away.

    Raises ValueError with the numbers that are possible.
    """
    pairs = clips_per_step // 2
    if clips_per_step % 2:
        raise ValueError(f"mixup takes clips in pairs: the {clips_per_step} clips of a step must be an even number")
    if pairs % ranks:
        possible = ", ".join(str(n) for n in range(1, min(pairs, 4096) + 1) if pairs % n == 0)
        raise ValueError(
            f"mixup takes clips in pairs, half a step apart: {ranks} ranks cannot share the {pairs} pairs of a step equally; "
            f"possible numbers of ranks: {possible}"
        )
    if (share := pairs // ranks) % passes:
        possible = ", ".join(str(n) for n in range(1, min(share, 4096) + 1) if share % n == 0)
        raise ValueError(
            f"mixup takes clips in pairs: {passes} forward passes cannot share the {share} pairs of a rank's step equally; "
            f"possible numbers of passes: {possible}"
        )


def in_pairs(positions: np.ndarray) -> np.ndarray:
    """A rank's positions of a step, ascending -> the same with partners side by side, so that a forward pass over any even
    number of them holds whole pairs. See `check_pairs`."""
    return positions.reshape(2, -1).T.reshape(-1)
