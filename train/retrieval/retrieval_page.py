"""The page of what texts found: figures of both directions, and some texts with the clips that are most like them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.page import render
from pipeline.storage.manifest import Manifest
from train.accuracy.accuracy_page import jpeg
from train.accuracy.examples import frames_of

QUERIES, CLIPS = 12, 5  # different texts that are shown, at equal distances, and clips of each
FRAMES, SIDE = 4, 96  # of a clip, and pixels of a frame
WAYS = {"text_to_video": "texts that find their video", "video_to_text": "videos that find their text"}


def page(name: str, step: int, split: str, figures: Mapping[str, float], queries: Sequence[Mapping[str, Any]]) -> str:
    """Of a run after a step: figures by their names, and `found_by_texts` -> self-contained HTML without scripts."""
    ways = {
        title: {name.removeprefix(f"held_out_{way}_"): value for name, value in figures.items() if f"_{way}_" in name}
        for way, title in WAYS.items()
    }
    return render(
        Path(__file__).with_name("retrieval_page.html"),
        "retrieval",
        name,
        f"after step {step:,}, on split {split}, {time.strftime('%Y-%m-%d %H:%M')}",
        ways=ways,
        chance=figures["held_out_chance_r1"],
        queries=queries,
    )


def found_by_texts(
    manifest: Manifest,
    rows: Sequence[int],
    texts: Sequence[str],
    text_TE: np.ndarray,
    video_VE: np.ndarray,
    belongs_TV: np.ndarray,
) -> list[dict[str, Any]]:
    """Of texts at equal distances the clips most like them, each with frames as a JPEG in base64, and in which place the first
    that is right stands. `rows` (V,) are the clips', in the manifest."""
    different = np.sort(np.unique(texts, return_index=True)[1])  # the same words find the same
    chosen = different[np.linspace(0, len(different) - 1, min(QUERIES, len(different))).round().astype(int)].tolist()
    similarity_QV = text_TE[chosen] @ video_VE.T
    # of equal ones the right one comes last, as in the figures
    order_QV = [np.lexsort((own_V, -s_V)) for s_V, own_V in zip(similarity_QV, belongs_TV[chosen], strict=True)]
    shown = sorted({rows[place] for order_V in order_QV for place in order_V[:CLIPS]})
    pictures = {row: jpeg(np.concatenate(views, axis=1)) for row, views in frames_of(manifest, shown, FRAMES, SIDE).items()}
    return [
        {
            "text": texts[number],
            "rank": int(np.flatnonzero(belongs_TV[number][order_V])[0]) + 1,
            "clips": [
                {
                    "key": manifest.clip(rows[place]).key,
                    "similarity": float(s_V[place]),
                    "right": bool(belongs_TV[number, place]),
                    "picture": pictures.get(rows[place]),
                }
                for place in order_V[:CLIPS]
            ],
        }
        for number, s_V, order_V in zip(chosen, similarity_QV, order_QV, strict=True)
    ]
