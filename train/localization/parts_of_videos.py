"""Which part of a video a training step takes: arithmetic, like every other draw.

A video that is longer than the model's sequences is cut to one, at a place where at least one action is, if 200 draws find one;
of a shorter one a part is taken, if the configuration says so (ActionFormer's truncation).
"""

import numpy as np
from torch import Tensor

from pipeline import keyed
from train.localization.sequences import SequenceConfig

TRIALS = 200


def part_of(
    key: np.ndarray, steps: int, num_steps: int, segments_N2: Tensor, margin: float, config: SequenceConfig
) -> tuple[int, int]:
    """A draw's key () -> the first step and the number of steps that are taken of `steps`."""
    length = num_steps
    if steps <= num_steps:
        if config.crop is None:
            return 0, steps
        least = max(round(config.crop[0] * steps), 1)
        most = max(min(round(config.crop[1] * steps), steps), least)
        length = least + int(keyed.below(keyed.mix(key, keyed.PART_LENGTH), most - least + 1))
        if length == steps:
            return 0, steps
    starts = keyed.below(keyed.mix(key, keyed.PART_START, np.arange(TRIALS)), steps - length + 1)
    segments = segments_N2.numpy()
    if not len(segments):
        return int(starts[0]), length
    begin = np.maximum(segments[:, 0], starts[:, None] - margin)
    end = np.minimum(segments[:, 1], starts[:, None] + length + margin)
    share = (end - begin).clip(min=0) / (segments[:, 1] - segments[:, 0])
    shows = (share >= config.least_share).any(1)
    return int(starts[shows.argmax() if shows.any() else -1]), length
