#!/usr/bin/env python3
"""Compare runs on one page: losses by step and by time, rates, what went wrong, what differs between them.

    tubecell report RUN [RUN ...] [--out report.html]

The page is a single file without scripts. A run may be at work still; ask again for a newer page.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import time
from collections.abc import Sequence

from pipeline.console import exit_status
from pipeline.report.page import render
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from train.pages import sections
from train.pages.run_record import RunRecord


@exit_status(name="report")
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=on_disk, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=on_disk, help="the page (default: report.html in the first run's folder)")
    options = parser.parse_args(arguments)
    file = options.out or options.runs[0] / "report.html"
    if options.out:
        refuse_dataset("--out", file)
    file.write_text(page([RunRecord.read(path) for path in options.runs]))
    print(file)


def page(runs: Sequence[RunRecord]) -> str:
    """Self-contained HTML without scripts."""
    title, subtitle = " · ".join(run.name for run in runs), f"Training report, {time.strftime('%Y-%m-%d %H:%M')}"
    return render(Path(__file__).with_name("report.html"), "training", title, subtitle, **sections.values(runs))


if __name__ == "__main__":
    sys.exit(main())
