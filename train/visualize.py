#!/usr/bin/env python3
"""Draw what a run has learned: RUN/loss.png and, of pre-training that predicts pixels, RUN/reconstruction.png.

    tubecell visualize RUN [--clips 6] [--frames 4] [--data DATASET]

What the picture shows: see train/stages/reconstructions.py. (A run makes them itself with --reconstruct-every.)
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import json
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from model.config import ModelConfig
from model.videomae import VideoMAE
from pipeline.console import exit_status
from pipeline.decoding.decode import DecodeError
from pipeline.sampling import SamplingRecipe
from pipeline.settings import read
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import is_url, on_disk
from train.checkpoint import state as checkpoints
from train.checkpoint.weights import load_model
from train.config import read_config, read_stage
from train.pictures import ACCENT, MUTED, draw_images, plt, save
from train.run.folder import ENVIRONMENT
from train.stages.reconstructions import centre_views, reconstruct, rows_of, title_of


@exit_status(DecodeError, name="visualize")
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=on_disk, metavar="RUN", help="folder of a run")
    parser.add_argument("--clips", type=int, default=6, help="clips in the picture (default: 6)")
    parser.add_argument("--frames", type=int, default=4, help="frames of each, equally spaced (default: 4)")
    parser.add_argument("--data", metavar="DATASET", help="where the run's dataset lies now, if it was moved")
    options = parser.parse_args(arguments)
    draw_loss(options.run)
    print(f"loss curve       {options.run / 'loss.png'}")
    if predicts_pixels(options.run):
        draw_reconstruction(options.run, options.clips, options.frames, options.data)
        print(f"reconstruction   {options.run / 'reconstruction.png'}")


def predicts_pixels(run: Path) -> bool:
    """Raises ValueError for what is no run's folder."""
    file = run / "config.json"
    if not file.exists():
        raise ValueError(f"{run} has no config.json; give the --out folder of a run")
    return read_stage(file) == "pretrain" and read_config(file).get("target", "pixels") == "pixels"


def draw_loss(run: Path) -> None:
    """RUN/metrics.jsonl -> RUN/loss.png: every logged value, and their running mean. Raises ValueError without any."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = [line for line in lines if line["loss"] is not None]
    if not lines:
        raise ValueError(f"{file} has no losses yet; train first: tubecell STAGE RECIPE --data DATASET --out {run}")
    steps, losses = np.array([line["step"] for line in lines]), np.array([line["loss"] for line in lines])
    window = max(1, len(losses) // 20)
    smooth = np.convolve(np.pad(losses, (window - 1, 0), mode="edge"), np.full(window, 1 / window), mode="valid")

    loss = "loss: squared error of normalised pixels" if predicts_pixels(run) else "loss"
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color=ACCENT, alpha=0.35, linewidth=1, label="logged")
    axes.plot(steps, smooth, color=ACCENT, linewidth=2, label="smoothed")
    axes.set(xlabel="step", ylabel=loss, xlim=(0, steps[-1]))
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
    save(figure, run / "loss.png")


def place_of(data: str, run: Path) -> str:
    """Where the dataset of a run lies: its command may have said so relative to another folder. Raises ValueError if it is not
    there."""
    starts = json.loads((run / ENVIRONMENT).read_text()) if (run / ENVIRONMENT).exists() else []
    places = [data] if is_url(data) else [data, *(os.path.join(start["folder"], data) for start in starts if "folder" in start)]
    if found := next((place for place in places if is_url(place) or os.path.exists(place)), None):
        return found
    raise ValueError(f"the dataset of {run} is not at {' or '.join(dict.fromkeys(places))}; say with --data where it lies now")


def draw_reconstruction(run: Path, num_clips: int, num_frames: int, data: str | None = None) -> None:
    """RUN's newest checkpoint and dataset, which may lie at `data` now -> RUN/reconstruction.png. Raises ValueError if the run
    has no checkpoint, or the dataset is not there, or another one."""
    checkpoint = checkpoints.latest(run / "checkpoints")
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint yet; train first: tubecell pretrain RECIPE --data DATASET --out {run}")
    config = read_config(run / "config.json")
    state = checkpoints.read_progress(checkpoint).loader
    recipe = SamplingRecipe.of(state.recipe)
    sizes = {name.removeprefix("model."): value for name, value in config.items() if name.startswith("model.")}
    model = VideoMAE(read(ModelConfig, sizes, f"{run / 'config.json'}, model,"))
    load_model(checkpoint, model)
    manifest = Manifest(data or place_of(config["data"], run), state.version)
    if manifest.fingerprint != state.dataset:
        raise ValueError(
            f"{manifest.place} is not the dataset of {run}: its fingerprint is {manifest.fingerprint[:8]}, not "
            f"{state.dataset[:8]}; say with --data where that lies"
        )
    views = centre_views(manifest, recipe, num_clips)
    title = title_of(f"{run.name}, step {int(checkpoint.name.split('-')[1])}", recipe)
    draw_images(run / "reconstruction.png", rows_of(reconstruct(model, recipe, views)), num_frames, title)


if __name__ == "__main__":
    sys.exit(main())
