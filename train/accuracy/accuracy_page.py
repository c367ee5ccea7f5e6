"""The page of an evaluation: figures, classes, what is taken for what, and pictures of the worst clips."""

import base64
import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.report.page import render
from pipeline.storage.manifest import Manifest
from train.accuracy.examples import frames_of

WORST = 12  # clips with a picture
CLASSES, PAIRS = 40, 25  # lines that are not folded; pairs of classes
MISSING = 100  # clips that could not be decoded, by name
SIDE = 224  # pixels of a picture, 8 kB


def page(found: Mapping[str, Any], table: pa.Table, names: Sequence[str], manifest: Manifest) -> str:
    """What evaluation.json holds, and the predictions -> self-contained HTML without scripts."""
    labels, predictions = (table[name].to_numpy() for name in ("label_index", "prediction_index"))
    wrong = (labels >= 0) & (labels != predictions)
    pairs = Counter(zip(labels[wrong].tolist(), predictions[wrong].tolist(), strict=True)).most_common()
    mistaken: dict[int, tuple[int, int]] = {}
    for (label, prediction), number in pairs:
        mistaken.setdefault(label, (prediction, number))
    classes = [
        {**each, "top1": each["right"] / each["clips"], "mistaken": _taken_for(names, mistaken.get(place))}
        for place, each in enumerate(found["classes"])
        if each["clips"]
    ]
    classes.sort(key=lambda each: (each["top1"], -each["clips"]))
    clips = [each["clips"] for each in found["classes"]]
    return render(
        Path(__file__).with_name("accuracy_page.html"),
        "evaluation",
        Path(found["weights"]).resolve().name,
        f"on {found['data']}, {time.strftime('%Y-%m-%d %H:%M')}",
        found=found,
        asked=found["asked"],
        many_classes=len(names) > 5,
        classes=classes,
        without=[each["name"] for each in found["classes"] if not each["clips"]],
        shown=CLASSES,
        pairs=[(names[label], names[taken], n, n / clips[label]) for (label, taken), n in pairs[:PAIRS]],
        num_pairs=len(pairs),
        worst=worst_clips(table, manifest),
        num_wrong=int(wrong.sum()),
        missing=found["missing"][:MISSING],
    )


def _taken_for(names: Sequence[str], found: tuple[int, int] | None) -> str:
    return f"{names[found[0]]} ({found[1]})" if found else "–"


def worst_clips(table: pa.Table, manifest: Manifest) -> list[dict[str, Any]]:
    """Clips that are taken for something else, the least likely label first; each with its middle frame, a JPEG in base64."""
    wrong = table.filter(pc.greater(table["place"], 0)).sort_by([("probability", "ascending"), ("row", "ascending")])
    found = wrong.slice(0, WORST).select(
        ["row", "key", "label", "prediction", "probability", "top", "top_probability", "place"]
    )
    lines = found.to_pylist()
    pictures = frames_of(manifest, [line["row"] for line in lines], 1, SIDE)
    return [{**line, "picture": jpeg(pictures[line["row"]][0]) if line["row"] in pictures else None} for line in lines]


def jpeg(pixels: np.ndarray, quality: int = 80, subsampling: int = 2) -> str:
    """In base64; `subsampling` 0 keeps the colour of every pixel, 2 of every fourth."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling=subsampling)
    return base64.b64encode(file.getvalue()).decode()
