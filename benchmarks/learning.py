#!/usr/bin/env python3
"""Evidence that it learns: pre-training against none, the papers' ablations in small, real clips; all with the real commands.

    tubecell learning --parts labels --seeds 1              pre-training against none, one seed; `make learn` is less of it
    tubecell learning --minutes 30                          go on with everything, for half an hour
    tubecell learning --minutes 0 --results benchmarks/results        only the tables, of what is on record

The clips are generated: ten motions of a textured shape over a textured background; no frame tells which. A cell of the grid is
a command of tubecell, on one core, with its own folder in --folder; what is stopped goes on, also in mid-cell. Each leaves its
command, figures, machine and commit in RESULTS/learning.jsonl, and is not run again, unless its command, one before it or the
clips change; to do so all the same, remove its line and its folder. RESULTS gets learning.md and ablations.md, with plots, of
all that is on record.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from benchmarks.evidence import grid
from benchmarks.evidence.book import Book
from benchmarks.evidence.clips import REAL_FOLDS, generated, real, shared_clips
from benchmarks.evidence.pages import write_ablations, write_learning
from benchmarks.evidence.runner import Runner
from benchmarks.parts.program import program
from pipeline.machine import usable_cores
from pipeline.storage.output_folder import refuse_dataset

Part = Literal["labels", "one-frame", "decoder-masks", "real", "masks", "longer", "distillation", "decoder-depth", "targets"]
Method = Literal["scratch", "pretrained", "probe"]
Share = Literal[5, 20, 100]  # percent of the labels
PARTS: tuple[Part, ...] = get_args(Part)
METHODS: tuple[Method, ...] = get_args(Method)
SHARES: tuple[Share, ...] = get_args(Share)
MOST_SEEDS = 6  # whose labelled clips are others'


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is run, and for how long."""

    parts: tuple[Part, ...] = PARTS
    """Of the grid."""
    methods: tuple[Method, ...] = METHODS
    """Of part "labels"."""
    shares: tuple[Share, ...] = SHARES
    """Percent of the labels, of part "labels"."""
    seeds: int = 3
    """Of parts "labels" and "distillation"."""
    ablation_seeds: int = 1
    """Of the ablations."""
    minutes: float | None = None
    """Time to work; what runs when it is over saves its state."""
    jobs: int | None = None
    """Cells at a time, each on its share of the cores; by default one a core."""
    folder: Path = Path("runs/learning")
    """Of clips and runs."""
    results: Path = Path("runs/learning/results")
    """Of the record, the tables and the plots."""


@program(Options)
def main(options: Options) -> int:
    if not (1 <= options.seeds <= MOST_SEEDS and 1 <= options.ablation_seeds <= MOST_SEEDS):
        raise ValueError("--seeds and --ablation-seeds must be 1 to 6: each has labelled clips of its own")
    if options.minutes is not None and options.minutes < 0:
        raise ValueError(f"--minutes {options.minutes:g}: it must be at least 0; 0 only writes the tables")
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: it must be at least 1")
    refuse_dataset("--folder", options.folder)
    folder, file = options.folder.absolute(), options.results / "learning.jsonl"
    runner = Runner(folder / "runs", Book(file), options.jobs or usable_cores(), options.minutes)
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        runner.stop()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    folds: Sequence[Path] = [folder / "clips" / f"fold-{number}" for number in range(len(REAL_FOLDS))]
    data = grid.Data(folder / "clips", folds)
    try:
        if options.minutes != 0:
            generated(folder / "clips", range(max(options.seeds, options.ablation_seeds)))
            if "real" in options.parts and not ((shared := shared_clips()) and real(folder / "clips", shared)):
                data = grid.Data(folder / "clips")
        if "labels" in options.parts:
            runner.all(grid.first_trials(data, range(options.seeds), options.shares, options.methods))
        for trials in trials_of(options, data).values():
            runner.all(trials)
    except KeyboardInterrupt:
        stop()
    everything = replace(options, parts=PARTS, methods=METHODS, shares=SHARES, seeds=MOST_SEEDS, ablation_seeds=MOST_SEEDS)
    recorded = Runner(folder / "runs", Book(file), 1, 0)
    found = {part: recorded.all(trials) for part, trials in trials_of(everything, grid.Data(folder / "clips", folds)).items()}
    options.results.mkdir(parents=True, exist_ok=True)
    written = [*write_learning(options.results, found), *write_ablations(options.results, found)]
    waiting = f"; {runner.waiting} figures wait: the same command goes on" if runner.waiting or stopped else ""
    failed = f"; {len(runner.failed)} failed, see above" if runner.failed else ""
    print(f"{', '.join(map(str, written)) or 'nothing is on record yet'}{waiting}{failed}")
    return 130 if stopped else int(bool(runner.failed))


def trials_of(options: Options, data: grid.Data) -> dict[str, list[Callable[[Runner], Any]]]:
    """By part."""
    seeds = range(options.seeds)
    trials: dict[str, list[Callable[[Runner], Any]]] = {
        "labels": grid.label_trials(data, seeds, options.shares, options.methods),
        "one-frame": [partial(grid.one_frame, data)],
        "longer": [partial(grid.longer, data, method, share) for method in ("scratch", "pretrained") for share in SHARES],
        "distillation": [grid.distillation(data, taught, seed) for taught in (False, True) for seed in seeds],
        "real": [grid.real_clips(data, method, fold) for method in grid.REAL_METHODS for fold in range(len(data.real))],
    }
    for variant in grid.VARIANTS:
        for seed in range(options.ablation_seeds):
            trials.setdefault(variant.table, []).append(grid.ablation(data, variant, seed))
    return {part: trials[part] for part in PARTS if part in options.parts}  # in this order


if __name__ == "__main__":
    sys.exit(main())
