"""What somebody else says of whole videos, to give classes to segments that have none: FineAction's and ActivityNet's way.

{"results": {VIDEO: [0.01, 0.9, ...]}, "class": [NAME, ...]}       a score a class
{"results": {VIDEO: [{"label": NAME, "score": 0.9}, ...]}}         of the best ones
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

MOST = torch.finfo(torch.float32).max


def read_video_scores(file: Path, classes: Sequence[str]) -> Mapping[str, Tensor]:
    """Float32 (K,) of each video, in the order of the `classes`; 0 for one that is not named. Without names of its own a list
    of scores is in their order. Raises ValueError for what is no such file, and for a score that is negative or not finite."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--external-scores {file} cannot be read as JSON: {error}") from None
    results = values.get("results", values) if isinstance(values, dict) else None
    named = values.get("class") if isinstance(values, dict) else None
    if not isinstance(results, dict) or not results:
        raise ValueError(f'--external-scores {file} has no "results": {{VIDEO: scores}}')
    names = [str(name) for name in named] if isinstance(named, list) else list(classes)
    place = {name: number for number, name in enumerate(classes)}
    if not any(name in place for name in names):
        raise ValueError(f"--external-scores {file} has not one class of the annotations; it has {', '.join(names[:5])}")
    found = {}
    for video, scores in results.items():
        try:
            if isinstance(scores, dict):
                pairs = [(str(name), float(score)) for name, score in scores.items()]
            elif scores and isinstance(scores[0], dict):
                pairs = [(str(each["label"]), float(each["score"])) for each in scores]
            else:
                pairs = list(zip(names, map(float, scores), strict=True))
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f"--external-scores {file}: {video} has no score for each of {len(names)} classes, nor labels with scores "
                f"({error})"
            ) from None
        row = torch.zeros(len(classes))
        for name, score in pairs:
            if not 0 <= score <= MOST:
                raise ValueError(
                    f"--external-scores {file}: {video} has {score} for {name}; a score must be at least 0 and finite, because "
                    "the root is taken of its product with a segment's: give probabilities, not logits"
                )
            if name in place:
                row[place[name]] = score
        found[video] = row
    return found
