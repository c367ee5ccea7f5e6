"""A rehearsal as an HTML page that needs no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rehearsal_parts.options import Options
from benchmarks.rehearsal_parts.table import assumptions
from pipeline.report.charts import Curve, lines
from pipeline.report.page import render
from pipeline.storage.files import write_durably

TEMPLATE = Path(__file__).with_name("rehearsal.html")
PARTS = {"compute": "c0", "exposed": "c6", "host": "c1", "optimizer": "c2"}
STATE = ("parameters", "moments", "gradients", "gathered", "inputs", "activations", "passing")


def write_page(options: Options, found: Mapping[str, Any]) -> None:
    """--page, if it was asked for. Raises OSError."""
    if options.page is not None:
        write_durably(options.page, page(found).encode())


def page(found: Mapping[str, Any]) -> str:
    """The document."""
    return render(
        TEMPLATE,
        "rehearsal",
        f"{found['recipe']} on {found['cluster']}",
        f"A rehearsal, {found['date']}, on {found['machine']}: nothing ran on a GPU",
        found=found,
        best=found["meshes"][found["fastest"]],
        assumed=list(assumptions(found)),
        parts=PARTS,
        state=STATE,
        chart=chart(found["scaling"]),
    )


def chart(scaling: Mapping[str, Any]) -> Any:
    """Thousands of views/s over GPUs, a curve a mesh, and what they would do without waiting; None without."""
    if not scaling:
        return None
    curves = []
    for number, (name, rows) in enumerate(scaling.items()):
        gpus = np.array([row["GPUs"] for row in rows], float)
        rate = np.array([row["views/s"] / 1e3 for row in rows])
        curves.append(Curve(name=name, colour=f"c{number}", x=gpus, y=rate))
        if number == 0:
            full = rate[0] / rows[0]["efficiency"] / rows[0]["GPUs"] * gpus
            ideal = Curve(name="if no GPU waited", colour="c7", x=gpus, y=full)
    return lines([*curves, ideal], "GPUs", noisy=False, zero=True), [(each.name, each.colour) for each in [*curves, ideal]]
