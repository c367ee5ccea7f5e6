#!/usr/bin/env python3
"""What a large run would be, before anyone pays for it: memory, traffic, speed, data and failures, from the real code.

    tubecell rehearsal --nodes 64 --gpus 8                          # ViT-g on 64 x 8 H100, on every mesh
    tubecell rehearsal --nodes 1 --gpus 8 --card H200 --page rehearsal.html --json rehearsal.json
    tubecell rehearsal --folder /data/tmp --clips 1348000           # and what sampling costs a node, on a made-up manifest

The trainer itself takes a step as one of so many ranks, in torch's fake process group and on tensors without data: memory,
collectives and FLOPs are counted. Their time is reckoned from bandwidths, latencies and an MFU that flags give: these are
assumptions, and are printed beside what follows from them. Sampling is measured here, in a process of its own.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from benchmarks.parts.program import program
from benchmarks.rehearsal_parts.options import Options
from benchmarks.rehearsal_parts.page import write_page
from benchmarks.rehearsal_parts.rehearsed_run import rehearse_run
from benchmarks.rehearsal_parts.table import told


@program(Options)
def main(options: Options) -> int:
    found = rehearse_run(options)
    for line in told(found):
        print(line)
    write_page(options, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
