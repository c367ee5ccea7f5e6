#!/usr/bin/env python3
"""Measure the data path and the training step on this machine, part by part, and say which of them limits.

    python benchmarks/throughput.py                                   generated clips; `tiny`, or `vit-b-hybrid` on a GPU
    python benchmarks/throughput.py vit-b-hybrid --data DATASET       your clips, another recipe
    python benchmarks/throughput.py vit-b-hybrid --views-per-forward 8 --precision fp32 --json throughput.json

Every rate is the median of several repetitions after a warm-up. A clip is decoded once and becomes R views.
"""

import sys
from pathlib import Path

ROOT, HERE = (str(Path(__file__).resolve().parents[i]) for i in (1, 0))
sys.path[:] = [ROOT, *(folder for folder in sys.path if folder not in (ROOT, HERE))]

import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.generated_dataset import generated_dataset
from benchmarks.path_parts import decoding_threads, measure_decoding, measure_loader, measure_training
from benchmarks.results import Result, check_json, describe_machine, write_json
from benchmarks.stopwatch import Part, Stopwatch
from dataset_builders.executors import usable_cores
from pipeline.manifest import Manifest
from train.config import PretrainConfig
from train.parallel import Ranks, started
from train.recipes import RECIPES


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured, and for how long. The flags of train/pretrain.py that matter here have the same names there and may
    have their prefix: --views.views-per-clip is --views-per-clip."""

    recipe: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = None
    """A recipe of train/recipes.py; by default vit-b-hybrid on a GPU and tiny without one."""
    data: Path | None = None
    """The dataset to measure on: a folder with a manifest.parquet; by default 64 generated clips in data/throughput."""
    json: Path | None = None
    """File to write the figures to: a list of name, value, unit, baseline, ratio."""
    seconds: float = 5.0
    """To measure each of the six parts for, about."""
    input_size: int | None = None
    """Side of a view in pixels; by default the recipe's."""
    views_per_clip: int | None = None
    """R, views of one decoded clip; by default the recipe's."""
    views_per_forward: int | None = None
    """Most views of one forward pass; by default the recipe's."""
    views_per_step: int | None = None
    """Views of one optimizer step; by default those of one forward pass, which is what one GPU of many does in a step."""
    threads: int | None = None
    """Decoding threads; by default one per usable core."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where the model runs; by default on a GPU if there is one."""
    precision: Literal["bf16", "fp32"] | None = None
    """Of the forward and backward pass; by default the recipe's."""
    compile: bool | None = None
    """Compile the blocks; by default on a GPU only."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything of one run."""

    parts: list[Part]  # decode, crop into 1 view, into 4, loader, model, end to end
    first_batch: float  # seconds from making the loader to its first batch
    data_wait: float  # share of the time that the end-to-end loop waited for a batch

    @property
    def neighbours(self) -> float:
        """Cores that other programs had in use, in the part where they had most."""
        return max(part.measured.neighbours for part in self.parts)

    def results(self) -> list[Result]:
        """For --json: decoding in clips/s, the rest in views/s."""
        return [
            *(part.result(in_views=not part.name.startswith("decode")) for part in self.parts),
            Result("throughput/first_batch", self.first_batch, "s"),
            Result("throughput/data_wait", self.data_wait, "share of time"),
            Result("throughput/neighbours", self.neighbours, "cores"),
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all was measured, 2 when it cannot be as asked, 1 when it failed, 130 if stopped by ^C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    plain = [re.sub(r"^--(model|views|compute)\.", "--", argument) for argument in arguments]
    options = tyro.cli(Options, args=plain, description=__doc__)
    try:
        check_json(options.json)
        config = configuration(options)
        config = replace(config, data=options.data or generated_dataset())
        print(describe(config, options), flush=True)
        with started(config.compute.device) as ranks:
            measured = measure(config, options.seconds, ranks)
        print(table(measured))
        print(verdict(measured, config, ranks.device))
        if options.json:
            write_json(options.json, measured.results())
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


def configuration(options: Options) -> PretrainConfig:
    """The recipe with what the options change of it. Raises ValueError for what cannot be."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("one process is measured; start it with python, not with torchrun")
    if not 0 < options.seconds <= 3600:
        raise ValueError(f"--seconds {options.seconds:g}: it must be more than 0 and at most 3600")
    for name in ("input_size", "views_per_clip", "views_per_forward", "views_per_step", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    name = options.recipe or ("vit-b-hybrid" if on_gpu else "tiny")
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    recipe = RECIPES[name]()
    views, compute = overridden(recipe.views, options), overridden(recipe.compute, options)
    if options.views_per_step is None:
        whole_clips = compute.views_per_forward // views.views_per_clip * views.views_per_clip
        views = replace(views, views_per_step=max(views.views_per_clip, min(whole_clips, recipe.views.views_per_step)))
    config = replace(recipe, views=views, compute=compute, model=overridden(recipe.model, options))
    config.accumulation(1)
    return config


def overridden(section: Any, options: Options) -> Any:
    """A section of the configuration with the values of the options that have its fields' names and are given."""
    given = {field.name: getattr(options, field.name, None) for field in fields(section)}
    return replace(section, **{name: value for name, value in given.items() if value is not None})


def check_clips(config: PretrainConfig, manifest: Manifest) -> None:
    """Raises ValueError, with the flag, where the dataset has too few clips for a step."""
    needed, clips = config.sampling.clips_per_step, len(manifest)
    if clips < needed:
        most = clips * config.views.views_per_clip
        remedy = f"give --views-per-step {most} or less" if clips else "build a dataset with more clips"
        raise ValueError(
            f"{manifest.root} has {clips} clips, and a step of {config.views.views_per_step} views takes {needed}; {remedy}"
        )


def describe(config: PretrainConfig, options: Options) -> str:
    """What is measured, on what; raises ValueError if the dataset does not serve."""
    assert config.data is not None
    manifest = Manifest(config.data)
    check_clips(config, manifest)
    passes = config.accumulation(1)
    width, height = int(np.median(manifest.width)), int(np.median(manifest.height))
    generated = "" if options.data else ", generated: smaller and quicker to decode than most real ones"
    views = config.views
    return (
        f"{describe_machine()}\n"
        f"recipe: {config.model.num_frames} frames of {config.model.input_size} px, R = {views.views_per_clip}, "
        f"encoder {config.model.encoder_depth} x {config.model.encoder_dim}, {config.compute.precision}; a step takes "
        f"{views.views_per_step} views in {passes} forward pass{'es' if passes > 1 else ''}\n"
        f"data: {len(manifest)} clips of {width} x {height} in {config.data}{generated}\n"
    )


def measure(config: PretrainConfig, seconds: float, ranks: Ranks) -> Measured:
    """All six parts, one after the other; only those of decoding take turns."""
    stopwatch = Stopwatch(seconds, ranks.device, num_parts=6)
    with closing(stopwatch.bar):
        decode, crop_1, crop_4 = measure_decoding(config, stopwatch)
        loader, first_batch, batch = measure_loader(config, decode, ranks, stopwatch)
        model, end_to_end, data_wait = measure_training(config, batch, ranks, stopwatch)
    return Measured([decode, crop_1, crop_4, loader, model, end_to_end], first_batch, data_wait)


def table(measured: Measured) -> str:
    """A line a part; `others` are the cores that other programs had in use meanwhile."""
    width = max(len(part.title) for part in measured.parts)
    lines = [f"{'part':<{width}}  {'clips/s':>9}  {'views/s':>9}  {'spread':>7}  {'others':>6}  of its baseline"]
    for part in measured.parts:
        rates = part.measured
        spread = (max(rates.clips) - min(rates.clips)) / part.clips
        share = f"{part.clips / part.baseline.clips:>6.0%} of {part.baseline.title}" if part.baseline else ""
        figures = f"{part.clips:>9.4g}  {part.views:>9.4g}  {spread:>7.0%}  {rates.neighbours:>6.1f}  {share}"
        lines.append(f"{part.title:<{width}}  {figures}".rstrip())
    return "\n".join(lines)


def verdict(measured: Measured, config: PretrainConfig, device: torch.device) -> str:
    """Which of loader and model limits, by how much, and what follows from that; or why it cannot be told."""
    *_, loader, model, end_to_end = measured.parts
    cores = min(decoding_threads(config), usable_cores())
    needed = model.views / (loader.views / cores)
    ratio = loader.views / model.views
    lines = []
    if measured.neighbours > 0.1 * usable_cores():
        lines.append(
            f"Other programs had up to {measured.neighbours:.1f} of the {usable_cores()} cores in use meanwhile (others): "
            "what follows holds beside them only. Measure on a quiet machine for figures to keep."
        )
    if end_to_end.views > 1.1 * model.views:
        # the step cannot be quicker with the loader beside it, so one of the two was disturbed
        lines.append(
            f"Which part limits cannot be told: end to end is {times(end_to_end.views / model.views)} times as fast as the "
            "model alone, which cannot be; measure again on a quiet machine."
        )
    else:
        if ratio > 1.1:
            limit = f"The model limits: the loader alone is {times(ratio)} times as fast"
        elif ratio < 0.9:
            limit = f"The loader limits: the model alone is {times(1 / ratio)} times as fast"
        else:
            limit = "Neither limits: loader and model alone are equally fast, within a tenth"
        lines.append(
            f"{limit}; to keep this model busy takes {needed:.2g} cores of decoding, and {cores} "
            f"{'decodes' if cores == 1 else 'decode'} here."
        )
        if device.type == "cpu":
            both = 1 / (1 / loader.views + 1 / model.views)
            lines.append(
                f"They share the cores: {both:.4g} views/s are what both together can reach, if neither slows the other."
            )
    lines.append(
        f"Training waited for data {measured.data_wait:.0%} of the time; the loader's first batch took "
        f"{measured.first_batch:.1f} s."
    )
    return "\n".join(lines)


def times(factor: float) -> str:
    """4.03 -> "4.0", 1234.5 -> "1,234"."""
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
