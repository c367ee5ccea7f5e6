"""Files of which nothing but the names matters."""

import os
from pathlib import Path


def touch(root: Path, *names: str | bytes) -> Path:
    """Empty files below `root`, with all folders that it takes."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    return root
