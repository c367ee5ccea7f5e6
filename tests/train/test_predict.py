import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initialise
from model.videomae import VideoMAE
from model.weights import metadata_of
from pipeline.decoding.video_file import read_video
from pipeline.sampling import segment_frames
from tests.pipeline.encoding import encode, numbered_frame
from train import predict
from train.checkpoint.source import read_source
from train.demos.prediction import class_names
from train.demos.time_line import TimeLine

NAMES = ["running", "a very long name of something that somebody does with something else for a while", "Схватка $x$ 人"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoClassifier]:
    model = VideoClassifier(MODELS["tiny"], len(NAMES))
    initialise(model, seed=0)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    file = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_file(dict(model.named_parameters()), file, metadata=metadata_of(MODELS["tiny"], NAMES))
    return file, model.eval()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """190 frames: 48 every 4th, six windows of 8."""
    file = tmp_path_factory.mktemp("videos") / "name $of$ a video.mp4"
    file.write_bytes(encode([numbered_frame(number) for number in range(190)], gop=20))
    return file


@torch.no_grad()
def test_views_are_those_of_the_official_test(classifier: Any, video: Path, capsys: Any, tmp_path: Path) -> None:
    weights, model = classifier
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    videos = [str(tmp_path / "damaged.mp4"), str(video), str(tmp_path / "nowhere.mp4"), str(video)]
    options = ["--weights", str(weights), "--out", str(tmp_path), "--json"]
    assert predict.main([*videos, *options, "--views", "3x2", "--stride", "2"]) == 1
    said = capsys.readouterr()
    assert [line.rpartition(": ")[0] for line in said.err.splitlines()] == [
        f"predict: {videos[0]}: FFmpeg finds no video in it",
        f"predict: {videos[2]}",
    ]
    first, second = (json.loads(line) for line in said.out.splitlines())
    file = read_video(video)
    views = file.views(segment_frames(190, 8, 2, 3).repeat(2, axis=0), np.tile(file.boxes((64, 64), 2), (3, 1)), (64, 64))
    expected = model(torch.from_numpy(views)).softmax(-1).mean(0)
    assert [each["index"] for each in first["classes"]] == expected.argsort(descending=True).tolist()
    assert [each["class"] for each in first["classes"]] == [NAMES[each["index"]] for each in first["classes"]]
    assert np.allclose([each["probability"] for each in first["classes"]], expected.sort(descending=True).values, atol=1e-5)
    assert first["frames"] == 190 and first["seconds"] == pytest.approx(190 / 30)
    assert np.allclose(first["windows"], [[0, 16 / 30], [86 / 30, 102 / 30], [174 / 30, 190 / 30]], atol=0.05)
    assert second["classes"] == first["classes"] and second["time_line"] != first["time_line"]
    for each in (first, second):
        with Image.open(each["time_line"]) as picture:
            assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 10


def test_windows_lie_end_to_end(classifier: Any, video: Path, capsys: Any, tmp_path: Path) -> None:
    assert predict.main([str(video), "--weights", str(classifier[0]), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "3 classes" in said and "6.3 s, 190 frames of 128 x 64; 6 windows of 32 frames" in said and NAMES[1] in said
    assert predict.main([str(video), "--weights", str(classifier[0]), "--sparse", "--out", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    assert "2 windows spread over it" in said and "time line" not in said and not (tmp_path / "none").exists()


def test_a_short_video_is_one_window(classifier: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.mp4").write_bytes(encode([numbered_frame(3)]))
    assert predict.main([str(tmp_path / "x.mp4"), "--weights", str(classifier[0]), "--top", "2"]) == 0
    said = capsys.readouterr().out
    assert "1 frame of 128 x 64; 1 window" in said and "7 of them repeat the one before" in said and said.count("%  ") == 2


@pytest.mark.parametrize(
    "text", ['["x", "y", "z"]', '{"x": 0, "z": 2, "y": 1}', '{"id2label": {"0": "x", "1": "y", "2": "z"}}', "x\ny \nz\n"]
)
def test_names_of_classes(text: str, classifier: Any, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(text)
    weights = read_source(classifier[0])
    assert class_names(tmp_path / "labels", weights) == ["x", "y", "z"]
    assert class_names(None, weights) == NAMES


def test_refusals_name_what_is_wrong(classifier: Any, video: Path, capsys: Any, tmp_path: Path) -> None:
    save_file(VideoMAE(MODELS["tiny"]).state_dict(), tmp_path / "mae.safetensors", metadata=metadata_of(MODELS["tiny"]))
    (tmp_path / "two").write_text("a\nb")
    (tmp_path / "odd").write_text('{"0": "a", "1": "b", "7": "c"}')
    (tmp_path / "broken").write_text('["a", ')
    good = ["--weights", str(classifier[0])]
    for options, told in (
        (
            ["--weights", str(tmp_path / "mae.safetensors")],
            "has no head of classes: give weights of a fine-tuned model; `tubecell rec",
        ),
        ([*good, "--labels", str(tmp_path / "two")], "two names 2 classes, and the head of"),
        ([*good, "--labels", str(tmp_path / "odd")], "odd does not give every class, from 0 on, a name"),
        ([*good, "--labels", str(tmp_path / "broken")], "broken is no JSON"),
        ([*good, "--top", "0"], "--top 0 must be at least 1"),
        (["--weights", str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert predict.main([str(video), *options]) == 2
        assert told in (said := capsys.readouterr().err) and said.count("\n") == 1, said
    assert predict.main([]) == 2


def test_when_a_class_is_there() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.6, 0.3, 0.1]])
    line = TimeLine(np.stack([np.arange(5.0), np.arange(1.0, 6)], axis=1), probabilities)
    first, second = line.rows(1)  # the second is first in some window
    assert (first.index, first.peak, first.begin, first.end) == (0, 0.8, 0, 2) and first.probability == pytest.approx(0.44)
    assert (second.index, second.peak, second.begin, second.end) == (1, 0.7, 2, 4)
