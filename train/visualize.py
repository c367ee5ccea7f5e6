#!/usr/bin/env python3
"""Draw what a pre-training run has learned: RUN/loss.png and RUN/reconstruction.png.

    python train/visualize.py RUN [--clips 6] [--frames 4]

In the reconstruction every clip has three rows: the input, what the encoder saw of it, and the prediction of what was hidden,
pasted into what was seen. As in the papers' pictures the prediction is of normalised patches: mean and contrast of each
are taken from the input.
"""

import sys
from dataclasses import replace
from pathlib import Path

ROOT, HERE = (str(Path(__file__).resolve().parents[i]) for i in (1, 0))
sys.path[:] = [ROOT, *(folder for folder in sys.path if folder not in (ROOT, HERE))]

import argparse
import json
from collections.abc import Sequence

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.ticker import MaxNLocator

from model.config import ModelConfig
from model.patches import gather_patches
from model.videomae import VideoMAE
from pipeline import keyed
from pipeline.decode import ClipRequest, DecodeError, decode_libav
from pipeline.manifest import Manifest
from pipeline.masking import mask_indices, running_cell_masks
from pipeline.sampling import SamplingRecipe, sample_clips
from pipeline.storage import ShardReader
from train import checkpoints

INK, MUTED, ACCENT = "#1b1f24", "#8a929c", "#c2410c"
plt.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "font.size": 10})
HIDDEN_GREY = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of train/pretrain.py")
    parser.add_argument("--clips", type=int, default=6, help="clips in the picture (default: 6)")
    parser.add_argument("--frames", type=int, default=4, help="frames of each, equally spaced (default: 4)")
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser.print_help()
        return 2
    options = parser.parse_args(arguments)
    try:
        draw_loss(options.run)
        print(f"loss curve       {options.run / 'loss.png'}")
        draw_reconstruction(options.run, options.clips, options.frames)
        print(f"reconstruction   {options.run / 'reconstruction.png'}")
    except (ValueError, OSError, DecodeError) as error:
        print(f"visualize: {error}", file=sys.stderr)
        return 2
    return 0


