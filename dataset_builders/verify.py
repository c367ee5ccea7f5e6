"""Recheck a finished dataset: say what is wrong with it, and how to repair it.

python dataset_builders/verify.py DATASET [--sample N] [--no-decode] [--failures failures.jsonl]
"""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT, *(path for path in sys.path if path not in (ROOT, str(Path(__file__).resolve().parent)))]

if __name__ == "__main__":
    from pipeline.console import prepare

    prepare()

from dataset_builders.checking.recheck import main

if __name__ == "__main__":
    sys.exit(main())
