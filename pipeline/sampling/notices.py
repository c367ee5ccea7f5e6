"""What a loader takes of a dataset otherwise than one might think, from the manifest alone: a line each, with numbers."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline.sampling.frames import AT_KEY_FRAMES, frame_step, parse_rate, repeated, training_frames
from pipeline.sampling.order import order_of
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.sampling.splits import AT_ONCE, clips_of_split, describe_split
from pipeline.storage.manifest import Manifest


@dataclass(frozen=True, slots=True)
class ShortClips:
    """Among `clips`, those whose T frames are not T different ones, and those that show a single one, because the next is
    beyond their end; `repeated` frames of one view of each clip are the one before once more."""

    clips: int
    short: int
    still: int
    repeated: int


def short_clips(manifest: Manifest, recipe: SamplingRecipe) -> ShortClips:
    """Among the clips that the recipe takes; `repeated` hangs a little on the draw where frames are less than one apart. 1.35
    million: 0.15 s, where rates differ 0.6; looked at `AT_ONCE`, so that memory does not grow with them."""
    order, frames, rate = order_of(manifest, recipe), recipe.num_frames, parse_rate(recipe.sampling)
    exact = recipe.temporal in ("stride", "linspace", *AT_KEY_FRAMES)
    kinds: Counter[tuple[float, float]] = Counter()  # pairs of length and step; few different ones
    clips = order.num_distinct
    for first in range(0, clips, AT_ONCE):
        rows = order.clips(first, first + AT_ONCE)
        length = manifest.num_frames[rows].astype(np.int64)
        step = frame_step(manifest, rows, rate)
        few = (length < frames * step) | (step < 1) if exact else length < frames
        pairs, counts = np.unique(length[few] + 1j * step[few], return_counts=True)
        kinds.update(dict(zip(zip(pairs.real.tolist(), pairs.imag.tolist(), strict=True), counts.tolist(), strict=True)))
    if not kinds:
        return ShortClips(clips, 0, 0, 0)
    pairs, counts = np.array(sorted(kinds)), np.array([kinds[pair] for pair in sorted(kinds)])
    taken = training_frames(None, pairs[:, 0].astype(np.int64), frames, pairs[:, 1], recipe.temporal)
    again = repeated(taken)
    return ShortClips(clips, int(counts[again > 0].sum()), int(counts[again == frames - 1].sum()), int((counts * again).sum()))


def notices(manifest: Manifest, recipe: SamplingRecipe) -> list[str]:
    """For people; empty where there is nothing to say. Raises ValueError as `order_of` does."""
    lines = []
    if clips_of_split(manifest, recipe.split) is not None:
        lines.append(describe_split(manifest, recipe.split))
    found = short_clips(manifest, recipe)
    if found.short:
        frames = found.clips * recipe.num_frames
        lines.append(
            f"{found.short:,} of {found.clips:,} clips are too short for {recipe.num_frames} different frames: "
            f"{found.repeated:,} of {frames:,} frames ({found.repeated / frames:.1%}) are the one before once more"
        )
    if found.still:
        lines.append(
            f"{found.still:,} of {found.clips:,} clips end before the second frame of a view: it shows one frame "
            f"{recipe.num_frames} times (sampling {recipe.sampling!r})"
        )
    if manifest.version < len(manifest.versions):
        lines.append(
            f"the dataset has version {len(manifest.versions)} with {manifest.versions[-1]['rows']:,} clips; this goes on with "
            f"version {manifest.version}, its first {len(manifest):,}"
        )
    return lines
