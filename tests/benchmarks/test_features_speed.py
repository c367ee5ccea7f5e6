import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import features
from benchmarks.parts.generated_dataset import draw_video
from benchmarks.parts.peers import missing_reader
from model.config import MODELS
from model.video_encoder import VideoEncoder

pytestmark = pytest.mark.skipif(bool(missing_reader("decord2")), reason="decord2 is not installed")


def test_the_official_way_gives_the_same_features(tmp_path: Path) -> None:
    video = draw_video(features.PICTURE, "-c:v libx264 -g 12 -frames:v 33", tmp_path / "video.mp4")
    encoder, cpu = VideoEncoder(MODELS["tiny"], norm=False, fc_norm=True).eval(), torch.device("cpu")
    ours = features.WholeVideo(encoder, video, cpu, "fp32").features()
    one = features.OneWindow(encoder, video, cpu)
    assert np.allclose(ours, [one.features(start) for start in range(0, 18, 4)], atol=1e-5) and len(ours) == 5
    assert one.work() == 1


@pytest.mark.slow
def test_it_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny", "--frames", "24", "--device", "cpu", "--rounds", "1", "--seconds", "0.05"]
    assert features.main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    found = {entry["name"]: entry for entry in json.loads((tmp_path / "out.json").read_text())}
    for name in ("features/vs_one_clip", "features/vs_one_clip/fp32"):
        assert found[name]["unit"] == "windows/s" and found[name]["ratio"] > 0
    assert "one window at a time, fp32" in capsys.readouterr().out
    assert features.main(["--model", "vit-x"]) == 2 and "there is no model 'vit-x'" in capsys.readouterr().err
