"""Which frames of a video a window has, and how a frame becomes what the model sees.

W windows of a video, T frames of a window, S height and width of a view.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.pixels import normalise
from pipeline.decoding.resize import crop_resizer
from pipeline.decoding.video_file import VideoFile
from pipeline.official_views import squashed
from pipeline.sampling.frames import resampled_frames, sliding_starts

# The official script (VideoMAE V2, extract_tad_feature.py). Training has step 4, this has 1; frames are squashed without
# antialiasing, and not normalised, which training does.
OFFICIAL: dict[str, Any] = {"window": 16, "step": 1, "resize": "squash", "normalise": "none", "precision": "fp32"}
PRESETS: dict[str, dict[str, Any]] = {"thumos14": {**OFFICIAL, "stride": 4}, "fineaction": {**OFFICIAL, "stride": 16}}


class TooShortError(ValueError):
    """A video without a window."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of T frames."""

    num_frames: int
    step: int
    """Between the frames of a window."""
    stride: int
    """Between the first frames of windows."""
    fps: float | None = None
    """Frames are counted after resampling to so many a second; None: as they are in the video."""
    repeat: bool = False
    """Whether a video that is too short for a window is one all the same, its last frame repeated."""

    @property
    def span(self) -> int:
        """Frames from a window's first to its last."""
        return self.step * (self.num_frames - 1) + 1

    def starts(self, num_frames: int) -> np.ndarray:
        """Of the windows in a sequence of frames, int64 (W,)."""
        return sliding_starts(num_frames, self.num_frames, self.step, self.stride)

    def frames(self, video: VideoFile) -> np.ndarray:
        """Their frames in the video, int64 (W, T). Raises TooShortError if there is none."""
        length = video.clip.num_frames
        taken = np.arange(length) if self.fps is None else resampled_frames(video.times, video.seconds, self.fps)
        if self.repeat:
            taken = np.pad(taken, (0, max(0, self.span - len(taken))), mode="edge")
        starts = self.starts(len(taken))
        if not len(starts):
            counted = f"{length} frames" if self.fps is None else f"{len(taken)} frames at {self.fps:g} a second"
            raise TooShortError(f"too short: {counted}, and a window has {self.span}; --short repeat takes it all the same")
        return taken[starts[:, None] + self.step * np.arange(self.num_frames)]

    def rate(self, video: VideoFile) -> float:
        """Frames a second of the sequence that windows are counted in."""
        times = video.times
        return self.fps or (float((len(times) - 1) / (times[-1] - times[0])) if len(times) > 1 else 1 / video.seconds)


@dataclass(frozen=True, slots=True)
class FrameView:
    """How frames become views."""

    size: int
    resize: str
    """"crop": a square of the short side in the middle, antialiased, as the loader and `predict` have it; "squash": see
    `squashed`."""
    normalise: str
    """"imagenet", as in training, or "none": values in [0, 1]."""

    def of(self, video: VideoFile) -> Callable[[np.ndarray], Tensor]:
        """What makes a view (S, S, 3) of a frame (H, W, 3) uint8: uint8, or float32 of 0 to 255. For one thread."""
        size = self.size, self.size
        if self.resize == "squash":
            return partial(squashed, size=size)
        view = np.empty((1, 1, *size, 3), np.uint8)
        resizer = crop_resizer(1, np.zeros(1, np.int64), video.boxes(size, crops=1), view)

        def crop(frame: np.ndarray) -> Tensor:
            resizer.frame(0, frame.reshape(len(frame), -1))
            resizer.finish()
            return torch.from_numpy(view[0, 0].copy())

        return crop

    def normalised(self, views_BTHWC: Tensor) -> Tensor:
        """Views -> what the encoder takes, which normalises uint8 itself."""
        if self.normalise == "none":
            return views_BTHWC.float() / 255
        if views_BTHWC.dtype == torch.uint8:
            return views_BTHWC
        return normalise(views_BTHWC.flatten(3)).view_as(views_BTHWC)
