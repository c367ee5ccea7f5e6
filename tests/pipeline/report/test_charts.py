import re

import numpy as np
import pytest

from pipeline.report.charts import Curve, lines, tick


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00125, "0.00125"),
        (1.25e-4, "1.25e-4"),
        (-2.5e-5, "-2.5e-5"),
        (9999, "9999"),
        (123456, "123,456"),
        (1.2e6, "1.2 M"),
    ],
)
def test_ticks_fit_beside_an_axis(value: float, text: str) -> None:
    assert tick(value) == text and len(text) <= 8


def test_no_tick_label_is_cut() -> None:
    """A label is some 6.5 units wide a character; those below the axis are centred."""
    x = np.linspace(0, 400_000, 50)
    drawn = str(lines([Curve(name="a", colour="c0", x=x, y=1.25e-4 * (1 + x / 4e5))], "step"))
    left, right = 0.0, float(re.search(r'viewBox="0 0 ([\d.]+)', drawn)[1])  # type: ignore[index]
    found = re.findall(r'text-anchor: (\w+)" x="([\d.]+)"[^>]*>([^<]+)</text>', drawn)
    assert len(found) > 8
    for anchor, place, text in found:
        width = 6.5 * len(text.strip())
        begin = float(place) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        assert left <= begin and begin + width <= right + 1, text
    assert "400,000" in drawn and "1.25e-4" in drawn
