"""Recheck a finished dataset: say what is wrong with it, and how to repair it.

tubecell verify DATASET [--sample N] [--no-decode] [--failures failures.jsonl]
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

from dataset_builders.checking.recheck import main

if __name__ == "__main__":
    sys.exit(main())
