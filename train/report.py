#!/usr/bin/env python3
"""Compare pre-training runs on one page: losses by step and by time, rates, what went wrong, what differs between them.

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

from pipeline.report.charts import shown
from pipeline.report.loader_page import STYLE
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from train.pages import sections
from train.pages.run_record import RunRecord


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=on_disk, nargs="+", metavar="RUN", help="folder of a run of `tubecell pretrain`")
    parser.add_argument("--out", type=on_disk, help="the page (default: report.html in the first run's folder)")
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser.print_help()
        return 2
    options = parser.parse_args(arguments)
    file = options.out or options.runs[0] / "report.html"
    try:
        if options.out:
            refuse_dataset("--out", file)
        file.write_text(page([RunRecord.read(path) for path in options.runs]))
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(file)
    return 0


def page(runs: Sequence[RunRecord]) -> str:
    """Self-contained HTML without scripts."""
    title = " · ".join(run.name for run in runs)
    parts = [
        sections.summary(runs),
        sections.learning(runs),
        sections.speed(runs),
        sections.differences(runs),
        sections.troubles(runs),
        sections.sources(runs),
        sections.pictures(runs),
        sections.environment(runs),
    ]
    style = STYLE.read_text() + Path(__file__).with_name("report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{shown(title)} – training report</title><style>{style}</style></head>\n"
        f"<body><header><h1>{shown(title)}</h1><p>Training report, {time.strftime('%Y-%m-%d %H:%M')}</p></header>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
