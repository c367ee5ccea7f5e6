"""What an autoencoder makes of the tokens that it does not see, as pixels, and pictures of it.

As in the papers' pictures the prediction is of normalised patches: mean and contrast of each are taken from the input. The
means alone, which nobody had to learn, are beside them in what `train/reconstruct.py` makes."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from einops import rearrange

from model.config import ModelConfig
from model.pixels import pasted, patches_of, pixel_targets
from model.videomae import VideoMAE

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

INK, MUTED, ACCENT = "#1b1f24", "#8a929c", "#c2410c"
plt.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "font.size": 10})
HIDDEN_GREY = 0.5
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


def unpatchify(patches: torch.Tensor, config: ModelConfig) -> np.ndarray:
    """Patches (n, N, P) in [0, 1], or beyond -> uint8 (n, T, size, size, 3)."""
    (time, rows, _), frames, side = config.grid, config.tubelet_size, config.patch_size
    views = rearrange(patches, "n (t r c) (f y x k) -> n (t f) (r y) (c x) k", t=time, r=rows, f=frames, y=side, k=3)
    return (views.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
