"""A picture of clips that were told right, and of clips that were not."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.loader import ClipLoader, LoaderError
from pipeline.sampling import EvaluationSampler, SamplingRecipe
from pipeline.storage.manifest import Manifest
from train.pictures import ACCENT, INK, plt, save

EACH = 4  # clips that are right, and clips that are wrong
FRAMES, SIDE = 6, 96  # of a clip, and pixels of a frame
NAME = 22  # characters of a class


def draw_examples(file: Path, table: pa.Table, manifest: Manifest) -> bool:
    """Of the predictions of labelled clips: each clip's frames, its label, and what was thought to be likelier, with its
    probability. The choice hangs on the keys alone, so it flatters nobody. False: there is none that could be drawn."""
    known = table.filter(pc.greater_equal(table["place"], 0)).sort_by("key")
    chosen = [some(known.filter(pc.equal(pc.equal(known["place"], 0), right))) for right in (True, False)]
    rows = [clip["row"] for clips in chosen for clip in clips]
    pictures = frames_of(manifest, rows, FRAMES, SIDE)
    columns = [[clip for clip in clips if clip["row"] in pictures] for clips in chosen]
    if not any(columns):
        return False
    down = max(len(clips) for clips in columns)
    figure = plt.figure(figsize=(13, 1.45 * down + 0.5), layout="constrained")
    halves: Any = figure.subfigures(1, 2, wspace=0.03)
    for part, clips, title in zip(halves, columns, ("right", "wrong"), strict=True):
        part.suptitle(title if clips else f"none is {title}", x=0.01, ha="left", color=INK)
        if not clips:
            continue
        for axes, place in zip(part.subplots(down, 1, squeeze=False).flat, range(down), strict=True):
            axes.axis("off")
            if place < len(clips):
                clip = clips[place]
                axes.imshow(np.concatenate(pictures[clip["row"]], axis=1))
                said = f"{clip['prediction'][:NAME]} ({clip['top_probability'][0]:.0%})"
                text = said if title == "right" else f"{clip['label'][:NAME]}, taken for {said}"
                axes.set_title(text, loc="left", fontsize=9, color=INK if title == "right" else ACCENT, parse_math=False)
    save(figure, file)
    return True


def some(clips: pa.Table) -> list[dict[str, Any]]:
    """Up to `EACH`, equally spaced."""
    places = sorted({round(place) for place in np.linspace(0, len(clips) - 1, EACH)}) if len(clips) else []
    return clips.select(["row", "label", "prediction", "top_probability"]).take(pa.array(places, pa.int64())).to_pylist()


def frames_of(manifest: Manifest, rows: Sequence[int], num_frames: int, side: int) -> dict[int, np.ndarray]:
    """By row, uint8 (num_frames, side, side, 3), spread over the clip; a clip that cannot be decoded again has none."""
    recipe = SamplingRecipe(
        views_per_step=1,
        views_per_clip=1,
        split="all",
        num_frames=num_frames,
        input_size=side,
        temporal="tsn",
        crop="center",
        masks=None,
    )
    return views_of(manifest, rows, recipe)


def views_of(manifest: Manifest, rows: Sequence[int], recipe: SamplingRecipe) -> dict[int, np.ndarray]:
    """By row, the middle view that the recipe takes of a clip, uint8 (T, height, width, 3); a clip that cannot be decoded again
    has none."""
    pictures: dict[int, np.ndarray] = {}
    if not rows:
        return pictures
    try:
        with closing(ClipLoader(manifest.place, recipe, sampler=EvaluationSampler(rows=np.array(rows)), workers=1)) as loader:
            for batch in loader:
                for row, there, view in zip(batch.rows.tolist(), batch.weight.tolist(), batch.views.numpy(), strict=True):
                    if there:
                        pictures[row] = view.copy()
    except LoaderError:
        pass
    return pictures
