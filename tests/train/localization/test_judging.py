"""How good what is found is, in numbers and files; and that long videos are seen as one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.localizer_config import LocalizerConfig
from model.segment_nms import Suppression
from tests.model.test_localizer import network
from tests.train.localization.made_features import DIM, write_features
from train.localization import judging
from train.localization.action_lines import draw
from train.localization.feature_set import FeatureSet
from train.localization.inference import DecodeConfig, Found, Inference, windows_of
from train.localization.judging import JudgeConfig, judge, write
from train.localization.mean_precision import THUMOS, Predicted, mean_precision
from train.localization.sequences import SequenceConfig

MODEL = LocalizerConfig(input_dim=DIM, num_steps=32, dim=16, head_dim=16, num_heads=2, num_levels=3, windows=(5,))


def truth_of(made: FeatureSet, score: float = 1.0) -> dict[int, Found | str]:
    """What a perfect localizer finds."""
    found: dict[int, Found | str] = {}
    for row, video in enumerate(made.videos):
        segments = torch.tensor([[each.begin, each.end] for each in video.actions]).reshape(-1, 2)
        labels = torch.tensor([made.label(each) for each in video.actions], dtype=torch.int64)
        found[row] = Found(segments, torch.full((len(labels),), score), labels)
    return found


def test_what_is_right_is_all_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, annotations = write_features(tmp_path, {"val": 5})
    made = FeatureSet(annotations, features, MODEL, SequenceConfig())
    found = truth_of(made)
    verdict = judge(made, found, JudgeConfig())
    assert verdict.figures["map"] == verdict.figures["recall_1x_0.50"] == 1.0
    found[3] = "cannot be read"
    verdict = judge(made, found, JudgeConfig(tious="activitynet"))
    assert verdict.figures["map_0.95"] == 1.0 and verdict.unread == {"video_val_0003": "cannot be read"}
    drawn = list[Path]()

    def counted(file: Path, *about: Any) -> np.ndarray:
        drawn.append(file)
        return draw(file, *about)

    monkeypatch.setattr(judging, "draw", counted)
    written, shown = write(tmp_path / "out", made, verdict, {"split": "val", "annotations": "x", "missing": []}, 3)
    assert [file for file, _ in shown.values()] == drawn[:2] and len(drawn) == 3, "each is drawn once, and two are shown"
    assert all(pixels.ndim == 3 and pixels.std() > 0 for _, pixels in shown.values())
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == written
    there = {each.label for row in verdict.found for each in made.videos[row].actions}
    assert [each["name"] for each in written["classes"]] == [name for name in made.names if name in there]
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())["results"]
    assert len(results) == 4 and set(results["video_val_0000"][0]) == {"label", "segment", "score"}
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page.count("data:image/png") == 3 and "could not be read" in page and max(there) in page
    assert len(list((tmp_path / "out" / "timelines").glob("*.png"))) == 3


def test_classes_come_from_scores_of_whole_videos(tmp_path: Path) -> None:
    features, annotations = write_features(tmp_path, {"val": 6})
    made = FeatureSet(annotations, features, MODEL, SequenceConfig(), one_class=True)
    assert made.names == ["action"]
    found = truth_of(made, 0.64)
    assert judge(made, found, JudgeConfig()).figures["map"] == 1.0, "where any action is"
    seen = {video.key: {each.label: 1.0 for each in video.actions} for video in made.videos[1:]}
    (tmp_path / "scores.json").write_text(json.dumps(seen))
    config = JudgeConfig(external_scores=tmp_path / "scores.json", external_classes=4)
    verdict = judge(made, found, config)
    assert verdict.unknown == 1 and len(verdict.found[0].scores) == 0 and list(verdict.names) == list(made.annotations.classes)
    first = verdict.found[1]
    assert len(first.scores) == 4 * len(made.videos[1].actions) and float(first.scores[0]) == pytest.approx(0.8)
    assert 0.1 < verdict.figures["map"] < 1.0


def test_no_truth_no_figure() -> None:
    none = Predicted(np.array([], str), np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0))
    with pytest.raises(ValueError, match="no action in the truth"):
        mean_precision({"a": []}, none, THUMOS)
    assert mean_precision({"a": [(1, 2, 0)]}, none, THUMOS).average == 0.0
    other = Predicted(np.array(["a", "b"]), np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([0, 7]), np.array([0.5, 0.9]))
    assert mean_precision({"a": [(1, 2, 0)]}, other, THUMOS).average == 1.0, "a class without truth counts for none"


@pytest.mark.parametrize(("steps", "longest", "overlap"), [(100, 100, 16), (101, 100, 16), (1000, 96, 16), (193, 100, 50)])
def test_windows_answer_for_every_step_once(steps: int, longest: int, overlap: int) -> None:
    windows = windows_of(steps, longest, overlap)
    assert windows[0].first == 0 and windows[-1].end == steps
    for window in windows:
        assert window.end - window.first <= longest
    owners = [[w for w in windows if w.begin <= at < w.until] for at in range(steps)]
    assert all(len(own) == 1 and own[0].first <= at < own[0].end for at, own in enumerate(owners))
    for at, (own,) in enumerate(owners):
        assert own.first == 0 or at - own.first >= overlap // 2 - 1
        assert own.end == steps or own.end - 1 - at >= overlap // 2 - 1


def test_a_long_video_in_windows_is_what_it_is_as_a_whole(tmp_path: Path) -> None:
    """But for what the network sees beyond the overlap of its windows."""
    features, annotations = write_features(tmp_path, {"val": 1}, steps=(300, 301))
    model, how, best = (
        network(MODEL, 4).eval(),
        DecodeConfig(least_score=0.0, least_steps=0.0),
        Suppression(method="none", most=5000),
    )
    found = []
    for longest in (2.0, 20.0):
        made = FeatureSet(annotations, features, MODEL, SequenceConfig(longest=longest))
        seeing = Inference(made, how, best, torch.device("cpu"))
        assert seeing.passes([0]) == (6 if longest == 2.0 else 1)
        ((row, each),) = list(seeing(model, [0], 9))
        assert row == 0 and isinstance(each, Found)
        found.append(each)
    windowed, whole = (each.scores.sort(descending=True).values for each in found)
    assert len(windowed) == pytest.approx(len(whole), rel=0.03)
    assert torch.isclose(windowed[:1500], whole[:1500], rtol=0.05).float().mean() > 0.97
