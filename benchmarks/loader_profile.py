#!/usr/bin/env python3
"""Where a loader's time goes on this machine, what limits, and what to change: an HTML page, JSON, and a summary.

    tubecell loader-profile --data DATASET                 views of vit-b-hybrid
    tubecell loader-profile tiny --data DATASET            with a model that a CPU can train
    tubecell loader-profile vit-g-hybrid --data DATASET --target-views-per-s 310
    tubecell loader-profile --data DATASET --replay KEY [--frames 3:64:4]    one clip again, stage by stage
    tubecell loader-profile --compare A.json B.json                          two runs side by side

Besides the flags below it takes those of `tubecell pretrain` (--compute.workers 8, --model.input-size 112 ...). Ends with 1 if
the target is missed.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.parts.clip_replay import replay, told
from benchmarks.parts.path_parts import LoaderWork, ModelWork
from benchmarks.parts.results import check_json, describe_machine
from benchmarks.parts.stages_alone import concurrencies, measure_stages
from benchmarks.parts.stopwatch import Part, Stopwatch
from model.flops import executed_gmac
from pipeline.decoding.decode import DecodeError
from pipeline.loader import Batch, ClipLoader, LoaderError
from pipeline.machine import usable_cores
from pipeline.report.figures import figures
from pipeline.report.loader_page import assemble, write_report
from pipeline.report.text import comparison, summary
from pipeline.stage_meters import StageMeters
from pipeline.storage.manifest import Manifest
from pipeline.storage.output_folder import refuse_dataset
from train.compute.parallel import Ranks, started
from train.config import PretrainConfig
from train.recipes import RECIPES, from_command_line

CLIPS_PER_BATCH = 8  # of a loader that feeds no model
CACHED_BATCHES = 4  # that take turns: one alone would stay in the processor's cache
SLOWEST_STEP = 5.0  # seconds, above which a model is not run on a CPU
CPU_FLOPS = 2e10  # of a core, at most, for guessing that


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all was measured, 1 when the target is missed or it failed, 2 when it cannot be as asked, 130 after ^C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command_line()
    if not arguments:
        parser.print_help()
        return 2
    options, rest = parser.parse_known_args(arguments)
    try:
        check_json(options.json)
        if options.compare:
            print(comparison(*(_read(path) for path in options.compare)))
            return 0
        config = configuration(rest)
        assert config.data is not None
        if options.replay:
            print(told(replay(Manifest(config.data), config.sampling, options.replay, options.frames)))
            return 0
        folder = config.out or Path("loader_profile")
        refuse_dataset("--out", folder)
        if not 0 < options.seconds <= 3600 or options.rounds < 1:
            raise ValueError(f"--seconds {options.seconds:g} and --rounds {options.rounds} must be more than 0")
        reason = "--no-model" if options.no_model else no_model(config)
        if reason and not stated(rest):
            clips = min(CLIPS_PER_BATCH, len(Manifest(config.data)))
            config = replace(config, views=replace(config.views, views_per_step=clips * config.views.views_per_clip))
            config = replace(config, compute=replace(config.compute, views_per_forward=config.views.views_per_step))
        with started(config.compute.device) as ranks:
            profile = measure(config, options, reason, ranks)
        page = write_report(folder, profile)
        if options.json:
            options.json.write_text(json.dumps(profile) + "\n")
        print(summary(profile))
        print(f"report: {page}")
        return 1 if profile["target"] and profile["target"]["met"] is False else 0
    except (ValueError, OSError) as error:
        print(f"loader_profile: {error}", file=sys.stderr)
        return 2
    except (DecodeError, LoaderError, RuntimeError) as error:
        print(f"loader_profile: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("loader_profile: stopped, nothing is written", file=sys.stderr)
        return 130


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, add_help=True
    )
    parser.add_argument("--target-views-per-s", type=float, metavar="X", help="what the loader alone has to give, in views/s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn; loader, model and both have one a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report's JSON here, too")
    parser.add_argument("--no-model", action="store_true", help="measure the loader only")
    parser.add_argument("--replay", metavar="KEY", help="decode this clip again and exit")
    parser.add_argument("--frames", help="of the clip to replay: 3,7,11 or first:end:step; by default the middle ones")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A.json", "B.json"), help="print two reports side by side")
    return parser


def configuration(arguments: Sequence[str]) -> PretrainConfig:
    """The training's configuration, with a step of one forward pass unless --views.views-per-step is given. On a CPU that is
    of 8 views and in fp32: most CPUs have no bf16 instructions. Raises ValueError for what cannot be."""
    named = bool(arguments) and not arguments[0].startswith("-")
    config = from_command_line([*([] if named else ["vit-b-hybrid"]), *arguments], prog=Path(sys.argv[0]).name)
    if config.data is None:
        raise ValueError("--data DATASET is needed")
    clips = len(Manifest(config.data))
    views, compute = config.views, config.compute
    if compute.device == "cpu" or not torch.cuda.is_available():
        few = max(views.views_per_clip, min(compute.views_per_forward, 8)) if config.model != RECIPES["tiny"]().model else 128
        compute = replace(compute, precision="fp32", views_per_forward=min(few, compute.views_per_forward))
    if not stated(arguments):
        whole = compute.views_per_forward // views.views_per_clip * views.views_per_clip
        most = min(whole, views.views_per_step, clips * views.views_per_clip)
        views = replace(views, views_per_step=max(views.views_per_clip, most))
    if views.views_per_step > clips * views.views_per_clip:
        raise ValueError(
            f"{config.data} has {clips} clips, and a step of {views.views_per_step} views takes "
            f"{config.sampling.clips_per_step}; give --views.views-per-step {clips * views.views_per_clip} or less"
        )
    config = replace(config, views=views, compute=compute)
    config.accumulation(1)
    return config


def stated(arguments: Sequence[str]) -> bool:
    """Whether the size of a step is."""
    return any(argument.startswith(("--views.views-per-step", "--views.views_per_step")) for argument in arguments)


class Watched:
    """A contestant whose loader is watched while it is on the clock. `turns` are the meters of each."""

    def __init__(self, work: "LoaderWork | TrainingWork") -> None:
        self.contestant, self.turns = work, list[StageMeters]()
        self._watching = False

    def prepare(self) -> None:
        self._watching, self.contestant.loader.meters = False, None
        self.contestant.prepare()

    def work(self) -> int:
        if not self._watching:
            self._watching, self.contestant.loader.meters = True, StageMeters()
            self.turns.append(self.contestant.loader.meters)
        return self.contestant.work()

    def all_turns(self) -> StageMeters:
        """As one."""
        together = StageMeters()
        for turn in self.turns:
            for batch in turn.batches:
                together.add(batch)
            together.copies.extend(turn.copies)
        return together


class TrainingWork:
    """The training step, fed by the loader."""

    def __init__(self, model: ModelWork, loader: ClipLoader, stopwatch: Stopwatch) -> None:
        self.model, self.loader, self.stopwatch = model, loader, stopwatch

    def prepare(self) -> None:
        """As many steps as use up what lies ready, and no more than a turn's time."""
        began = self.stopwatch.now()
        for _ in range(self.loader.prefetch // self.model.passes + 2):
            self.model.step(self.loader)
            if self.stopwatch.now() - began > self.stopwatch.seconds:
                break

    def work(self) -> int:
        return self.model.step(self.loader)


class CachedWork:
    """The training step, fed with real batches that lie in the host's memory: what a loader without any cost would give."""

    def __init__(self, model: ModelWork, batches: Sequence[Batch], device: torch.device) -> None:
        self.model, self._device, self._batches = model, device, itertools.cycle(batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        names = ("views", "visible", "decoded", "loss_weight")
        return replace(batch, **{name: getattr(batch, name).to(self._device, non_blocking=True) for name in names})

    def prepare(self) -> None:
        """It is always ready."""

    def work(self) -> int:
        return self.model.step(self)

    def close(self) -> None:
        """Nothing is open."""


def kept_batches(loader: ClipLoader, device: torch.device) -> list[Batch]:
    """Copies in the host's memory, pinned where there is a device to copy to."""
    kept = []
    for batch in itertools.islice(loader, CACHED_BATCHES):
        names = ("views", "visible", "decoded", "loss_weight")
        tensors = {name: getattr(batch, name).to("cpu", copy=True) for name in names}
        if device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        kept.append(replace(batch, **tensors))
    return kept


def measure(config: PretrainConfig, options: argparse.Namespace, reason: str | None, ranks: Ranks) -> dict[str, Any]:
    """Everything, in rounds; then every stage alone. `reason`: why no model takes part."""
    assert config.data is not None
    manifest, recipe = Manifest(config.data), config.sampling
    stopwatch, views = Stopwatch(options.seconds, ranks.device), config.views.views_per_clip
    passes = config.accumulation(1)
    print(f"{describe_machine()}\n{len(manifest)} clips in {config.data}", flush=True)
    with ExitStack() as stack:
        clips = recipe.clips_per_step // passes
        alone = stack.enter_context(closing(LoaderWork(config.data, recipe, config, stopwatch, clips_per_batch=clips)))
        watched = Watched(alone)
        parts = {"loader": Part("loader", "loader alone", views, watched)}
        training: Watched | None = None
        if reason is None:
            batch = alone.first
            model = ModelWork(config, batch, ranks)
            cached = CachedWork(model, kept_batches(alone.loader, ranks.device), ranks.device)
            training = Watched(TrainingWork(model, alone.loader, stopwatch))
            parts["model"] = Part("model", "model alone", views, model)
            parts["cached"] = Part("cached", "batches from memory", views, cached)
            parts["together"] = Part("together", "together", views, training)
        stopwatch.rounds(list(parts.values()), options.rounds)
        failures = list(alone.loader.failures)
        first_batch, tuning = alone.first_batch, alone.loader.tuning
        workers, decoder = tuning.workers, alone.loader.decoder_choice.name
    stages = measure_stages(manifest, recipe, usable_cores(), 2 * options.seconds)
    neighbours = float(np.median([cores for part in parts.values() for cores in part.neighbours]))
    loader = figures(watched.all_turns(), manifest, recipe, workers, failures, window=watched.turns[-1])
    run = None
    if training:
        run = figures(training.all_turns(), manifest, recipe, workers, failures, window=training.turns[-1])
    return assemble(
        manifest=manifest,
        recipe=recipe,
        loader=loader,
        run=run,
        rates={name: {"median": part.views, "rounds": [rate * views for rate in part.rates]} for name, part in parts.items()},
        settings={
            "workers": workers,
            "cores": usable_cores(),
            "prefetch": tuning.prefetch,
            "tuning": str(tuning),
            "clips_per_batch": recipe.clips_per_step // passes,
            "device": ranks.device.type,
            "decoder": decoder,
            "first_batch_s": first_batch,
            "neighbours": neighbours,
            "no_model": reason,
        },
        machine=describe_machine(),
        title="tubecell loader-profile",
        stages_alone={"workers": concurrencies(usable_cores()), "clips_per_s": stages},
        target=options.target_views_per_s,
    )


def no_model(config: PretrainConfig) -> str | None:
    """Why the model is not run: it would take minutes."""
    if config.compute.device != "cpu" and torch.cuda.is_available():
        return None
    tokens = config.sampling.tokens
    flops = 6e9 * executed_gmac(config.model, tokens.visible, tokens.decoded, tokens.loss) * config.views.views_per_step
    seconds = flops / (CPU_FLOPS * usable_cores())
    if seconds < SLOWEST_STEP:
        return None
    return f"a step of this model takes about {seconds:.0f} s on these cores; run on a GPU, or with the recipe tiny"


def _read(path: Path) -> dict[str, Any]:
    try:
        profile = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no report of loader_profile.py: {error}") from error
    if not isinstance(profile, dict) or "verdict" not in profile:
        raise ValueError(f"{path} is no report of loader_profile.py")
    return profile


if __name__ == "__main__":
    sys.exit(main())
