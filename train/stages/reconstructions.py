"""Pictures of what a model makes of the tokens that it does not see.

Every clip has three rows: the input, what the encoder saw of it, and the prediction of what was hidden, pasted into what was
seen. As in the papers' pictures the prediction is of normalised patches: mean and contrast of each are taken from the input.
"""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from einops import rearrange
from torch.distributed.fsdp import register_fsdp_forward_method

from model.config import ModelConfig
from model.pixels import gather_patches
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
from train.stage import Evaluation

matplotlib.use("agg")
import matplotlib.pyplot as plt

INK, MUTED, ACCENT = "#1b1f24", "#8a929c", "#c2410c"
plt.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "font.size": 10})
HIDDEN_GREY = 0.5
Images = tuple[np.ndarray, np.ndarray, np.ndarray]  # input, seen, reconstruction: uint8 (n, T, size, size, 3) each
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
                title = f"{self._folder.parent.name}, step {step}"
                pictures["reconstruction"] = file, draw_images(file, images, self._recipe, FRAMES, title)
        return Evaluation(pictures=pictures)


def draw_images(file: Path, images: Images, recipe: SamplingRecipe, num_frames: int, title: str) -> np.ndarray:
    """What `reconstruct` gives -> a picture of `num_frames` frames, equally spaced, in a file; and its pixels, uint8 (height,
    width, 3)."""
    shown = np.linspace(0, recipe.num_frames - 1, num_frames).round().astype(int)
    rows = [clips[:, shown] for clips in images]
    num_clips = len(images[0])
    across = 2 if num_clips > 1 else 1
    down = -(-num_clips // across)
    size = 1.3
    figure = plt.figure(figsize=(across * num_frames * size + 1.6, down * 3 * size + 0.9), layout="constrained")
    blocks = figure.subfigures(down, across, squeeze=False, wspace=0.03, hspace=0.03)
    for i, block in enumerate(blocks.flat):
        if i >= num_clips:
            continue
        for axes, (row, column) in zip(block.subplots(3, num_frames).flat, np.ndindex(3, num_frames), strict=True):
            axes.imshow(rows[row][i, column], interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column == 0 and i % across == 0:
                axes.set_ylabel(("input", "seen", "reconstruction")[row])
            if row == 0 and i < across:
                axes.set_title(f"frame {shown[column]}", fontsize=9, color=MUTED)
    hidden = 1 - recipe.tokens.visible / math.prod(recipe.grid)
    said = f"{title}: {hidden:.0%} hidden; mean and contrast of each hidden patch are the input's, as in the papers"
    figure.suptitle(said, x=0.01, ha="left", fontsize=10)
    figure.savefig(file, dpi=110)
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    plt.close(figure)
    return pixels


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
    """Views (n, T, size, size, 3) uint8 -> themselves, what the encoder saw, and that with the predictions pasted in.

    The decoder is asked as in training, once for each running-cell mask, or for what another mask leaves and for the rest;
    where several cover a token they are averaged.
    """
    config, device = model.config, views.device
    keys = keyed.mix(recipe.seed, keyed.MASK, np.arange(len(views)))
    assert recipe.masks is not None
    indices = mask_indices(keys, recipe.grid, recipe.mask_ratio, 0, recipe.arithmetic, recipe.masks)
    visible = torch.from_numpy(indices[0]).to(device)
    every = torch.arange(config.num_tokens, device=device).expand(len(views), -1)
    patches = gather_patches(views, every, config.patch_size, config.tubelet_size)
    latent = model.encode(views, visible)
    total = torch.zeros(patches.shape, device=device)
    count = torch.zeros(config.num_tokens, device=device)
    for mask in decoder_masks(recipe):
        tokens = torch.from_numpy(np.flatnonzero(~mask)).to(device)
        total[:, tokens] += model.decode(latent, visible, tokens.expand(len(views), -1))
        count[tokens] += 1
    # from normalised pixels back: with the true patch's mean and deviation, per channel
    pixels = patches.float().unflatten(-1, (-1, 3)) / 255
    mean, deviation = pixels.mean(2, keepdim=True), pixels.std(2, keepdim=True)
    predicted = (total / count[:, None]).unflatten(-1, (-1, 3)) * deviation + mean
    seen = torch.full_like(pixels, HIDDEN_GREY)
    pasted = predicted.clamp(0, 1)
    where = visible[..., None, None].expand(-1, -1, *pixels.shape[2:])
    shown = pixels.gather(1, where)
    encoder_saw, filled = (unpatchify(image.scatter(1, where, shown), config) for image in (seen, pasted))
    return views.cpu().numpy(), encoder_saw, filled


def decoder_masks(recipe: SamplingRecipe) -> np.ndarray:
    """Masks that leave every token at least once, bool (n, N)."""
    if recipe.decoder_mask_ratio == 0:
        return np.zeros((1, math.prod(recipe.grid)), bool)
    if recipe.decoder_masks == "running-cell":
        return patterns(recipe.grid, recipe.decoder_mask_ratio)
    mask = DECODER_RULES[recipe.decoder_masks].draw(keyed.mix(recipe.seed, np.zeros(1)), recipe.grid, recipe.decoder_mask_ratio)
    return np.concatenate([mask, ~mask])


def unpatchify(patches: torch.Tensor, config: ModelConfig) -> np.ndarray:
    """Patches (n, N, pixels, 3) in [0, 1] -> uint8 (n, T, size, size, 3)."""
    (time, rows, _), frames, side = config.grid, config.tubelet_size, config.patch_size
    views = rearrange(patches, "n (t r c) (f y x) k -> n (t f) (r y) (c x) k", t=time, r=rows, f=frames, y=side)
    return (views * 255).round().to(torch.uint8).cpu().numpy()
