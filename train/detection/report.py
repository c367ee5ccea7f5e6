"""What is said of scored detections: OUT/evaluation.json, OUT/evaluation.html, and lines for people."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.storage.files import write_durably
from pipeline.storage.key_frames import KeyFrames
from train.demos import weights as released
from train.detection.detection_page import frames_with_boxes, page
from train.detection.mean_precision import STYLES, MeanPrecision, Rows, mean_precision

WITHOUT_EXCLUDED = (
    "mmaction2 counts what is true in excluded seconds as never found; a dataset has none of these, so its figure here may be "
    "higher than its own"
)
SHOWN = 8  # classes, names in a line


def report(
    options: argparse.Namespace,
    truth: Rows,
    found: Rows,
    names: Mapping[int, str],
    facts: Mapping[str, Any],
    excluded: np.ndarray | None = None,
    *,
    frames: KeyFrames | None = None,
    rows: np.ndarray | None = None,
) -> None:
    """Score, write what was found, and say it."""
    results = {style: mean_precision(truth, found, names, style, excluded) for style in STYLES}
    result = results[options.style]
    if not result.in_mean:
        raise ValueError(f"{facts['of']}: nothing is true in these frames of the {len(names)} classes that count")
    notices = [*facts.get("notices", ()), *([] if frames is None else [WITHOUT_EXCLUDED])]
    told = {
        "name": Path(options.weights).resolve().name,
        "map": result.mean,
        "style": result.style,
        "whose": STYLES[result.style].whose,
        "other_styles": {style: _plain(each.mean) for style, each in results.items() if style != options.style},
        "in_mean": result.in_mean,
        "num_classes": len(names),
        "frames_of": None,
        "asked": {},
        "missing": [],
        **facts,
        "notices": notices,
        "ignored": result.ignored,
        "classes": [
            {"id": n, "name": names[n], "ap": _plain(ap), "annotated": result.truths[n], "detected": result.detections[n]}
            for n, ap in result.classes.items()
        ],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_durably(options.out / "evaluation.json", json.dumps(told, indent=1).encode())
    shown = frames_with_boxes(frames, rows, truth, found, names) if frames is not None and rows is not None else []
    counted = {**told, "missing": [each["key"] for each in told["missing"]][:SHOWN]}
    write_durably(options.out / "evaluation.html", page(counted, shown).encode())
    say(told, result, names)
    print(f"\n{released.printable(str(options.out))}/evaluation.html", flush=True)


def say(told: Mapping[str, Any], result: MeanPrecision, names: Mapping[int, str]) -> None:
    """For people."""
    of = f"{told['frames']:,}" + (f" of {told['frames_of']:,}" if told["frames_of"] is not None else "") + " key frames"
    print(f"\nmAP@0.5{result.mean:>10.2%}  in {result.style}'s style, of {result.in_mean} of {len(names)} classes, {of}")
    for style, value in told["other_styles"].items():
        print(f"{'–' if value is None else f'{value:.2%}':>17}  in {style}'s")
    for why, number in result.ignored.items():
        if number:
            print(f"{number:,} rows of detections {why} do not count")
    for notice in told["notices"]:
        print(released.printable(notice))
    if told["missing"]:
        keys = [each["key"] for each in told["missing"]]
        more = f" and {len(keys) - SHOWN} others" if len(keys) > SHOWN else ""
        print(released.printable(f"not decoded: {', '.join(keys[:SHOWN])}{more}"))
    worst = sorted((each for each in told["classes"] if each["ap"] is not None), key=lambda each: each["ap"])
    if len(worst) > 1:
        print(f"\n{'annotated':>10}{'AP':>9}  worst classes")
        for each in worst[:SHOWN]:
            print(f"{each['annotated']:>10,}{each['ap']:>9.1%}  {released.printable(each['name'])}")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value
