"""What the page of `tubecell demo` says, without the page."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initialise
from model.videomae import VideoMAE
from model.weights import metadata_of
from pipeline.decoding.video_file import read_video
from tests.pipeline.encoding import encode, numbered_frame
from train import demo, predict
from train.demos import answers, shown_models
from train.demos.answers import Asked, head, opened, prediction, reconstruction, refusal, told, usual_stride
from train.demos.shown_models import ShownModels, load, quickstart_weights

TINY = MODELS["tiny"]
NAMES = ["<b>run</b>", "a & b", "c"]


def options(**given: Any) -> argparse.Namespace:
    hints = dict.fromkeys(("encoder_heads", "decoder_heads", "input_size", "num_frames", "key", "labels"))
    return argparse.Namespace(**hints, device="cpu", precision=None, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of every kind, and a video of 190 frames, six windows."""
    folder = tmp_path_factory.mktemp("demo")
    classifier, autoencoder = VideoClassifier(TINY, 3), VideoMAE(TINY)
    for seed, model in enumerate((classifier, autoencoder)):
        initialise(model, seed)
    save_file(classifier.state_dict(), folder / "classifier.safetensors", metadata=metadata_of(TINY, NAMES))
    save_file(autoencoder.state_dict(), folder / "mae.safetensors", metadata=metadata_of(TINY))
    features = VideoMAE(TINY, target_values=96)
    save_file(features.state_dict(), folder / "features.safetensors", metadata=metadata_of(TINY))
    encoder = {name: each.clone() for name, each in autoencoder.encoder.state_dict().items()}
    save_file(encoder, folder / "encoder.safetensors", metadata=metadata_of(TINY))
    (folder / "<i>x.mp4").write_bytes(encode([numbered_frame(number) for number in range(190)], gop=20))
    return folder


@pytest.fixture(scope="module")
def shown(folder: Path) -> ShownModels:
    names = ("classifier", "mae", "features", "encoder", "mae")
    return load([str(folder / f"{name}.safetensors") for name in names], options())


def test_weights_show_what_they_can(shown: ShownModels, folder: Path) -> None:
    assert [Path(place).stem for place in shown.predictors] == ["classifier"]
    assert [Path(place).stem for place in shown.reconstructors] == ["mae"]
    assert [re.sub(".*/", "", why).split(" ")[:3] for why in shown.neither] == [
        ["features.safetensors", "predicts", "96"],
        ["encoder.safetensors", "is", "an"],
    ]
    said = head(shown)
    assert "3 classes with" in said and said.count("Not used:") == 2 and "No prediction" not in said
    assert "&lt;b&gt;run&lt;/b&gt;, a &amp; b, c. Of a video" in said
    alone = head(load([str(folder / "mae.safetensors")], options()))
    assert "No prediction:" in alone and "<b>Reconstructs</b>" in alone
    assert "No reconstruction:" in head(load([str(folder / "classifier.safetensors")], options()))


