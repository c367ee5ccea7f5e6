"""Where a step of features stands in its video, and how many of them a video has: what ActionFormer's datasets do.

T steps of C values. Frames are those of the sequence that windows were counted in, `fps` of them a second.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from pipeline.settings import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceConfig:
    """How files of features become sequences. Defaults: THUMOS14 as the public script extracts it."""

    stride: float | None = 4
    """Frames from one step of the files to the next. None: what the folder's features.json says; without one, as many as make
    the steps of a file as long as its video (FineAction's and ActivityNet's files of a fixed length)."""
    frames: float | None = 16
    """From the first to the last of those that a step of the files was made of: it stands at their middle. None: what the
    folder's features.json says."""
    fps: float | None = None
    """Frames a second; None: as features.json's folder says, or else the annotations."""
    downsample: int = 1
    """Take every Nth step of the files."""
    resample: bool = False
    """Stretch or shrink every video to --model.num-steps steps."""
    crop: tuple[float, float] | None = (0.9, 1.0)
    """In training take a part of so much of the video, where it is no longer than --model.num-steps; None takes all of it."""
    least_share: float = 0.5
    """Of an action that must be in the part that is taken, or it is none."""
    file_name: str = "{}"
    """Of a video's file, without its extension, by the video's name: "v_{}" for ActivityNet's."""
    longest: float = setting(6.0, may_change=True)
    """Of an evaluation's pass, by --model.num-steps: longer videos are seen in windows that overlap by half of num-steps."""

    def __post_init__(self) -> None:
        for name in ("stride", "frames", "fps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"sequence {name} {value} must be over 0")
        if self.downsample < 1:
            raise ValueError(f"downsample {self.downsample} must be at least 1")
        if self.resample and self.downsample > 1:
            raise ValueError(f"downsample {self.downsample} with resample: sequences are made equally long anyway; leave one")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"sequence crop {self.crop[0]} {self.crop[1]} must be over 0, at most 1, and in this order")
        if not 0 <= self.least_share <= 1:
            raise ValueError(f"least_share {self.least_share} must be 0 to 1")
        if self.file_name.count("{}") != 1:
            raise ValueError(f"file_name {self.file_name!r} must have {{}} in it once, for the video's name")
        if self.longest < 1:
            raise ValueError(f"sequence longest {self.longest} must be at least 1")


@dataclass(frozen=True, slots=True)
class Timing:
    """Of a sequence, after it was made of a file."""

    steps: int
    stride: float
    """Frames from one step to the next."""
    frames: float
    """Of a step, which stands at their middle."""
    fps: float


def timing(steps: int, config: SequenceConfig, stride: float | None, fps: float, duration: float, num_steps: int) -> Timing:
    """Of a file with so many steps, `stride` frames apart (None: equally spaced over the video's `duration` in seconds)."""
    if stride is None:
        length = num_steps if config.resample else -(-steps // config.downsample)
        apart = duration * fps / length
        return Timing(length, apart, apart, fps)
    assert config.frames is not None
    if config.resample:
        apart = ((steps - 1) * stride + config.frames) / num_steps
        return Timing(num_steps, apart, apart, fps)
    return Timing(-(-steps // config.downsample), stride * config.downsample, config.frames, fps)


def resampled(features_TC: np.ndarray, steps: int) -> np.ndarray:
    """Linear in time -> (steps, C)."""
    if len(features_TC) == steps:
        return features_TC
    columns = torch.from_numpy(features_TC).T[None]
    return interpolate(columns, steps, mode="linear", align_corners=False)[0].T.contiguous().numpy()
