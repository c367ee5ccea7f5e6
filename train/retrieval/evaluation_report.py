"""What is said of an evaluation: OUT/evaluation.json, OUT/evaluation.html, and lines for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.storage.files import write_durably
from pipeline.storage.manifest import Manifest
from train.demos.weights import printable
from train.retrieval.pairs import CHANCE, NAMES, WAYS, Pairs
from train.retrieval.retrieval_page import found_by_texts, page

SHOWN = 8  # names in a line


def report(
    out: Path, name: str, manifest: Manifest, pairs: Pairs, figures: Mapping[str, float], facts: Mapping[str, Any]
) -> None:
    """For rank 0. `facts` has of the clips with a caption the number "of", and of the "missing" ones "key", "reason" and
    "detail", the "split", the "data" and the "weights", and what else is to be said."""
    ways = {way: {each: figures[f"{way}_{each}"] for each in NAMES} for way in WAYS}
    counted = {"clips": len(pairs.rows), "of": facts["of"], "texts": len(pairs.texts)}
    out.mkdir(parents=True, exist_ok=True)
    found = {**ways, CHANCE: figures[CHANCE], **counted, **facts}
    write_durably(out / "evaluation.json", (json.dumps(found, indent=1) + "\n").encode())
    keys: Sequence[str] = [each["key"] for each in facts["missing"]]
    when = f"{facts['weights']}, on split {facts['split']} of {facts['data']}"
    text = page(name, when, figures, pairs, found_by_texts(manifest, pairs), {"of": facts["of"], "missing": keys})
    write_durably(out / "evaluation.html", text.encode())
    print(f"\n{'':<16}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'mAP':>8}{'median rank':>13}{'mean rank':>11}")
    for way, each in ways.items():
        shares = "".join(f"{each[name]:>8.1%}" for name in ("r1", "r5", "r10", "map"))
        print(f"{way.replace('_', ' '):<16}{shares}{each['median_rank']:>13.1f}{each['mean_rank']:>11.1f}")
    print(f"by chance, R@1 of a text would be {figures[CHANCE]:.1%}")
    more = f" and {len(keys) - SHOWN} others" if len(keys) > SHOWN else ""
    lost = f"; not decoded: {', '.join(keys[:SHOWN])}{more}" if keys else ""
    print(printable(f"of {counted['texts']:,} captions and {counted['clips']:,} of {facts['of']:,} clips{lost}"))
    print(f"\n{printable(str(out))}/evaluation.html", flush=True)