def draw_loss(run: Path) -> None:
    """RUN/metrics.jsonl -> RUN/loss.png: every logged value, and their running mean. Raises ValueError without any."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = [line for line in lines if line["loss"] is not None]
    if not lines:
        raise ValueError(f"{file} has no losses yet; train first: python train/pretrain.py RECIPE --data DATASET --out {run}")
    steps, losses = np.array([line["step"] for line in lines]), np.array([line["loss"] for line in lines])
    window = max(1, len(losses) // 20)
    smooth = np.convolve(np.pad(losses, (window - 1, 0), mode="edge"), np.full(window, 1 / window), mode="valid")

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color=ACCENT, alpha=0.35, linewidth=1, label="logged")
    axes.plot(steps, smooth, color=ACCENT, linewidth=2, label="smoothed")
    axes.set(xlabel="step", ylabel="loss: squared error of normalised pixels", xlim=(0, steps[-1]))
    axes.set_title(f"{run.name}: {losses[0]:.3f} → {losses[-1]:.3f} in {steps[-1]} steps", loc="left", fontweight="bold")
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate = axes.twinx()
    rate.plot(steps, [line["lr"] for line in lines], color=MUTED, linewidth=1, linestyle="--", label="learning rate")
    rate.set_ylabel("learning rate", color=MUTED)
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", scilimits=(0, 0))
    handles = [*axes.get_legend_handles_labels()[0], *rate.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    rate.spines[["top", "left", "bottom"]].set_visible(False)
    figure.savefig(run / "loss.png", dpi=110)
    plt.close(figure)


@torch.no_grad()
def draw_reconstruction(run: Path, num_clips: int, num_frames: int) -> None:
    """RUN's newest checkpoint and dataset -> RUN/reconstruction.png. Raises ValueError if the run has no checkpoint."""
    checkpoint = checkpoints.latest(run / "checkpoints")
    if checkpoint is None:
        raise ValueError(
            f"{run} has no checkpoint yet; train first: python train/pretrain.py RECIPE --data DATASET --out {run}"
        )
    config = json.loads((run / "config.json").read_text())
    state = checkpoints.read_progress(checkpoint).loader
    recipe = SamplingRecipe(**state.recipe)
    model = VideoMAE(ModelConfig(**config["model"]))
    checkpoints.load_model(checkpoint, model)
    manifest = Manifest(config["data"], state.version)

    views = centre_views(manifest, recipe, min(num_clips, len(manifest)))
    masked, filled = reconstruct(model, recipe, views)
    shown = np.linspace(0, recipe.num_frames - 1, num_frames).round().astype(int)
    rows = [clips[:, shown] for clips in (views.numpy(), masked, filled)]

    across = 2 if len(views) > 1 else 1
    down = -(-len(views) // across)
    size = 1.3
    figure = plt.figure(figsize=(across * num_frames * size + 1.6, down * 3 * size + 0.9), layout="constrained")
    blocks = figure.subfigures(down, across, squeeze=False, wspace=0.03, hspace=0.03)
    for i, block in enumerate(blocks.flat):
        if i >= len(views):
            continue
        for axes, (row, column) in zip(block.subplots(3, num_frames).flat, np.ndindex(3, num_frames), strict=True):
            axes.imshow(rows[row][i, column], interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column == 0 and i % across == 0:
                axes.set_ylabel(("input", "seen", "reconstruction")[row])
            if row == 0 and i < across:
                axes.set_title(f"frame {shown[column]}", fontsize=9, color=MUTED)
    hidden = 1 - recipe.tokens.visible / model.config.num_tokens
    figure.suptitle(
        f"{run.name}, step {int(checkpoint.name.split('-')[1])}: {hidden:.0%} hidden; "
        "mean and contrast of each hidden patch are the input's, as in the papers",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    figure.savefig(run / "reconstruction.png", dpi=110)
    plt.close(figure)


def centre_views(manifest: Manifest, recipe: SamplingRecipe, num_clips: int) -> torch.Tensor:
    """The largest centred square of `num_clips` clips of the dataset's order -> uint8 (n, T, size, size, 3)."""
    positions = np.arange(num_clips)
    samples = sample_clips(manifest, replace(recipe, fresh_windows=False), 0, positions, np.zeros_like(positions))
    reader = ShardReader(manifest.root)
    views = np.empty((num_clips, 1, recipe.num_frames, recipe.input_size, recipe.input_size, 3), np.uint8)
    for view, row, frames in zip(views, samples.rows, samples.frames, strict=True):
        clip = manifest.clip(int(row))
        side = min(clip.width, clip.height)
        box = np.array([[(clip.width - side) // 2, (clip.height - side) // 2, side, side]])
        data = reader.read(clip)
        decode_libav(ClipRequest(clip, data, frames, box), view)
    reader.close()
    return torch.from_numpy(views[:, 0])


def reconstruct(model: VideoMAE, recipe: SamplingRecipe, views: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Views (n, T, size, size, 3) uint8 -> what the encoder saw, and the same with the predictions pasted in: uint8 alike.

    The decoder is asked as in training, once for each running-cell mask; where several cover a token they are averaged.
    """
    config = model.config
    keys = keyed.mix(recipe.seed, keyed.MASK, np.arange(len(views)))
    indices = mask_indices(keys, recipe.grid, recipe.mask_ratio, 0)
    visible = torch.from_numpy(indices[0])
    every = torch.arange(config.num_tokens).expand(len(views), -1)
    patches = gather_patches(views, every, config.patch_size, config.tubelet_size)
    latent = model.encode(views, visible)
    total = torch.zeros(patches.shape)
    count = torch.zeros(config.num_tokens)
    if recipe.decoder_mask_ratio:
        decoded = [torch.from_numpy(np.flatnonzero(~m)) for m in running_cell_masks(recipe.grid, recipe.decoder_mask_ratio)]
    else:
        decoded = [torch.arange(config.num_tokens)]
    for tokens in decoded:
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
    return tuple(unpatchify(image.scatter(1, where, shown), config) for image in (seen, pasted))  # type: ignore[return-value]


def unpatchify(patches: torch.Tensor, config: ModelConfig) -> np.ndarray:
    """Patches (n, N, pixels, 3) in [0, 1] -> uint8 (n, T, size, size, 3)."""
    time, rows, columns = config.grid
    frames = rearrange(
        patches,
        "n (t r c) (f y x) k -> n (t f) (r y) (c x) k",
        t=time,
        r=rows,
        c=columns,
        f=config.tubelet_size,
        y=config.patch_size,
    )
    return (frames * 255).round().to(torch.uint8).numpy()


if __name__ == "__main__":
    sys.exit(main())
