"""From a command line to an exit status: what every stage's entry file calls, and the only place that turns faults into
statuses."""

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from torch.distributed.elastic.multiprocessing.errors import record

from pipeline.console import check_printed, may_fail, open_streams
from pipeline.loader import LoaderError
from pipeline.sampling.order import order_of
from pipeline.stop_signals import StopSignal
from pipeline.version import version
from train.checkpoint import state as checkpoints
from train.checkpoint.source import metadata_of_run
from train.command_line import check_length, flags_of, from_command_line, in_flags, recipe_of
from train.compute import parallel
from train.compute.device import be_deterministic
from train.compute.out_of_memory import advice, is_out_of_memory
from train.compute.parallel import Ranks, Tell, said_first, started
from train.compute.plan import planned
from train.compute.startup import Startup
from train.config import LoopConfig
from train.evaluation import comparison
from train.loop import train
from train.pages.card import write_card
from train.run.dry_run import beginning, describe
from train.run.folder import RunFolder
from train.run.run import Run, RunFailedError
from train.stage import Stage
from train.watch.last_words import leave_last_words
from train.watch.meters import check_wandb

FAULTS = ValueError, OSError, RunFailedError, LoaderError  # said in a line
PATIENCE = 10.0  # seconds that the training waits for a console that does not take in what is said


def run(
    stage: type[Stage],
    recipes: Mapping[str, Callable[[], LoopConfig]],
    usage: str = "",
    arguments: Sequence[str] | None = None,
) -> int:
    """A stage's program: RECIPE --flag value ... -> 0 when the run is done, or was asked to stop and saved; 2 when it cannot be
    as asked; 1 when it failed. `recipes`: by name, functions that give a configuration; without a command line `usage` is
    printed."""
    under_torchrun = "TORCHELASTIC_ERROR_FILE" in os.environ  # which is told what ended a rank
    return (record(_run) if under_torchrun else _run)(stage, recipes, usage, arguments) or 0


def _run(
    stage: type[Stage], recipes: Mapping[str, Callable[[], LoopConfig]], usage: str, arguments: Sequence[str] | None
) -> int:
    startup = Startup()
    open_streams(PATIENCE)
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(usage)
        with contextlib.suppress(SystemExit):
            from_command_line(recipes, ["--help"])
        return 2
    config = from_command_line(recipes, arguments)
    try:
        given = flags_of(arguments)
        if config.dry_run:
            check_length(config, given)
            made = stage(config)
            begun = beginning(made)
            print(describe(made, int(os.environ.get("WORLD_SIZE", "1"))) + begun)
            check_printed()
            return 0
        if config.lacking:
            raise ValueError(f"{config.lacking} needed; or --dry-run, to look at the recipe without them")
        if config.compute.deterministic:
            be_deterministic()
        tell = partial(say_fault, stage.name, config)
        with started(config.compute.device, tell) as ranks:
            startup.done("process group")
            go(stage, config, ranks, startup, given, recipe_of(arguments, config.config), tell)
        return 0
    except FAULTS as error:
        leave_last_words(f"{type(error).__name__}: {error}")
        return say_fault(stage.name, config, error)


def say_fault(stage: str, config: LoopConfig, error: BaseException) -> int:
    """What went wrong -> exit status: 2 for what a user can mend, 1 for the rest, and of what nobody foresaw the trace."""
    if not isinstance(error, FAULTS):
        return parallel.say_fault(error)
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    print(f"{stage}: {rank}{in_flags(str(error), config, within='views.')}", file=sys.stderr)
    return 2 if isinstance(error, ValueError | OSError) else 1


def go(
    stage: type[Stage],
    config: LoopConfig,
    ranks: Ranks,
    startup: Startup,
    given: Collection[str] = (),
    recipe: str | None = None,
    tell: Tell = parallel.say_fault,
) -> None:
    """Run, or go on with, the training that the configuration describes; every rank calls it. `given` are the fields that a
    command line names, and `recipe` what it begins with. Raises RunFailedError, with what to do, if the memory is full."""
    assert not config.lacking
    check_wandb(config.wandb)
    stop = StopSignal()
    with contextlib.ExitStack() as cleanup, said_first(ranks, tell):
        folder = cleanup.enter_context(contextlib.closing(RunFolder(stage.name, config, ranks, given, recipe)))
        config = folder.config
        order = order_of(folder.manifest, config.sampling)
        order.rank_positions(0, ranks.rank, ranks.world_size)  # refuses ranks that cannot share the clips and lanes
        total_steps = config.total_steps(order.steps_per_epoch)
        if folder.completed_steps == total_steps:
            if ranks.rank == 0:
                print(f"{folder.path} is done: {total_steps} steps. For a longer run raise --steps or --epochs.")
            return
        if folder.first_step > total_steps:
            raise ValueError(
                f"{folder.path} has done {folder.first_step} steps already, more than the {total_steps} of --steps or --epochs"
            )
        made, plan = planned(stage(config), ranks)
        full = None
        try:
            work(partial(Run, made, plan, ranks, folder, total_steps, startup, cleanup), stop)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            full = str(error)  # the error itself holds the model, by its traceback
        if full:
            raise RunFailedError(f"{full}\n{advice(made, ranks)}")


def work(begin: Callable[[], Run], stop: StopSignal) -> None:
    """Train, and export what was trained."""
    run = begin()
    folder, total_steps = run.folder, run.total_steps
    folder.begin()
    if train(run, stop):
        made = metadata_of_run([folder.path], step=total_steps, tubecell=version())
        checkpoints.export(folder.path, run.training, made)
        if run.ranks.rank == 0:
            with may_fail("card.md"):
                write_card(folder.path, made)
        folder.complete(total_steps)
        for line in comparison(folder.path) if run.ranks.rank == 0 else ():
            run.say(line)
        run.say(f"done: {total_steps} steps; weights in {folder.path / 'model.safetensors'}")