def test_weights_that_show_nothing_end_the_command(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(demo, "serve", lambda *_: pytest.fail("it serves"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shown_models, "CHECKOUT", tmp_path)
    (tmp_path / "labels").write_text("a\nb\nc\n")
    for arguments, said in (
        ([], "no weights are given, and runs/quickstart has none. Run `make quickstart` first"),
        ([str(folder / "encoder.safetensors")], "an encoder alone"),
        ([str(folder / "mae.safetensors"), "--labels", "labels"], "none of the weights has a head of classes"),
        ([str(tmp_path / "nowhere.pth")], "nowhere.pth"),
        ([str(folder / "mae.safetensors"), "--longest", "0"], "--longest 0 must be more than 0 minutes"),
        ([str(folder / "mae.safetensors"), "--port", "70000"], "--port 70000 must be from 0 to 65535"),
        ([str(folder / "mae.safetensors"), "--host", "203.0.113.1"], "--host 203.0.113.1 --port 7860 cannot be listened on"),
    ):
        assert demo.main(arguments) == 2
        assert said in (told := capsys.readouterr().err) and told.count("\n") == 1, told
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert demo.main([]) == 2
    assert "gradio, which the page is made with, is not installed" in (told := capsys.readouterr().err) and "make demo" in told


def test_the_quickstart_shows_its_own_models(tmp_path: Path, monkeypatch: Any, folder: Path) -> None:
    run = tmp_path / "runs" / "quickstart"
    for part in (run, run / "fine-tuned"):
        part.mkdir(parents=True, exist_ok=True)
        (part / "config.json").write_text(json.dumps({"optim": {}, "mask": "random", "views": {"mask_ratio": 0.75}}))
    monkeypatch.setattr(shown_models, "CHECKOUT", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="make quickstart"):
        quickstart_weights()
    (run / "model.safetensors").touch()
    assert quickstart_weights() == ["runs/quickstart"]  # of videos without labels
    (run / "fine-tuned" / "model.safetensors").touch()
    assert quickstart_weights() == ["runs/quickstart/fine-tuned", "runs/quickstart"]
    assert shown_models.hidden_in_training(run) == ("random", 0.75)
    assert shown_models.hidden_in_training(folder / "mae.safetensors") == ("tube", 0.9)
    for name in ("bob/1.mp4", "bob/0.mp4", "fall/3.mp4"):
        (run / "videos" / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "videos" / "val" / name).touch()
    clips = shown_models.clips_of_quickstart(quickstart_weights())
    assert [clip.relative_to(run.relative_to(tmp_path) / "videos" / "val").as_posix() for clip in clips] == [
        "bob/0.mp4",
        "fall/3.mp4",
    ]


def test_a_prediction_is_that_of_the_command(shown: ShownModels, folder: Path, capsys: Any, tmp_path: Path) -> None:
    (model,), file, done = shown.predictors.values(), folder / "<i>x.mp4", []
    said = prediction(model, file, opened(file, 60), Asked(), lambda *many: done.append(many))
    assert done[-1] == (6, 6)
    command = [str(file), "--weights", model.place, "--out", str(tmp_path), "--json"]
    assert predict.main(command) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    assert re.findall(r'class="value">([\d.]+)%', said) == [f"{100 * each['probability']:.1f}" for each in classes]
    assert "<b>" not in said and "&lt;b&gt;run&lt;/b&gt;" in said and "a &amp; b" in said
    assert "<i>x.mp4" not in said and "&lt;i&gt;x.mp4: 6.3 s, 190 frames of 128 × 64; 6 windows of 32 frames" in said
    assert said.count("<svg") == 3 and said.count("<rect") == 18 and "--stride 4" in said
    one = prediction(model, file, opened(file, 60), Asked(stride=24))
    assert "one window of every 24th frame" in one and "<svg" not in one


def test_of_a_long_video_windows_are_spread(shown: ShownModels, folder: Path, monkeypatch: Any) -> None:
    (model,), file = shown.predictors.values(), folder / "<i>x.mp4"
    monkeypatch.setattr(answers, "MOST_WINDOWS", 3)
    said = prediction(model, file, opened(file, 60), Asked())
    assert "3 windows of\n32 frames that are spread over it" in said and "--stride 4 --views 3x1" in said


def test_a_reconstruction_and_its_errors(shown: ShownModels, folder: Path) -> None:
    (model,), file = shown.reconstructors.values(), folder / "<i>x.mp4"
    said = reconstruction(model, file, opened(file, 60), Asked(mask_ratio=0.75))
    assert said.count("<figure") == 4 and "75% hidden (tube)" in said and "no better than the patch means" in said
    errors = [float(each) for each in re.findall(r'class="value">([\d.]+)<', said)]
    assert 0.1 < errors[1] < errors[0]  # the model is not trained
    starts = [
        float(re.findall(r"--start ([\d.]+)", reconstruction(model, file, opened(file, 60), Asked(moment=moment)))[0])
        for moment in (0, 1)
    ]
    assert starts == [0, pytest.approx((190 - 29) / 30, abs=1e-3)]  # the last window ends with the video


@pytest.mark.parametrize(("rate", "stride"), [(7.5, 1), (15, 2), (24, 4), (25, 4), (30, 4), (60, 8), (120, 16)])
def test_frames_lie_as_far_apart_as_the_papers(rate: float, stride: int, folder: Path) -> None:
    video = read_video(folder / "<i>x.mp4")
    faster = type(video)(video.clip, video.data, np.arange(190) / rate, 190 / rate, 1)
    assert usual_stride(faster) == stride


def test_a_video_that_cannot_be_shown_is_a_sentence(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    good = (folder / "<i>x.mp4").read_bytes()
    for name, data in (("no video.mp4", b"hello"), ("empty.mp4", b""), ("cut.mp4", good[: len(good) // 2]), ("fine.mp4", good)):
        (tmp_path / name).write_bytes(data)
    for name, why in (
        ("no video.mp4", "FFmpeg finds no video in it"),
        ("empty.mp4", "The file is empty"),
        ("cut.mp4", "cut-off download"),
        ("gone.mp4", "No such file"),
        ("fine.mp4", "The video is 0:06 long; this page takes up to 0.05 minutes (--longest)"),
    ):
        said, good_one = told(tmp_path / name, lambda name=name: str(opened(tmp_path / name, 3)))  # type: ignore[misc]
        assert not good_one and name in said and why in said and "Traceback" not in said, said
    monkeypatch.setattr(answers, "LARGEST", 1000)
    assert "this page takes up to 0.0" in told(tmp_path / "fine.mp4", lambda: str(opened(tmp_path / "fine.mp4", 60)))[0]
    assert capsys.readouterr().err == ""
    said, good_one = told(Path("x"), lambda: str(1 / 0))
    assert "its terminal says what" in said and not good_one and "ZeroDivisionError" in capsys.readouterr().err
    assert "&lt;script&gt;" in refusal("<script>", "<script>") and "<script>" not in refusal("<script>", "<script>")
