"""What is held out of a run of detection, and what of it is said where nothing can be."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.storage.key_frames import Action, KeyFrames
from pipeline.storage.manifest import Manifest
from tests.key_frame_tables import box, key_frame, write_tables
from tests.manifest_rows import row, write_rows
from train.compute.parallel import Ranks
from train.detection import held_out
from train.detection.detections import Found, TestBoxes
from train.detection.held_out import HeldOutBoxes
from train.evaluation import comparison

PERSON = (0.1, 0.1, 0.5, 0.9)
RANKS = Ranks(0, 1, 1, torch.device("cpu"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three key frames, in each a person who is found, too."""
    write_rows(tmp_path, [row(i) for i in range(3)])
    return annotated(tmp_path, 3)


def annotated(folder: Path, clips: int) -> Path:
    keys = [f"clip-{i}" for i in range(clips)]
    boxes = [one for key in keys for one in (box(key, "truth", PERSON, (1,)), box(key, "detection", PERSON, score=0.9))]
    write_tables(folder, [key_frame(key) for key in keys], boxes, [Action(1, "stand"), Action(2, "sit")])
    return folder


def evaluator(dataset: Path, version: int | None = None) -> HeldOutBoxes:
    views = SimpleNamespace(views_per_step=1)
    config: Any = SimpleNamespace(evaluate_split="all", views=views, accumulation=lambda ranks: 1, sampling=None)
    stage: Any = SimpleNamespace(config=config)
    return HeldOutBoxes(stage, RANKS, Manifest(dataset, version), KeyFrames(Manifest(dataset)), TestBoxes(), "activitynet")


@pytest.mark.parametrize(("score", "figure"), [(0.9, 1.0), (math.nan, math.nan), (math.inf, math.nan)])
def test_scores_that_are_not_finite_end_no_run(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], score: float, figure: float
) -> None:
    """No rank raises what the others would wait for: all get a NaN, which is never the best."""

    def found(*given: Any) -> Iterator[Found]:
        scores = np.full((3, 2), 0.5, np.float32)
        scores[1, 0] = score
        yield Found(np.arange(3), np.array([1, 3, 5]), scores)

    monkeypatch.setattr(held_out, "detections", found)
    evaluation = evaluator(dataset)(nn.Identity(), 7)
    assert evaluation.figures == {"held_out_map_activitynet": pytest.approx(figure, nan_ok=True)} and evaluation.clips == 3
    assert ("are not finite" in capsys.readouterr().err) is math.isnan(figure)


def test_a_run_evaluates_the_clips_it_began_with(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the dataset has got more since."""
    write_rows(dataset, [row(i) for i in range(5)])
    annotated(dataset, 5)
    seen: list[np.ndarray] = []

    def found(model: Any, opened: Any, recipe: Any, frames: Any, rows: np.ndarray, boxes: Any) -> Iterator[Found]:
        seen.append(rows)
        yield Found(rows, np.array([1 + 2 * row for row in rows]), np.full((len(rows), 2), 0.5, np.float32))

    monkeypatch.setattr(held_out, "detections", found)
    evaluations = [evaluator(dataset, version)(nn.Identity(), 7) for version in (1, None)]
    assert [rows.tolist() for rows in seen] == [[0, 1, 2], [0, 1, 2, 3, 4]] and [each.of for each in evaluations] == [3, 5]


def test_a_last_figure_that_is_none_is_said(tmp_path: Path) -> None:
    name = "held_out_map_activitynet"
    facts = {"figure": name, "step": "5", "value": "0.5"}
    save_file({"x": torch.zeros(1)}, tmp_path / "best.safetensors", facts)
    (tmp_path / "evaluations.jsonl").write_text(f'{{"step": 7, "{name}": null}}\n')
    assert comparison(tmp_path) == [
        "held out map activitynet: nan after step 7, the best 0.5 after step 5, in best.safetensors"
    ]
