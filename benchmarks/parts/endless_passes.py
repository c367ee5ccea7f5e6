"""Finite passes over and over, which turns of a benchmark need: views of a clip from one decode, or each from one of its own.

The sidecar imports this file, and may start no thread: nothing here needs torch.
"""

import numpy as np

from pipeline.sampling import EvaluationSampler
from pipeline.sampling.samples import ClipSamples


class Endless(EvaluationSampler):
    """One pass after the other: nobody waits at an end, and nobody starts anew."""

    finite = False


class EveryView(Endless):
    """Position p is view p mod V of clip p div V: an item of its own, which is decoded for itself."""

    @property
    def views_per_clip(self) -> int:
        return 1

    @property
    def epoch_end(self) -> int:
        return super().epoch_end * self.segments * self.crops

    def share(self, rank: int, world_size: int, asked: int | None) -> int:
        assert asked and self.epoch_end % asked == 0
        return asked

    def positions(self, mark: int, rank: int, world_size: int, share: int) -> np.ndarray:
        return mark + np.arange(share)

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        return super().rows(epoch, positions // (self.segments * self.crops))

    def clips(self, epoch: int, positions: np.ndarray, attempts: np.ndarray) -> ClipSamples:
        whole, each = super().clips(epoch, positions, attempts), np.arange(len(positions))
        views = positions % (self.segments * self.crops)
        return ClipSamples(whole.rows, whole.frames[each, views], whole.boxes[each, views][:, None], whole.repeated)
