import json
from pathlib import Path

import pytest

from benchmarks import build_rate
from dataset_builders import generate_clips


def test_the_builder_beside_ffmpeg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, file = tmp_path / "videos", tmp_path / "rate.json"
    assert generate_clips.main(["--out", str(videos), "--clips", "2"]) == 0
    assert build_rate.main(["--videos", str(videos), "--rounds", "1", "--json", str(file)]) == 0
    results = {result["name"]: result for result in json.loads(file.read_text())}
    assert {"decode_check", "ffmpeg/1", "builder/1/vs_ffmpeg", "builder/1/vs_ffmpeg_without_check"} <= set(results)
    assert 0 < results["builder/1/vs_ffmpeg"]["ratio"] < results["builder/1/vs_ffmpeg_without_check"]["ratio"]
    assert "2 clips of 2 files" in capsys.readouterr().out


def test_a_folder_without_videos_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    assert build_rate.main(["--videos", str(tmp_path)]) == 2
    assert "none of the files" in capsys.readouterr().err
