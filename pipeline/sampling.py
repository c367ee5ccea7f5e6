"""A training sample is arithmetic: (dataset, recipe, epoch, position) -> clip, frames, crops, masks.

Nothing here reads a video, keeps state or knows of workers, ranks and GPUs; so a batch is the same for any number of them,
on any device and after any restart. The words: position p of epoch e is one clip with its R views; a step takes
`clips_per_step` consecutive positions; rank r of W serves the positions that are r modulo W.
"""

from dataclasses import dataclass

import numpy as np

from pipeline import crops, keyed, masking
from pipeline.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRecipe:
    """What decides a batch besides the dataset. Defaults: VideoMAE V2, Table 10, with the official code's counts."""

    seed: int = 0
    """Of the order, the frames, the crops and the masks."""
    views_per_step: int = 8192
    """Views (crops with masks) in one optimizer step over all ranks; what the paper calls the batch size."""
    views_per_clip: int = 4
    """R, repeated augmentation: views that share one decoded clip and its frames."""
    num_frames: int = 16
    """T, frames of a view."""
    input_size: int = 224
    """Side of a view in pixels."""
    tubelet_size: int = 2
    """Frames of a token."""
    patch_size: int = 16
    """Side of a token in pixels."""
    mask_ratio: float = 0.9
    """Share of the tubes hidden from the encoder."""
    decoder_mask_ratio: float = 0.5
    """Share of the tokens the decoder leaves out: 0.25, 0.5, 0.75, or 0 for encoder-only masking (VideoMAE V1)."""
    shuffle: str = "global"
    """Order of an epoch: "global", one permutation of all clips."""

    def __post_init__(self) -> None:
        if self.shuffle != "global":
            raise ValueError(f"shuffle {self.shuffle!r} is not known; allowed is 'global'")
        if min(self.views_per_clip, self.views_per_step) < 1 or self.views_per_step % self.views_per_clip:
            raise ValueError(
                f"views_per_step {self.views_per_step} must be a multiple of views_per_clip {self.views_per_clip}, "
                "both at least 1"
            )
        if self.num_frames % self.tubelet_size or self.input_size % self.patch_size:
            raise ValueError(
                f"{self.num_frames} frames of {self.input_size} px do not divide into tubelets of {self.tubelet_size} frames "
                f"and patches of {self.patch_size} px"
            )
        _ = self.tokens  # refuses impossible mask ratios

    @property
    def grid(self) -> masking.Grid:
        """(T', h, w) in tokens."""
        side = self.input_size // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    @property
    def tokens(self) -> masking.TokenCounts:
        """Visible, decoded and loss tokens of a view."""
        return masking.token_counts(self.grid, self.mask_ratio, self.decoder_mask_ratio)

    @property
    def clips_per_step(self) -> int:
        return self.views_per_step // self.views_per_clip


@dataclass(frozen=True, slots=True)
class ClipSamples:
    """Which pixels stand at B positions of an epoch.

    rows (B,) int64 of the manifest; frames (B, T) int64, ascending, with repeats; boxes (B, R, 4) int64 (x, y, width, height).
    """

    rows: np.ndarray
    frames: np.ndarray
    boxes: np.ndarray


def steps_per_epoch(num_clips: int, recipe: SamplingRecipe) -> int:
    """⌊N / clips per step⌋: the last N mod batch positions of an epoch are dropped, other clips each time.

    Raises ValueError if one step takes more clips than there are.
    """
    steps = num_clips // recipe.clips_per_step
    if steps == 0:
        raise ValueError(
            f"the dataset has {num_clips} clips, and one step takes {recipe.clips_per_step} (views_per_step "
            f"{recipe.views_per_step} / views_per_clip {recipe.views_per_clip}); lower views_per_step to at most "
            f"{num_clips * recipe.views_per_clip}, or build a dataset with more clips"
        )
    return steps


def rank_positions(step: int, recipe: SamplingRecipe, rank: int, world_size: int) -> np.ndarray:
    """The positions that rank r of W serves in a step of the epoch, in order -> int64 (clips_per_step / W,).

    Raises ValueError, with the world sizes that are possible, if W does not divide the clips of a step.
    """
    clips = recipe.clips_per_step
    if clips % world_size:
        allowed = [w for w in range(1, clips + 1) if clips % w == 0]
        listed = ", ".join(map(str, allowed if len(allowed) <= 16 else [*allowed[:15], "…", allowed[-1]]))
        raise ValueError(f"{clips} clips a step cannot be shared by {world_size} ranks; possible world sizes: {listed}")
    return step * clips + np.arange(rank, clips, world_size)


def clip_rows(num_clips: int, recipe: SamplingRecipe, epoch: int, positions: np.ndarray) -> np.ndarray:
    """Positions of an epoch -> rows of the manifest: a keyed permutation of all clips."""
    return keyed.permute(positions, num_clips, keyed.mix(recipe.seed, keyed.ORDER, epoch))


