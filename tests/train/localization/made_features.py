"""Generated videos with actions: features of which a class can be told, and annotations in the usual layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("clap", "jump", "throw", "wave")
DIM, STRIDE, FRAMES, FPS = 16, 4, 16, 30.0


def write_features(
    folder: Path, videos: dict[str, int], seed: int = 0, *, shuffled: bool = False, steps: tuple[int, int] = (40, 100)
) -> tuple[Path, Path]:
    """{split: number of videos} -> the folder of features and the annotations. `shuffled`: labels say nothing of
    what is seen."""
    draw, looks = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(len(CLASSES), DIM))
    features, database = folder / "features", dict[str, Any]()
    features.mkdir(parents=True)
    for split, number in videos.items():
        for which in range(number):
            name, length = f"video_{split}_{which:04}", int(draw.integers(*steps))
            values, actions, at = draw.normal(0, 1, (length, DIM)), [], int(draw.integers(2, 8))
            while at + 14 < length:
                long, seen = int(draw.integers(5, 14)), int(draw.integers(len(CLASSES)))
                values[at : at + long] += 0.9 * looks[seen]
                label = int(draw.integers(len(CLASSES))) if shuffled else seen
                begin, end = ((step * STRIDE + FRAMES / 2) / FPS for step in (at - 0.5, at + long - 0.5))
                actions.append({"label": CLASSES[label], "segment": [begin, end], "label_id": label})
                at += long + int(draw.integers(4, 16))
            np.save(features / f"{name}.npy", values.astype(np.float32))
            duration = ((length - 1) * STRIDE + FRAMES) / FPS
            database[name] = {"subset": split, "duration": duration, "fps": FPS, "annotations": actions}
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps({"version": "made", "database": database}))
    return features, annotations
