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
from train.accuracy.retrieval import Belonging, same_words
from train.retrieval.pairs import Pairs

QUERIES, CLIPS = 12, 5  # different texts that are shown, at equal distances, and clips of each
FRAMES, SIDE = 4, 96  # of a clip, and pixels of a frame
SHOWN = 8  # names of clips in a line
WAYS = {"text_to_video": "texts that look for their video", "video_to_text": "videos that look for their text"}


def page(
    name: str,
    when: str,
    figures: Mapping[str, float],
    pairs: Pairs,
    queries: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> str:
    """Of a run: `figures` by the names of `Pairs.figures`, and `found_by_texts` -> self-contained HTML without scripts. `about`
    has "of", the clips there were, and "missing", the keys of those that could not be decoded."""
    ways = {
        title: {name.removeprefix(f"{way}_"): value for name, value in figures.items() if name.startswith(way)}
        for way, title in WAYS.items()
    }
    return render(
        Path(__file__).with_name("retrieval_page.html"),
        "retrieval",
        name,
        f"{when}, {time.strftime('%Y-%m-%d %H:%M')}",
        ways=ways,
        chance=figures["chance_r1"],
        queries=queries,
        clips=len(pairs.rows),
        texts=len(pairs.texts),
        of=about["of"],
        missing=list(about["missing"][:SHOWN]),
        lost=len(about["missing"]),
    )


def found_by_texts(manifest: Manifest, pairs: Pairs) -> list[dict[str, Any]]:
    """Of texts at equal distances the clips most like them and one that is right, each with its place and with frames as a JPEG
    in base64, and in which place the first that is right stands."""
    different = np.unique(same_words(pairs.texts), return_index=True)[1]  # the same words find the same
    chosen = different[np.linspace(0, len(different) - 1, min(QUERIES, len(different))).round().astype(int)]
    similarity_QV = pairs.text_features[chosen] @ pairs.clip_features.T
    belongs_QV = Belonging(pairs.clip_of_text, len(pairs.rows), pairs.texts).of_texts(chosen)
    # of equal ones the right one comes last, as in the figures
    order_QV = [np.lexsort((own_V, -s_V)) for s_V, own_V in zip(similarity_QV, belongs_QV, strict=True)]
    places_QK = [chosen_places(own_V[order_V]) for own_V, order_V in zip(belongs_QV, order_QV, strict=True)]
    shown = sorted(
        {int(row) for order_V, places in zip(order_QV, places_QK, strict=True) for row in pairs.rows[order_V[places]]}
    )
    pictures = {row: jpeg(np.concatenate(views, axis=1)) for row, views in frames_of(manifest, shown, FRAMES, SIDE).items()}
    return [
        {
            "text": pairs.texts[number],
            "rank": int(np.flatnonzero(own_V[order_V])[0]) + 1,
            "right": int(own_V.sum()),
            "clips": [
                {
                    "key": manifest.clip(int(pairs.rows[clip])).key,
                    "place": place + 1,
                    "similarity": float(s_V[clip]),
                    "right": bool(own_V[clip]),
                    "picture": pictures.get(int(pairs.rows[clip])),
                }
                for place, clip in zip(places, order_V[places].tolist(), strict=True)
            ],
        }
        for number, s_V, own_V, order_V, places in zip(
            chosen.tolist(), similarity_QV, belongs_QV, order_QV, places_QK, strict=True
        )
    ]


def chosen_places(right_V: np.ndarray) -> list[int]:
    """Of clips in their order, bool: the first ones and, if none of them is right, for the last of them the first that is."""
    first = [*range(min(CLIPS, len(right_V)))]
    best = int(np.flatnonzero(right_V)[0])
    return first if best in first else [*first[:-1], best]
