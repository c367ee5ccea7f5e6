"""Pictures of what a model makes of the tokens that it does not see.

Every clip has three rows: the input, what the encoder saw of it, and the prediction of what was hidden, pasted into what was
seen (`train/pictures.py`).
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.distributed.fsdp import register_fsdp_forward_method

from model.videomae import VideoMAE
from pipeline import keyed
from pipeline.console import may_fail
from pipeline.decoding.decode import ClipRequest, DecodeError, decode_libav
from pipeline.sampling import SamplingRecipe, sample_clips
from pipeline.sampling.masking import mask_indices
from pipeline.sampling.masks.rules import DECODER_RULES
from pipeline.sampling.masks.running_cell import patterns
from pipeline.sampling.splits import count_clips
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader
from train.compute.parallel import Ranks
from train.pictures import BORROWED, Images, draw_images, paint
from train.stage import Evaluation

CLIPS, FRAMES = 6, 4  # of the pictures that a run makes of itself


class Reconstructions:
    """RUN/reconstructions/step-00000500.png, and so on, of the same clips each time: an evaluator. All ranks take part.

    Neither the loader nor a generator of random numbers has to do with it: clips, frames and masks are computed from the seed.
    """

    def __init__(self, run: Path, manifest: Manifest, recipe: SamplingRecipe, model: VideoMAE, ranks: Ranks) -> None:
        """Decode the clips, on rank 0. Raises ValueError on every rank if none can be decoded."""
        self._folder, self._recipe, self._ranks = run / "reconstructions", recipe, ranks
        for name in ("encode", "decode"):  # so that they gather the parameters as the forward does
            register_fsdp_forward_method(model, name)
        views, error = None, None
        if ranks.rank == 0:
            self._folder.mkdir(exist_ok=True)
            try:
                views = centre_views(manifest, recipe, CLIPS)
            except (DecodeError, OSError) as caught:
                error = str(caught)
        views, error = ranks.gather((views, error))[0]
        if error:
            raise ValueError(f"--reconstruct-every: {error}")
        self._views: torch.Tensor = views.to(ranks.device)

    def __call__(self, model: VideoMAE, step: int) -> Evaluation:
        """Rank 0 draws."""
        images = reconstruct(model, self._recipe, self._views)
        pictures = {}
        if self._ranks.rank == 0:
            file = self._folder / f"step-{step:08d}.png"
            with may_fail(str(self._folder)):
                title = title_of(f"{self._folder.parent.name}, step {step}", self._recipe)
                pictures["reconstruction"] = file, draw_images(file, rows_of(images), FRAMES, title)
        return Evaluation(pictures=pictures)


def rows_of(images: Images) -> dict[str, np.ndarray]:
    """The three of a run's own pictures."""
    return {"input": images.shown, "seen": images.seen, "reconstruction": images.pasted}


def title_of(what: str, recipe: SamplingRecipe) -> str:
    return f"{what}: {1 - recipe.tokens.visible / math.prod(recipe.grid):.0%} hidden; {BORROWED}"


def centre_views(manifest: Manifest, recipe: SamplingRecipe, num_clips: int) -> torch.Tensor:
    """The largest centred square of the first `num_clips` clips in the order of epoch 0 -> uint8 (n, T, size, size, 3).

    Those that cannot be read or decoded are left out. Raises DecodeError or OSError if none of the first ones can.
    """
    positions = np.arange(min(2 * num_clips, count_clips(manifest, recipe.split)))
    samples = sample_clips(manifest, replace(recipe, fresh_windows=False), 0, positions, np.zeros_like(positions))
    reader = ShardReader(manifest.root)
    views: list[np.ndarray] = []
    for row, frames in zip(samples.rows, samples.frames, strict=True):
        clip = manifest.clip(int(row))
        side = min(clip.width, clip.height)
        box = np.array([[(clip.width - side) // 2, (clip.height - side) // 2, side, side]])
        view = np.empty((1, recipe.num_frames, *recipe.view_size, 3), np.uint8)
        try:
            decode_libav(ClipRequest(clip, reader.read(clip), frames, box), view)
        except (DecodeError, OSError) as error:
            failure = error
            continue
        views += [view]
        if len(views) == num_clips:
            break
    reader.close()
    if not views:
        raise failure
    return torch.from_numpy(np.concatenate(views))


@torch.no_grad()
def reconstruct(model: VideoMAE, recipe: SamplingRecipe, views: torch.Tensor) -> Images:
    """Views (n, T, size, size, 3) uint8 -> pictures, with a mask of the recipe drawn for each.

    The decoder is asked as in training, once for each running-cell mask, or for what another mask leaves and for the rest.
    """
    keys = keyed.mix(recipe.seed, keyed.MASK, np.arange(len(views)))
    assert recipe.masks is not None
    indices = mask_indices(keys, recipe.grid, recipe.mask_ratio, 0, recipe.arithmetic, recipe.masks)
    visible, hidden = (torch.from_numpy(each).to(views.device) for each in indices[:2])
    asked = [np.flatnonzero(~mask) for mask in decoder_masks(recipe)] if recipe.decoder_mask_ratio else []
    return paint(model, views, visible, hidden, [torch.from_numpy(tokens).to(views.device) for tokens in asked])


def decoder_masks(recipe: SamplingRecipe) -> np.ndarray:
    """Masks that leave every token at least once, bool (n, N)."""
    if recipe.decoder_masks == "running-cell":
        return patterns(recipe.grid, recipe.decoder_mask_ratio)
    mask = DECODER_RULES[recipe.decoder_masks].draw(keyed.mix(recipe.seed, np.zeros(1)), recipe.grid, recipe.decoder_mask_ratio)
    return np.concatenate([mask, ~mask])
