from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initialise
from model.pixels import pasted, patches_of, pixel_targets
from model.videomae import VideoMAE
from model.weights import metadata_of
from pipeline.decoding.video_file import read_video
from tests.pipeline.encoding import encode, numbered_frame
from train import reconstruct
from train.demos.reconstruction import window
from train.pictures import paint

TINY = MODELS["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and a video of 100 frames."""
    folder = tmp_path_factory.mktemp("reconstruct")
    model = VideoMAE(TINY)
    initialise(model, seed=0)
    save_file(model.state_dict(), folder / "mae.safetensors", metadata=metadata_of(TINY))
    features = VideoMAE(TINY, target_values=96)
    save_file(features.state_dict(), folder / "features.safetensors", metadata=metadata_of(TINY))
    save_file(VideoClassifier(TINY, 3).state_dict(), folder / "classifier.safetensors", metadata=metadata_of(TINY))
    (folder / "x.mp4").write_bytes(encode([numbered_frame(number) for number in range(100)], gop=20))
    return folder


def test_a_perfect_prediction_gives_the_input_and_none_the_means() -> None:
    views = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8)
    patches = patches_of(views, 8, 2)
    hidden = torch.stack([torch.randperm(256)[:230] for _ in range(2)])
    targets = pixel_targets(patches.gather(1, hidden[..., None].expand(-1, -1, 384)), torch.float32)
    filled, seen = pasted(patches, hidden, targets, 0.5)
    assert torch.allclose(filled, patches / 255, atol=1e-5)
    assert ((seen == 0.5).all(-1).sum(1) == 230).all()
    means, _ = pasted(patches, hidden, torch.zeros_like(targets))
    where = means.unflatten(-1, (-1, 3)).std(2).amax(-1) < 1e-6
    assert (where.sum(1) == 230).all() and torch.allclose(means.mean(-1), patches.float().mean(-1) / 255, atol=1e-5)


def test_the_decoder_is_asked_for_what_is_hidden() -> None:
    """V1's way; in parts, it is the same where the parts are all."""
    model = VideoMAE(TINY)
    initialise(model, seed=0)
    views = torch.randint(0, 256, (1, 8, 64, 64, 3), dtype=torch.uint8)
    order = torch.randperm(256)
    visible, hidden = (each.sort().values[None] for each in order.split([26, 230]))
    one, other = paint(model, views, visible, hidden), paint(model, views, visible, hidden, [hidden[0], order])
    assert np.array_equal(one.seen, other.seen) and not np.array_equal(one.pasted, other.pasted)
    both = paint(model, views, visible, hidden, [hidden[0], visible[0]])
    assert np.abs(both.pasted.astype(int) - one.pasted).max() <= 1 and both.error == pytest.approx(one.error)


def test_picture_and_film(folder: Path, tmp_path: Path, capsys: Any) -> None:
    command = [str(folder / "x.mp4"), "--weights", str(folder / "mae.safetensors"), "--out", str(tmp_path / "new" / "y")]
    assert reconstruct.main([*command, "--start", "1", "--mask", "random", "--mask-ratio", "0.75"]) == 0
    said = capsys.readouterr().out
    errors = [float(line.removeprefix("squared error").split()[0]) for line in said.splitlines()[1:3]]
    assert 0.3 < errors[1] < errors[0], said  # 127 of 128 of each patch that is not flat
    with Image.open(tmp_path / "new" / "y.png") as picture:
        assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 10
    with av.open(tmp_path / "new" / "y.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.frames, float(stream.average_rate or 0)) == ("h264", 8, 7.5)
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]).astype(int)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["y.mp4", "y.png"]
    panels = [shown[:, 30:286, i * 264 : i * 264 + 256].reshape(8, 64, 4, 64, 4, 3).mean((2, 4)) for i in range(4)]
    video = read_video(folder / "x.mp4")
    views = video.views(30 + 4 * np.arange(8)[None], video.boxes((64, 64), 1), (64, 64))
    assert np.abs(panels[0] - views[0]).mean() < 6
    grey = (np.abs(panels[1] - 128) < 12).all(-1)
    assert 0.7 < grey.mean() < 0.9 and np.abs(panels[3] - panels[0])[~grey].mean() < 12


def test_what_cannot_be_reconstructed(folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty.mp4").touch()
    for video, options, status, told in (
        ("x.mp4", ["--weights", str(folder / "classifier.safetensors")], 2, "is a classifier, without a decoder"),
        ("x.mp4", ["--weights", str(folder / "features.safetensors")], 2, "predicts 96 values of a patch, which are no pixels"),
        ("x.mp4", ["--start", "7"], 2, "--start 7 is not in the video, which has 0 to 3.33 seconds"),
        ("x.mp4", ["--mask-ratio", "1"], 2, "must hide some of the 64 tubes"),
        ("x.mp4", ["--out", str(folder / "x.mp4")], 2, "x.mp4 would write over the video itself"),
        ("x.mp4", ["--stride", "0"], 2, "--stride 0 must be at least 1"),
        (str(tmp_path / "empty.mp4"), [], 1, "empty.mp4: the file is empty"),
    ):
        weights = [] if "--weights" in options else ["--weights", str(folder / "mae.safetensors")]
        assert reconstruct.main([str(folder / video), "--out", str(tmp_path / "y"), *weights, *options]) == status
        assert told in (said := capsys.readouterr().err) and said.count("\n") == 1, said
    assert [file.name for file in tmp_path.iterdir()] == ["empty.mp4"]


@pytest.mark.parametrize(
    ("length", "start", "frames"), [(5, None, [0, 4, 4, 4]), (100, 3.0, [90, 94, 98, 98]), (100, 0.0, [0, 4, 8, 12])]
)
def test_a_window_at_the_end_repeats_its_last_frame(
    length: int, start: float | None, frames: list[int], tmp_path: Path
) -> None:
    (tmp_path / "x.mp4").write_bytes(encode([numbered_frame(number) for number in range(length)]))
    assert window(read_video(tmp_path / "x.mp4"), 4, 4, start).tolist() == frames
