#!/usr/bin/env python3
"""Where a loader's time goes on this machine, what limits, and what to change: an HTML page, JSON, and a summary.

    tubecell loader-profile --data DATASET                 views of vit-b-hybrid
    tubecell loader-profile tiny --data DATASET            with a model that a CPU can train
    tubecell loader-profile vit-g-hybrid --data DATASET --target-views-per-s 310
    tubecell loader-profile --data DATASET --replay KEY [--frames 3:64:4]    one clip again, stage by stage
    tubecell loader-profile --compare A.json B.json                          two runs side by side

Besides the flags below it takes those of `tubecell pretrain` (--loader.workers 8, --model.input-size 112 ...). Ends with 1 if
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
import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from benchmarks.parts.clip_replay import replay
from benchmarks.parts.measurable import measurable, no_model
from benchmarks.parts.path_parts import LoaderWork, profile, training_parts
from benchmarks.parts.program import finished
from benchmarks.parts.results import check_json, check_numbers, describe_machine
from benchmarks.parts.stages_alone import concurrencies, measure_stages
from benchmarks.parts.stopwatch import Part, Stopwatch
from pipeline.machine import usable_cores
from pipeline.report.loader_page import write_report
from pipeline.report.text import comparison, summary
from pipeline.sampling.splits import count_clips, describe_split
from pipeline.settings import with_values
from pipeline.storage.manifest import Manifest
from pipeline.storage.output_folder import refuse_dataset
from train.command_line import flags_of, from_command_line
from train.compute.parallel import Ranks, started
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import PretrainConfig

CLIPS_PER_BATCH = 8  # of a loader that feeds no model


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all was measured, 1 when the target is missed or it failed, 2 when it cannot be as asked, 130 after ^C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command_line()
    if not arguments:
        parser.print_help()
        return 2
    options, rest = parser.parse_known_args(arguments)
    return finished(lambda: profile_loader(options, rest), __file__, smaller="--compute.views-per-forward")


def profile_loader(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """The program. Returns 1 when the target is missed."""
    check_json(options.json)
    if options.compare:
        print(comparison(*(_read(path) for path in options.compare)))
        return 0
    config = configuration(rest)
    assert config.data is not None
    if options.replay:
        print(replay(Manifest(config.data), config.sampling, options.replay, options.frames))
        return 0
    folder = config.out or Path("loader_profile")
    refuse_dataset("--out", folder)
    check_numbers(options, "rounds")
    reason = "--no-model" if options.no_model else no_model(config)
    if reason and "views.views_per_step" not in flags_of(rest):
        views = min(CLIPS_PER_BATCH, count_clips(Manifest(config.data), config.sampling.split)) * config.views.views_per_clip
        config = with_values(config, {"views.views_per_step": views, "compute.views_per_forward": views})
    with started(config.compute.device) as ranks:
        found = measure_loader(config, options, reason, ranks)
    page = write_report(folder, found)
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    print(summary(found))
    print(f"report: {page}")
    return 1 if found["target"] and not found["target"]["met"] else 0


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
    """The training's configuration, `measurable` here. Raises ValueError for what cannot be."""
    named = (bool(arguments) and not arguments[0].startswith("-")) or "config" in flags_of(arguments)
    arguments = [*([] if named else ["vit-b-hybrid"]), *arguments]
    config = from_command_line(RECIPES, arguments, prog=Path(sys.argv[0]).name)
    if config.data is None:
        raise ValueError("--data DATASET is needed")
    return measurable(config, arguments[0], flags_of(arguments), count_clips(Manifest(config.data), config.sampling.split))


def measure_loader(config: PretrainConfig, options: argparse.Namespace, reason: str | None, ranks: Ranks) -> dict[str, Any]:
    """Everything, in rounds; then every stage alone. `reason`: why no model takes part."""
    assert config.data is not None
    manifest, recipe, stopwatch = Manifest(config.data), config.sampling, Stopwatch(options.seconds, ranks.device)
    print(f"{describe_machine()}\n{describe_split(manifest, recipe.split)}, in {config.data}", flush=True)
    clips = recipe.clips_per_step // config.accumulation(1)
    with closing(LoaderWork(config.data, recipe, config, stopwatch, clips_per_batch=clips)) as alone:
        parts = {"loader": Part("loader", "loader alone", config.views.views_per_clip, alone)}
        if reason is None:
            parts |= training_parts(config, alone, stopwatch, ranks)
        stopwatch.rounds(list(parts.values()), options.rounds)
    return profile(
        parts,
        "tubecell loader-profile",
        alone.first_batch,
        no_model=reason,
        stages_alone={
            "workers": concurrencies(usable_cores()),
            "clips_per_s": measure_stages(manifest, recipe, usable_cores(), 2 * options.seconds),
        },
        target=options.target_views_per_s,
    )


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
