"""Which frames of a clip a view takes, as arithmetic: windows in time for pre-training, fine-tuning, validation and tests.

All of them are ascending indices in [0, F) for every clip of F >= 1 frames; a clip that is too short gives some of them more
than once, as the official loaders do, and `repeated` counts these. T is the number of frames of a view. A `step` is the
distance of two of them in frames of the clip: whole for a stride, not always for an interval in seconds.
"""

from typing import Literal, get_args

import numpy as np

from pipeline import keyed
from pipeline.storage.manifest import Manifest, parse_sampling

# Where a view's frames lie. "stride": the pre-training window, an exact step. "linspace": the official fine-tuning window,
# whose steps are 4 and sometimes 5. "tsn", "tsn_video": a frame from each of T equal segments of the whole clip, in the form
# of the official raw-frame loader (Something-Something V2) and of the one for videos (--sparse_sample). "key_frame": an exact
# step around the annotated frame k, k-32 ... k+28 of 16 frames at stride 4, as SlowFast's and mmaction2's code for AVA;
# "key_frame_videomae": one later, k-31 ... k+29, as VideoMAE's.
Temporal = Literal["stride", "linspace", "tsn", "tsn_video", "key_frame", "key_frame_videomae"]
TEMPORAL: tuple[Temporal, ...] = get_args(Temporal)
AT_KEY_FRAMES: dict[str, int] = {"key_frame": 0, "key_frame_videomae": 1}  # by how many frames the window begins later


def parse_rate(text: str) -> tuple[int, float] | None:
    """A recipe's `sampling` -> (stride, 0), (0, seconds), or None for "manifest": each clip as its source says.

    "stride:4" counts frames, "seconds:0.25" and "fps:4" time (4 frames a second is VideoMAE V2's model card). Raises
    ValueError for anything else.
    """
    if text == "manifest":
        return None
    kind, _, value = text.partition(":")
    try:
        if kind != "fps":
            return parse_sampling(text)
        if 0 < (rate := float(value)) < 1e6:
            return 0, 1 / rate
    except ValueError:
        pass
    raise ValueError(
        f"sampling {text!r} is not known; allowed are 'manifest' (as each source was built), 'stride:N' (frames, N >= 1), "
        "'seconds:S' and 'fps:R' (S and R > 0)"
    )


def frame_step(manifest: Manifest, rows: np.ndarray, rate: tuple[int, float] | None = None) -> np.ndarray:
    """Rows (n,), and what a recipe has in place of the manifest's sampling -> steps (n,) float64: stride, or interval · fps."""
    if rate is None:
        stride, interval = manifest.stride[rows], manifest.interval[rows]
    else:
        stride, interval = np.full(rows.shape, rate[0]), np.full(rows.shape, rate[1])
    return np.where(stride > 0, stride, interval * manifest.fps[rows])


def repeated(frames: np.ndarray) -> np.ndarray:
    """Frames (B, ..., T) -> (B,) int64: how many of a clip's frames are the one before once more."""
    return (np.diff(frames, axis=-1) == 0).reshape(len(frames), -1).sum(axis=1)


def start_range(num_frames: np.ndarray, clip_frames: int, step: np.ndarray) -> np.ndarray:
    """Last frame a window may start at: ⌊F − T · step⌋, and 0 for videos shorter than a window (official pre-training)."""
    return np.maximum(0, np.floor(num_frames - clip_frames * step)).astype(np.int64)


def window_frames(start: np.ndarray, num_frames: np.ndarray, clip_frames: int, step: np.ndarray) -> np.ndarray:
    """Starts (n,), lengths (n,), steps (n,) -> frame indices (n, T): start + round(i · step).

    A video shorter than T · step is walked from frame 0 and then stands still at the last index reached that is below F − 1:
    the official loader's rule, whose strict '<' never takes the very last frame.
    """
    offsets = np.floor(np.arange(clip_frames) * step[:, None] + 0.5).astype(np.int64)
    short = np.maximum.accumulate(np.where(offsets <= num_frames[:, None] - 2, offsets, 0), axis=1)
    fits = num_frames - clip_frames * step >= 0
    return np.where(fits[:, None], np.minimum(start[:, None] + offsets, num_frames[:, None] - 1), short)


