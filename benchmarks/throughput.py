#!/usr/bin/env python3
"""How fast videos become training data on this machine, next to a PyTorch DataLoader, and whether loader or model limits.

    tubecell throughput --videos FOLDER      your own videos, before anything is built of them: a table and one sentence
    tubecell throughput --videos FOLDER --plot throughput.png          the same as a picture
    tubecell throughput --data DATASET       a dataset: builder, decoding, loader, model, all together, peers
    tubecell throughput                      generated clips and the recipe `tiny` (`vit-b-hybrid` on a GPU)
    tubecell throughput vit-b-hybrid --data DATASET --json throughput.json --plot throughput.png

All take turns of a few seconds, round after round; every rate is the median of the rounds, and every ratio that of the rounds'
ratios. Frames are taken at stride 4, so that all decode the same. A clip is decoded once and becomes R views: training
examples of 16 frames, each with its own crop. Where the machine is busy with other work, or the rounds differ too much, the
last words are that it cannot tell, not a ratio.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import os
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from benchmarks.parts.generated_dataset import GENERATED
from benchmarks.parts.measurable import measurable, on_gpu
from benchmarks.parts.peers import STRIDE
from benchmarks.parts.program import WithTurns, program
from benchmarks.parts.results import Result, check_numbers
from benchmarks.parts.stopwatch import Stopwatch
from benchmarks.parts.throughput_parts import Trial, measure_dataset, measure_files
from benchmarks.parts.throughput_table import results, table, verdict
from pipeline.sampling.splits import count_clips
from pipeline.settings import with_values
from pipeline.storage.manifest import Manifest
from pipeline.storage.output_folder import refuse_dataset
from train.compute.parallel import started
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import PretrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithTurns):
    """What is measured, and for how long. The flags of `tubecell pretrain` that matter here have the same names there and may
    have their prefix: --views.views-per-clip is --views-per-clip."""

    recipe: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = None
    """A recipe of train/recipes/pretraining.py; by default vit-b-hybrid, and tiny for generated clips without a GPU."""
    videos: Path | None = None
    """Folder of video files at any depth, measured before anything is built of them; other files in it do not matter."""
    data: str | None = None
    """The dataset to measure on: a folder with a manifest.parquet; by default 64 generated clips in data/throughput."""
    plot: Path | None = None
    """Picture to draw of them, .png or .svg."""
    more: bool = False
    """With --videos: measure one view of a clip, the preset h264-plain and fine-tuning's views, too; three times as long."""
    peers: bool = True
    """Compare with DataLoaders over the files that the dataset was built from; that builds some of them three times more."""
    files: int = 40
    """Video files that the comparison takes, chosen at random, always the same."""
    min_width: int | None = None
    """Leave narrower files out of the comparison; by default 300 pixels with --data and 0 with --videos."""
    input_size: int | None = None
    """Side of a view in pixels; by default the recipe's."""
    views_per_clip: int | None = None
    """R of the model's views; by default the recipe's. The loader is measured with R = 1 and 4 besides."""
    views_per_forward: int | None = None
    """Most views of one forward pass; by default the recipe's, but no more than 8 on a CPU."""
    views_per_step: int | None = None
    """Views of one optimizer step; by default those of one forward pass, which is what one GPU of many does in a step."""
    workers: int | None = None
    """Processes that decode; by default those that the loader finds best."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where the model runs; by default on a GPU if there is one."""
    precision: Literal["bf16", "fp32"] | None = None
    """Of the forward and backward pass; by default the recipe's, but fp32 on a CPU."""
    compile: bool | None = None
    """Compile the blocks; by default on a GPU only."""


@program(Options, smaller="--views-per-forward")
def main(options: Options) -> list[Result]:
    check(options)
    config = configuration(options)
    with started(config.compute.device) as ranks:
        trial = Trial(config, Stopwatch(options.seconds, ranks.device), options.rounds, options.files)
        if options.videos:
            measured = measure_files(trial, options.videos, options.min_width or 0, options.more)
        else:
            narrowest = 300 if options.min_width is None else options.min_width
            measured = measure_dataset(trial, ranks, narrowest if options.peers else None)
    print(table(measured))
    print(verdict(measured))
    if options.plot:
        from benchmarks.parts.throughput_plot import plot  # matplotlib takes a second

        plot(measured, options.plot)
    return results(measured)


def check(options: Options) -> None:
    """Refuse, before minutes of measuring, what cannot be. Raises ValueError."""
    if options.plot is not None:
        if options.plot.suffix not in (".png", ".svg"):
            raise ValueError(f"--plot {options.plot}: give a file that ends in .png or .svg")
        if not options.plot.absolute().parent.is_dir():
            raise ValueError(f"--plot {options.plot}: its folder does not exist")
        refuse_dataset("--plot", options.plot)
    if options.videos and options.data:
        raise ValueError("--videos measures files before anything is built, --data a dataset; give one of them")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("one process is measured; start it with python, not with torchrun")
    names = ("rounds", "files", "input_size", "views_per_clip", "views_per_forward", "views_per_step", "workers")
    check_numbers(options, *names)


def configuration(options: Options) -> PretrainConfig:
    """The recipe with what the options change of it. Raises ValueError for what cannot be."""
    name = options.recipe or ("vit-b-hybrid" if on_gpu(options.device) or options.data or options.videos else "tiny")
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    config = RECIPES[name]()
    values = {
        f"{group}.{field.name}": value
        for group in ("model", "views", "compute")
        for field in fields(getattr(config, group))
        if (value := getattr(options, field.name, None)) is not None
    }
    clip = options.views_per_clip or config.views.views_per_clip
    whole = max(clip, config.views.views_per_step // clip * clip)  # a recipe's step may not be one of whole clips
    always = {"views.sampling": f"stride:{STRIDE}", "views.shuffle": "global", "views.views_per_step": whole}
    config = with_values(config, always | values | {"data": options.data})
    clips = None if options.videos else GENERATED
    if options.data and not options.videos:
        clips = count_clips(Manifest(options.data), config.sampling.split)
    return measurable(config, name, values, clips)


if __name__ == "__main__":
    sys.exit(main())
