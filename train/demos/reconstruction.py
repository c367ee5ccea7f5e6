"""What an autoencoder makes of a few frames of a single video."""

import numpy as np
import torch

from model.videomae import VideoMAE
from model.weights import Weights
from pipeline import keyed
from pipeline.decoding.video_file import VideoFile
from pipeline.sampling import MaskRule, segment_frames
from pipeline.sampling.masking import mask_indices
from train.pictures import Images, paint

ROWS = ("original", "seen by\nthe encoder", "reconstruction", "patch means\nalone")  # of Images


def needs_pixels(weights: Weights) -> None:
    """Raises ValueError for weights that predict no pixels."""
    if weights.kind != "autoencoder":
        what = {"classifier": "a classifier", "detector": "an action detector"}.get(weights.kind, "an encoder alone")
        instead = "; `tubecell predict` takes it" if weights.kind == "classifier" else ""
        raise ValueError(f"{weights.place} is {what}, without a decoder: give weights of pre-training{instead}")
    values, pixels = len(weights.tensors["decoder.head.weight"]), weights.config.patch_values
    if values != pixels:
        raise ValueError(
            f"{weights.place} predicts {values} values of a patch, which are no pixels (a patch has {pixels}): its target was "
            "features; give weights that were trained to predict pixels"
        )


def window(video: VideoFile, num_frames: int, stride: int, start: float | None) -> np.ndarray:
    """Every `stride`-th frame from `start` seconds on, or in the middle -> (T,); the last is repeated where there are too few.

    Raises ValueError for a start after the end."""
    length = video.clip.num_frames
    if start is None:
        return segment_frames(length, num_frames, stride, 1)[0]
    if not 0 <= start < video.seconds:
        raise ValueError(f"--start {start:g} is not in the video, which has 0 to {video.seconds:.2f} seconds")
    first = min(int(np.searchsorted(video.times, start - 1e-6)), length - 1)
    return first + segment_frames(min(length - first, num_frames * stride), num_frames, stride, 1)[0]


@torch.inference_mode()
def reconstruct(model: VideoMAE, video: VideoFile, frames: np.ndarray, mask: MaskRule, mask_ratio: float, seed: int) -> Images:
    """Frames (T,) of a video, in the middle of it -> pictures (1, T, size, size, 3). Raises DecodeError for a video that is
    damaged, ValueError for a share that cannot be hidden."""
    config, device = model.config, next(model.parameters()).device
    indices = mask_indices(keyed.mix(seed, keyed.MASK, np.arange(1)), config.grid, mask_ratio, 0, masks=mask)
    size = (config.input_size, config.input_size)
    views = torch.from_numpy(video.views(frames[None], video.boxes(size, 1), size))
    visible, hidden = (torch.from_numpy(each).to(device) for each in indices[:2])
    return paint(model, views.to(device), visible, hidden)


def rate_of(video: VideoFile, frames: np.ndarray, stride: int) -> float:
    """Frames (T,), a `stride` apart -> how many of them are shown in a second."""
    step = np.diff(video.times[np.unique(frames)])
    return float(1 / step.mean()) if len(step) else 25 / stride
