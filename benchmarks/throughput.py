#!/usr/bin/env python3
"""How fast clips become training data on this machine, next to a PyTorch DataLoader, and whether loader or model limits.

    tubecell throughput --videos FOLDER      your files, before anything is built: what would tubecell gain?
    tubecell throughput --data DATASET       a dataset: builder, decoding, loader, model, all together, peers
    tubecell throughput                      generated clips and the recipe `tiny` (`vit-b-hybrid` on a GPU)
    tubecell throughput vit-b-hybrid --data DATASET --json throughput.json --plot throughput.png

All take turns of a few seconds, round after round; every rate is the median of the rounds, and every ratio that of the rounds'
ratios. Frames are taken at stride 4, so that all decode the same. A clip is decoded once and becomes R views.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch
import tyro

from benchmarks.parts.peers import STRIDE
from benchmarks.parts.results import check_json, check_numbers, write_json
from benchmarks.parts.stopwatch import Stopwatch
from benchmarks.parts.throughput_parts import Trial, measure_dataset, measure_files
from benchmarks.parts.throughput_table import results, table, verdict
from pipeline.storage.output_folder import refuse_dataset
from train.compute.parallel import started
from train.config import PretrainConfig
from train.recipes import RECIPES


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured, and for how long. The flags of `tubecell pretrain` that matter here have the same names there and may
    have their prefix: --views.views-per-clip is --views-per-clip."""

    recipe: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = None
    """A recipe of train/recipes.py; by default vit-b-hybrid, and tiny for generated clips without a GPU."""
    videos: Path | None = None
    """Folder of video files, measured before anything is built of them."""
    data: str | None = None
    """The dataset to measure on: a folder with a manifest.parquet; by default 64 generated clips in data/throughput."""
    json: Path | None = None
    """File to write the figures to: a list of name, value, unit, baseline, ratio, rounds."""
    plot: Path | None = None
    """Picture to draw of them, .png or .svg."""
    rounds: int = 5
    """In each of them everybody has a turn."""
    seconds: float = 3.0
    """Of a turn, about."""
    peers: bool = True
    """Compare with DataLoaders over the files that the dataset was built from; that builds some of them twice more."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all was measured, 2 when it cannot be as asked, 1 when it failed, 130 if stopped by ^C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    plain = [re.sub(r"^--(model|views|compute)\.", "--", argument) for argument in arguments]
    options = tyro.cli(Options, args=plain, description=__doc__)
    try:
        check(options)
        config = configuration(options)
        with started(config.compute.device) as ranks:
            trial = Trial(config, Stopwatch(options.seconds, ranks.device), options.rounds, options.files)
            if options.videos:
                measured = measure_files(trial, options.videos, options.min_width or 0)
            else:
                narrowest = 300 if options.min_width is None else options.min_width
                measured = measure_dataset(trial, ranks, narrowest if options.peers else None)
        print(table(measured))
        print(verdict(measured))
        if options.plot:
            from benchmarks.parts.throughput_plot import plot  # matplotlib takes a second

            plot(measured, options.plot)
        if options.json:
            write_json(options.json, results(measured))
        return 0
    except (ValueError, OSError) as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"throughput: the GPU's memory is too small for this; lower --views-per-forward. {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("throughput: stopped, nothing is written", file=sys.stderr)
        return 130


def check(options: Options) -> None:
    """Refuse, before minutes of measuring, what cannot be. Raises ValueError."""
    check_json(options.json)
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
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    name = options.recipe or ("vit-b-hybrid" if on_gpu or options.data or options.videos else "tiny")
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    recipe = RECIPES[name]()
    if not on_gpu and name != "tiny":  # 128 views of ViT-B take minutes there, and most CPUs have no bf16 instructions
        few = max(recipe.views.views_per_clip, options.views_per_clip or 0, 8)
        compute = replace(recipe.compute, precision="fp32", views_per_forward=min(recipe.compute.views_per_forward, few))
        recipe = replace(recipe, compute=compute)
    views, compute = overridden(recipe.views, options), overridden(recipe.compute, options)
    views = replace(views, sampling=f"stride:{STRIDE}", shuffle="global")
    if options.views_per_step is None:
        whole_clips = compute.views_per_forward // views.views_per_clip * views.views_per_clip
        views = replace(views, views_per_step=max(views.views_per_clip, min(whole_clips, recipe.views.views_per_step)))
    config = replace(recipe, views=views, compute=compute, model=overridden(recipe.model, options), data=options.data)
    config.accumulation(1)
    return config


def overridden(section: Any, options: Options) -> Any:
    """A section of the configuration with the values of the options that have its fields' names and are given."""
    given = {field.name: getattr(options, field.name, None) for field in fields(section)}
    return replace(section, **{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main())