def training_frames(
    keys: np.ndarray | None,
    num_frames: np.ndarray,
    clip_frames: int,
    step: np.ndarray,
    temporal: str,
    key_frames: np.ndarray | None = None,
) -> np.ndarray:
    """Keys (n,), or None for validation, lengths (n,), steps (n,) -> frames (n, T): at random, or in the middle.

    Around key frames (n,), where `temporal` wants that, nothing is drawn; without them the middle stands for them.
    """
    if temporal in AT_KEY_FRAMES:
        middle = num_frames // 2 if key_frames is None else key_frames
        return key_frame_window(middle, num_frames, clip_frames, step, AT_KEY_FRAMES[temporal])
    if temporal == "stride":
        last = start_range(num_frames, clip_frames, step)
        return window_frames(last // 2 if keys is None else keyed.below(keys, last + 1), num_frames, clip_frames, step)
    if temporal == "linspace":
        span = np.maximum(1, np.floor(clip_frames * step)).astype(np.int64)
        starts = np.maximum(1, linspace_starts(num_frames, clip_frames, step))
        end = (span + num_frames) // 2 if keys is None else span + keyed.below(keys, starts)
        clips = zip(num_frames.tolist(), step.tolist(), end.tolist(), strict=True)
        return np.stack([linspace_frames(frames, clip_frames, each, last) for frames, each, last in clips])
    return tsn_frames(keys, num_frames, clip_frames, temporal)


def key_frame_window(
    key_frames: np.ndarray, num_frames: np.ndarray, clip_frames: int, step: np.ndarray, later: int = 0
) -> np.ndarray:
    """Key frames (n,), lengths (n,), steps (n,) -> frames (n, T): from half a window before the key frame on, which is then
    frame T / 2. What lies before the video is its first frame, what lies after it its last (SlowFast, mmaction2)."""
    start = key_frames - np.floor(clip_frames * step / 2).astype(np.int64) + later
    offsets = np.floor(np.arange(clip_frames) * step[:, None] + 0.5).astype(np.int64)
    return np.clip(start[:, None] + offsets, 0, num_frames[:, None] - 1)


def linspace_starts(num_frames: np.ndarray, clip_frames: int, step: np.ndarray) -> np.ndarray:
    """Fine-tuning, dense: how many starts are drawn from (n,), from frame 0 on; 0 where a window takes the whole video. The
    very last is never one (official)."""
    return np.maximum(0, num_frames - np.maximum(1, np.floor(clip_frames * step)).astype(np.int64))


def linspace_frames(num_frames: int, clip_frames: int, step: float, end: int) -> np.ndarray:
    """Fine-tuning, dense: the official window that ends before frame `end`, no exact stride -> (T,) int64.

    T points from end − T · step to end, truncated. A video of at most T · step frames gives F / step points over all of it,
    and then its last frame.
    """
    span = max(1, int(clip_frames * step))
    if num_frames > span:
        return np.clip(np.linspace(end - span, end, clip_frames), end - span, end - 1).astype(np.int64)
    walked = np.linspace(0, num_frames, min(clip_frames, int(num_frames / step)))
    padded = np.concatenate([walked, np.full(clip_frames - len(walked), num_frames)])
    return np.clip(padded, 0, num_frames - 1).astype(np.int64)


def validation_frames(num_frames: int, clip_frames: int, step: float) -> np.ndarray:
    """Fine-tuning, dense validation: the official window in the middle -> (T,) int64."""
    return linspace_frames(num_frames, clip_frames, step, (max(1, int(clip_frames * step)) + num_frames) // 2)


def segment_frames(num_frames: int, clip_frames: int, step: float, segments: int) -> np.ndarray:
    """Fine-tuning, dense test: S windows over every `step`-th frame of the whole video -> (S, T) int64.

    The official view k begins at int(k · (n − T) / (S − 1)) of the n frames taken; one segment is centred (the official
    code divides by zero). A video that gives fewer than T frames repeats the last of them.
    """
    taken = np.floor(np.arange(int(np.ceil(num_frames / step))) * step + 0.5).astype(np.int64)
    taken = np.minimum(taken, num_frames - 1)
    taken = np.concatenate([taken, np.full(max(0, clip_frames - len(taken)), taken[-1])])
    free = len(taken) - clip_frames
    starts = [int(k * free / (segments - 1)) for k in range(segments)] if segments > 1 else [free // 2]
    return np.stack([taken[start : start + clip_frames] for start in starts])


def sliding_starts(num_frames: int, clip_frames: int, step: int, every: int) -> np.ndarray:
    """Where windows begin that lie wholly in a sequence of frames: every so many of them from 0 on, int64 (W,). What is left at
    the end is in no window (official feature extraction), and a sequence that is too short for one has none."""
    return np.arange(0, num_frames - step * (clip_frames - 1), every)


def resampled_frames(times: np.ndarray, seconds: float, fps: float) -> np.ndarray:
    """The frame that is shown 0, 1, 2 ... times 1 / fps after the first, until the video ends at `seconds` -> int64 (n,).
    `times` (F,) are those at which frames are shown, ascending; a tenth of a millisecond late is on time."""
    moments = times[0] + np.arange(max(1, np.ceil((seconds - times[0] - 1e-4) * fps))) / fps
    return np.maximum(0, np.searchsorted(times, moments + 1e-4, side="right") - 1)


def tsn_frames(keys: np.ndarray | None, num_frames: np.ndarray, clip_frames: int, form: str = "tsn") -> np.ndarray:
    """A frame from each of T segments of ⌊F / T⌋ frames -> (n, T) int64: a random one, or without keys the middle one.

    The middle is ⌊length / 2⌋. The form "tsn_video" never takes the last frame of a segment that has two or more, and its
    middle is ⌊(length − 1) / 2⌋. A video of fewer than T frames begins with frame 0 repeated, then is taken whole (where the
    official video form fails).
    """
    if keys is None:
        length = (num_frames // clip_frames)[:, None]
        offset = np.maximum(0, length - 1) // 2 if form == "tsn_video" else length // 2
    else:
        choices = np.maximum(1, tsn_choices(num_frames, clip_frames, form))
        offset = keyed.below(keyed.mix(keys[:, None], np.arange(clip_frames)), choices[:, None])
    return tsn_at(offset, num_frames, clip_frames)


def tsn_choices(num_frames: np.ndarray, clip_frames: int, form: str = "tsn") -> np.ndarray:
    """From how many frames of a segment one is drawn (n,), from its first on; 0 where none is."""
    length = num_frames // clip_frames
    return np.maximum(0, length - 1) if form == "tsn_video" else length


def tsn_at(offset: np.ndarray, num_frames: np.ndarray, clip_frames: int) -> np.ndarray:
    """Places in their segments, (n, T) or (n, 1) -> frames (n, T)."""
    length, place = (num_frames // clip_frames)[:, None], np.arange(clip_frames)
    padded = np.maximum(0, place - (clip_frames - num_frames[:, None]))
    return np.where(length > 0, place * length + offset, padded)


def tsn_test_frames(num_frames: int, clip_frames: int, views: int) -> np.ndarray:
    """Fine-tuning, sparse test -> (S, T) int64: view k of S takes frames int(k / S · F / T + i · F / T) of the whole video."""
    tick = num_frames / clip_frames
    return (np.arange(views)[:, None] * tick / views + tick * np.arange(clip_frames)).astype(np.int64)
