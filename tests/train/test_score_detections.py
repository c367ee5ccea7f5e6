"""Files of detections against files of truth, by the command."""

import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from train.detection.scored_model import settings
from train.recipes.detecting import RECIPES
from train.score_detections import main

ACTIONS = 'item { name: "stand" id: 1 }\nitem { name: "<sit>" id: 2 }\nitem { name: "fly" id: 3 }\n'
TRUTH = "m,0902,0,0,1,1,1,0\nm,0902,0,0,.5,.5,2,1\nm,0903,0,0,1,1,1,0\nm,0904\nm,0903,0,0,1,1,9,0\n"
FOUND = "m,0902,0,0,1,1,1,.9\nm,0902,0,0,.5,.5,1,.8\nm,0903,0,0,1,1,1,.7\nm,0905,0,0,1,1,2,.6\nm,0902,0,0,1,1,9,.5\n"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, text in (("truth.csv", TRUTH), ("found.csv", FOUND), ("list.pbtxt", ACTIONS), ("out.csv", "m,0903\n")):
        (tmp_path / name).write_text(text)
    truth = "--truth", str(tmp_path / "truth.csv"), "--actions", str(tmp_path / "list.pbtxt")
    return [str(tmp_path / "found.csv"), *truth, "--out", str(tmp_path / "scored")]


def told(files: list[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads((Path(files[-1]) / "evaluation.json").read_text())
    return found


def test_a_file_is_scored_in_every_style(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files) == 0
    found = told(files)
    assert found["map"] == pytest.approx((1 / 2 + 2 / 3 / 2) / 2) and found["style"] == "activitynet"
    assert found["other_styles"] == {"slowfast": pytest.approx(found["map"]), "mmaction2": pytest.approx(1 / 2 + 1 / 3)}
    assert found["ignored"] == {
        "of other classes": 1,
        "beyond the 50 best of an image": 0,
        "on excluded images": 0,
        "on images without truth": 1,
        "without an area": 0,
    }
    assert (found["in_mean"], found["num_classes"], found["frames"]) == (2, 3, 2)
    said = capsys.readouterr().out
    assert "41.67%  in activitynet's style, of 2 of 3 classes, 2 key frames" in said and "83.33%  in mmaction2's" in said
    assert "1 rows of detections on images without truth do not count" in said and "1 frames without people" in said
    page = (Path(files[-1]) / "evaluation.html").read_text()
    assert "41.67%" in page and "&lt;sit&gt;" in page and "<sit>" not in page and "1 classes in no mean" in page


def test_seconds_are_left_out(files: list[str], tmp_path: Path) -> None:
    assert main([*files, "--excluded", str(tmp_path / "out.csv"), "--style", "mmaction2"][:]) == 0
    found = told(files)
    assert found["map"] == pytest.approx(1 / 2) and found["ignored"]["on excluded images"] == 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--data DATASET or --truth CSV is needed, one of them"),
        (("--data", "D", "--actions", "LIST"), "--actions goes with --truth: a dataset has its own classes"),
        (("--data", "D", "--excluded", "TRUTH"), "--excluded goes with --truth"),
        (("--truth", "TRUTH"), "--truth: --actions PBTXT is needed"),
        (("--truth", "TRUTH", "--actions", "nowhere"), "nowhere cannot be read: No such file"),
        (("--truth", "TRUTH", "--actions", "TRUTH"), "is no action list"),
        (("--truth", "TRUTH", "--actions", "LIST", "--at-least", "2"), "--at-least 2.0 must be 0 to 1"),
        (("--truth", "LIST", "--actions", "LIST"), "list.pbtxt has rows of 1 fields"),
    ],
)
def test_what_cannot_be_scored_is_said(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    places = {"TRUTH": str(tmp_path / "truth.csv"), "LIST": str(tmp_path / "list.pbtxt")}
    assert main([files[0], *(places.get(option, option) for option in options), "--out", files[-1]]) == 2
    assert said in capsys.readouterr().err


def test_a_run_is_looked_at_as_it_was_trained_and_evaluated(tmp_path: Path) -> None:
    names = ("frames", "sampling", "at_least", "sides")
    asked = Namespace(weights=str(tmp_path), **dict.fromkeys(names))
    official = {"frames": "key_frame_videomae", "sampling": "manifest", "at_least": 0.8, "sides": None}
    assert settings(asked) == official  # of weights that are no run
    config = asdict(replace(RECIPES["tiny"](), frames="key_frame", evaluate_score=0.5))
    config["views"]["sampling"] = "stride:2"
    (tmp_path / "config.json").write_text(json.dumps({"stage": "detect", **config}, default=str))
    assert settings(asked) == {"frames": "key_frame", "sampling": "stride:2", "at_least": 0.5, "sides": [64, 128]}
    given = {"frames": "key_frame_videomae", "sampling": "stride:4", "at_least": 0.0, "sides": [32, 64]}
    assert settings(Namespace(weights=str(tmp_path), **given)) == given


def test_weights_need_a_dataset(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["RUN", *files[1:]]) == 2
    assert "only a file of detections (.csv) can be scored without --data" in capsys.readouterr().err