def substitute_rows(
    num_clips: int, recipe: SamplingRecipe, epoch: int, positions: np.ndarray, attempts: np.ndarray
) -> np.ndarray:
    """Rows that stand in for clips which could not be decoded; attempt 1 for the clip itself, 2 for its substitute ..."""
    return keyed.below(keyed.mix(recipe.seed, keyed.SUBSTITUTE, epoch, positions, attempts), num_clips)


def start_range(num_frames: np.ndarray, clip_frames: int, step: np.ndarray) -> np.ndarray:
    """Last frame a window may start at: ⌊F − T · step⌋, and 0 for videos shorter than a window (official pre-training)."""
    return np.maximum(0, np.floor(num_frames - clip_frames * step)).astype(np.int64)


def window_frames(start: np.ndarray, num_frames: np.ndarray, clip_frames: int, step: np.ndarray) -> np.ndarray:
    """Starts (n,), lengths (n,), step in frames (n,), not always whole -> frame indices (n, T).

    start + round(i · step). A video shorter than T · step is walked from frame 0 and then stands still at the last index
    reached that is below F − 1: the official loader's rule, whose strict '<' never takes the very last frame.
    """
    offsets = np.floor(np.arange(clip_frames) * step[:, None] + 0.5).astype(np.int64)
    short = np.maximum.accumulate(np.where(offsets <= num_frames[:, None] - 2, offsets, 0), axis=1)
    fits = num_frames - clip_frames * step >= 0
    return np.where(fits[:, None], np.minimum(start[:, None] + offsets, num_frames[:, None] - 1), short)


def frame_step(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """Distance of consecutive frames of a view, in frames of the clip: its stride, or interval · fps. float64."""
    stride = manifest.stride[rows]
    return np.where(stride > 0, stride, manifest.interval[rows] * manifest.fps[rows])


def sample_clips(
    manifest: Manifest, recipe: SamplingRecipe, epoch: int, positions: np.ndarray, attempts: np.ndarray
) -> ClipSamples:
    """Clips, frames and crops at B positions. `attempts` (B,): how many clips failed there; 0 is the order's own clip."""
    views = recipe.views_per_clip
    rows = clip_rows(len(manifest), recipe, epoch, positions)
    if attempts.any():
        rows = np.where(attempts > 0, substitute_rows(len(manifest), recipe, epoch, positions, attempts), rows)
    step, length = frame_step(manifest, rows), manifest.num_frames[rows].astype(np.int64)
    choices = start_range(length, recipe.num_frames, step) + 1
    start = keyed.below(keyed.mix(recipe.seed, keyed.FRAMES, epoch, positions), choices)

    crop_keys = _view_keys(recipe, keyed.CROP, epoch, positions)
    width, height = (np.repeat(side[rows].astype(np.int64), views) for side in (manifest.width, manifest.height))
    boxes = crops.multi_scale_crop(crop_keys, width, height, recipe.input_size)
    return ClipSamples(rows, window_frames(start, length, recipe.num_frames, step), boxes.reshape(-1, views, 4))


def sample_masks(recipe: SamplingRecipe, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of the B·R views at B positions, the views of a clip adjacent; see `masking.mask_indices`."""
    keys = _view_keys(recipe, keyed.MASK, epoch, positions)
    return masking.mask_indices(keys, recipe.grid, recipe.mask_ratio, recipe.decoder_mask_ratio)


def _view_keys(recipe: SamplingRecipe, purpose: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """A key per view: each crop and each mask is a draw of its own -> uint64 (B·R,)."""
    return keyed.mix(recipe.seed, purpose, epoch, positions[:, None], np.arange(recipe.views_per_clip)).reshape(-1)


def validation_frames(num_frames: int, clip_frames: int, stride: int) -> np.ndarray:
    """Fine-tuning, dense validation: the official centred window, whose linspace is no exact stride -> (T,) int64."""
    span = clip_frames * stride
    if num_frames > span:
        end = (span + num_frames) // 2
        return np.clip(np.linspace(end - span, end, clip_frames), end - span, end - 1).astype(np.int64)
    walked = np.linspace(0, num_frames, num_frames // stride)
    padded = np.concatenate([walked, np.full(clip_frames - len(walked), num_frames)])
    return np.clip(padded, 0, num_frames - 1).astype(np.int64)


def segment_frames(num_frames: int, clip_frames: int, stride: int, segments: int) -> np.ndarray:
    """Fine-tuning, dense test: windows over every `stride`-th frame of the whole video -> (segments, T) int64.

    The official view k begins at int(k · (n − T) / (S − 1)) of the n frames taken; one segment is centred (the official
    code divides by zero).
    """
    taken = np.arange(0, num_frames, stride)
    taken = np.concatenate([taken, np.full(max(0, clip_frames - len(taken)), taken[-1])])
    free = len(taken) - clip_frames
    starts = [int(k * free / (segments - 1)) for k in range(segments)] if segments > 1 else [free // 2]
    return np.stack([taken[start : start + clip_frames] for start in starts])
