"""A box that a file names: numbers that make one, and what is wrong with those that do not."""

import math
from dataclasses import dataclass, field

from dataset_builders.plan import Drop
from dataset_builders.sources.annotations import AnyPath, DroppedEntry, shown

Sides = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of the frame."""
LATEST = 1e6  # seconds of a movie: what is no less is a mistake
EDGE = 1e-3  # by how much a side may lie beyond the frame without a word: what three decimals are off by


@dataclass(slots=True)
class BoxCheck:
    """Looks at the boxes of files, and keeps account of those that are none."""

    dropped: list[DroppedEntry] = field(default_factory=list)
    cut: int = 0
    """boxes that stuck out of the frame, and were cut at its edge"""

    def taken(self, sides: Sides, file: AnyPath, line: int | str, split: str, image: str) -> Sides | None:
        """The part of a box that lies in the frame; None, and a line in `dropped`, where nothing does, or it has no area."""
        x1, y1, x2, y2 = sides
        if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1:  # nearly all
            return sides
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0))
        wrong = None
        if not all(map(math.isfinite, sides)):
            wrong = Drop.MALFORMED, "is of numbers that are none"
        elif x1 >= x2 or y1 >= y2:
            wrong = Drop.EMPTY_BOX, "is empty: wanted is x1 < x2 and y1 < y2"
        elif inside[0] >= inside[2] or inside[1] >= inside[3]:
            wrong = Drop.OUTSIDE, "lies outside of the frame, which goes from 0 to 1"
        if wrong:
            box = ", ".join(f"{side:g}" for side in sides)
            self.dropped.append(DroppedEntry(image, split, wrong[0], f"{shown(file)}:{line}: box ({box}) {wrong[1]}"))
            return None
        if max(-x1, -y1, x2 - 1, y2 - 1) > EDGE:
            self.cut += 1
        return inside


def numbers(texts: list[str]) -> list[float] | None:
    """None where one of them is no number."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None
