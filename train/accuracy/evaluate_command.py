"""`PROGRAM evaluate RUN ...`: what is the same in all stages that evaluate their runs by themselves."""

import argparse
from collections.abc import Callable, Sequence

from pipeline.console import check_printed, exit_status
from pipeline.storage.output_folder import refuse_dataset
from train.compute.parallel import Ranks, started


def evaluate_command(
    name: str,
    arguments: Sequence[str],
    parsed: Callable[[Sequence[str]], argparse.Namespace],
    evaluate: Callable[[argparse.Namespace, Ranks], None],
    *faults: type[Exception],
) -> int:
    """The exit status. `parsed` gives options, among them `device` and `out`; `faults` are said in a line, too."""

    @exit_status(*faults, name=name)
    def command(words: Sequence[str]) -> None:
        options = parsed(words)
        refuse_dataset("--out", options.out)
        with started(options.device, flag="--device") as ranks:
            evaluate(options, ranks)
        check_printed()

    return command(arguments or ["--help"])
