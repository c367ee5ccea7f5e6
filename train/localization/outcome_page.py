"""The page of an evaluation of actions in time: figures, classes at each overlap, and time lines."""

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.page import render


def page(found: Mapping[str, Any], drawn: Sequence[Path]) -> str:
    """What evaluation.json holds, and pictures -> self-contained HTML without scripts."""
    classes = sorted(found["classes"], key=lambda each: (each["map"], -each["actions"]))
    pictures = [(file.stem, base64.b64encode(file.read_bytes()).decode()) for file in drawn]
    return render(
        Path(__file__).with_name("outcome_page.html"),
        "actions in time",
        found.get("weights", "localize"),
        f"split {found.get('split')} of {found.get('annotations')}, {time.strftime('%Y-%m-%d %H:%M')}",
        found=found,
        classes=classes,
        per_tiou=[(tiou, found[f"map_{tiou:.2f}"]) for tiou in found["tious"]],
        pictures=pictures,
    )
