"""Pictures of what a model makes of the tokens that it does not see.

Every clip has three rows: the input, what the encoder saw of it, and the prediction of what was hidden, pasted into what was
seen. As in the papers' pictures the prediction is of normalised patches: mean and contrast of each are taken from the input.
The means alone, which nobody had to learn, are a row of their own in the pictures that `train/reconstruct.py` makes.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from einops import rearrange
from torch.distributed.fsdp import register_fsdp_forward_method

from model.config import ModelConfig
from model.pixels import pasted, patches_of, pixel_targets
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
from matplotlib.figure import Figure

INK, MUTED, ACCENT = "#1b1f24", "#8a929c", "#c2410c"
plt.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "font.size": 10})
HIDDEN_GREY = 0.5
CLIPS, FRAMES = 6, 4  # of the pictures that a run makes of itself
BORROWED = "mean and contrast of each hidden patch are the input's, as in the papers"


class Images(NamedTuple):
    """Uint8 (n, T, size, size, 3) each, and what the predictions are worth."""

    shown: np.ndarray
    seen: np.ndarray
    pasted: np.ndarray
    """What was seen, and the predictions."""
    means: np.ndarray
    """What was seen, and the hidden patches' own means."""
    error: float
    """Mean squared error of the hidden tokens' normalised pixels, and the same of their means alone: about 1."""
    error_of_means: float


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


def draw_images(file: Path, rows: Mapping[str, np.ndarray], num_frames: int, title: str) -> np.ndarray:
    """Rows by name, uint8 (n, T, size, size, 3) each -> a picture of `num_frames` frames of n clips, equally spaced, in a file;
    and its pixels, uint8 (height, width, 3)."""
    names, clips = list(rows), np.stack(list(rows.values()), axis=1)  # (n, rows, T, size, size, 3)
    num_clips, num_rows, length = clips.shape[:3]
    shown = np.linspace(0, length - 1, num_frames).round().astype(int)
    across = 2 if num_clips > 1 else 1
    down = -(-num_clips // across)
    size = 1.3
    figure = plt.figure(figsize=(across * num_frames * size + 1.6, down * num_rows * size + 0.9), layout="constrained")
    blocks = figure.subfigures(down, across, squeeze=False, wspace=0.03, hspace=0.03)
    for i, block in enumerate(blocks.flat):
        if i >= num_clips:
            continue
        for axes, (row, column) in zip(
            block.subplots(num_rows, num_frames, squeeze=False).flat, np.ndindex(num_rows, num_frames), strict=True
        ):
            axes.imshow(clips[i, row, shown[column]], interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column == 0 and i % across == 0:
                axes.set_ylabel(names[row])
            if row == 0 and i < across:
                axes.set_title(f"frame {shown[column]}", fontsize=9, color=MUTED)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, parse_math=False)
    return save(figure, file)


def save(figure: Figure, file: Path) -> np.ndarray:
    """A figure, which is closed, into a file -> its pixels, uint8 (height, width, 3)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that the font has not: boxes in its place
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
    """Views (n, T, size, size, 3) uint8 -> pictures, with a mask of the recipe drawn for each.

    The decoder is asked as in training, once for each running-cell mask, or for what another mask leaves and for the rest.
    """
    keys = keyed.mix(recipe.seed, keyed.MASK, np.arange(len(views)))
    assert recipe.masks is not None
    indices = mask_indices(keys, recipe.grid, recipe.mask_ratio, 0, recipe.arithmetic, recipe.masks)
    visible, hidden = (torch.from_numpy(each).to(views.device) for each in indices[:2])
    asked = [np.flatnonzero(~mask) for mask in decoder_masks(recipe)] if recipe.decoder_mask_ratio else []
    return paint(model, views, visible, hidden, [torch.from_numpy(tokens).to(views.device) for tokens in asked])


@torch.no_grad()
def paint(
    model: VideoMAE, views: torch.Tensor, visible: torch.Tensor, hidden: torch.Tensor, asked: Sequence[torch.Tensor] = ()
) -> Images:
    """Views (n, T, size, size, 3) uint8, tokens (n, V) and (n, N - V) -> pictures.

    The decoder is asked once for all hidden tokens (VideoMAE V1), or for each of the sets of tokens (K,) that are `asked`,
    which together have all of them; where several have one they are averaged. A model that was trained with running cells
    gives as good an answer either way: errors 0.7688 and 0.7686 (the quickstart's after 250 steps, 24 clips).
    """
    config = model.config
    patches = patches_of(views, config.patch_size, config.tubelet_size)
    where = hidden[..., None].expand(-1, -1, patches.shape[-1])
    latent = model.encode(views, visible)
    if asked:
        total = torch.zeros(patches.shape, device=views.device)
        count = torch.zeros(config.num_tokens, device=views.device)
        for tokens in asked:
            total[:, tokens] += model.decode(latent, visible, tokens.expand(len(views), -1))
            count[tokens] += 1
        predicted = (total / count[:, None]).gather(1, where)
    else:
        predicted = model.decode(latent, visible, hidden).float()
    target = pixel_targets(patches.gather(1, where), torch.float32)
    filled, seen = pasted(patches, hidden, predicted, HIDDEN_GREY)
    means, _ = pasted(patches, hidden, torch.zeros_like(predicted))
    return Images(
        shown=views.cpu().numpy(),
        seen=unpatchify(seen, config),
        pasted=unpatchify(filled, config),
        means=unpatchify(means, config),
        error=float((predicted - target).square().mean()),
        error_of_means=float(target.square().mean()),
    )


def decoder_masks(recipe: SamplingRecipe) -> np.ndarray:
    """Masks that leave every token at least once, bool (n, N)."""
    if recipe.decoder_masks == "running-cell":
        return patterns(recipe.grid, recipe.decoder_mask_ratio)
    mask = DECODER_RULES[recipe.decoder_masks].draw(keyed.mix(recipe.seed, np.zeros(1)), recipe.grid, recipe.decoder_mask_ratio)
    return np.concatenate([mask, ~mask])


def unpatchify(patches: torch.Tensor, config: ModelConfig) -> np.ndarray:
    """Patches (n, N, P) in [0, 1], or beyond -> uint8 (n, T, size, size, 3)."""
    (time, rows, _), frames, side = config.grid, config.tubelet_size, config.patch_size
    views = rearrange(patches, "n (t r c) (f y x k) -> n (t f) (r y) (c x) k", t=time, r=rows, f=frames, y=side, k=3)
    return (views.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
