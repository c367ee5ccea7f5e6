import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import presets
from benchmarks.parts.original_files import chosen_videos, shuffled_files
from benchmarks.parts.preset_figures import Figures, results
from benchmarks.presets import LONGEST, likeness, reference
from dataset_builders.media.presets import PRESETS, EncodeOptions
from dataset_builders.media.transcode import Wanted, transcode

FIGURES = ["bytes", "bytes_per_second", "encode", "decode_sample", "decode_whole", "psnr", "ssim"]
FIGURES += ["frames_per_sample/stride4", "frames_per_sample/stride2"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small videos and two files that are none."""
    from dataset_builders.generate_clips import main

    folder: Path = tmp_path_factory.mktemp("videos")
    assert main(["--out", str(folder), "--clips", "2"]) == 0
    (folder / "notes.txt").write_text("no video")
    (folder / "empty.mp4").touch()
    return folder


def test_figures_table_and_picture(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [preset for preset in PRESETS if preset != "vp9"]  # is the slowest
    monkeypatch.setattr(presets, "PRESETS", chosen)
    file, out = tmp_path / "out.json", tmp_path / "pictures"
    assert presets.main(["--videos", str(videos), "--out", str(out), "--json", str(file)]) == 0
    figures = {entry["name"]: entry for entry in json.loads(file.read_text())}
    kinds = [f"{preset}/{side}" for preset in chosen if preset != "copy" for side in (256, 320)]
    assert set(figures) == {
        *(f"presets/{kind}/{name}" for kind in kinds for name in FIGURES),
        *(f"presets/copy/{name}" for name in FIGURES if name not in ("encode", "psnr", "ssim")),
    }
    assert all(math.isfinite(entry["value"]) and entry["value"] > 0 for entry in figures.values())
    sizes = sum(path.stat().st_size for path in videos.rglob("*.mp4"))
    assert figures["presets/copy/bytes"]["value"] == sizes
    for kind in kinds:
        assert figures[f"presets/{kind}/bytes"]["baseline"] == sizes
        assert figures[f"presets/{kind}/bytes_per_second"]["value"] == figures[f"presets/{kind}/bytes"]["value"] / 6.0
        assert 30 < figures[f"presets/{kind}/psnr"]["value"] < 60
        assert 0.9 < figures[f"presets/{kind}/ssim"]["value"] < 1
        for stride in (2, 4):
            decoded = figures[f"presets/{kind}/frames_per_sample/stride{stride}"]["value"]
            assert decoded == 16 if "mjpeg" in kind else 16 < decoded <= 90  # all of a clip
    fast, plain = (figures[f"presets/h264-{name}/256/frames_per_sample/stride4"]["value"] for name in ("fast", "plain"))
    assert fast < 0.6 * plain
    assert figures["presets/mjpeg/256/bytes"]["value"] > 2 * figures["presets/h264-fast/256/bytes"]["value"]
    printed = capsys.readouterr().out
    assert "2 clips, 6 s, 180 frames" in printed
    assert "passed over: 2 not_video" in printed
    with Image.open(out / "presets.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50  # not an empty sheet


def test_likeness_tells_copies_from_others(videos: Path) -> None:
    ((path, info), (other, other_info)), _ = chosen_videos(shuffled_files(videos), 2, longest=LONGEST)
    (piece,) = transcode(path, info, EncodeOptions(short_side=64), Wanted())
    with reference(path, info, 64) as source:
        psnr, ssim = likeness(piece.data, source)
        assert psnr > 30 and ssim > 0.9
        source.seek(0)
        assert likeness(source.read(), source) == (100.0, 1.0)
        (wrong,) = transcode(other, other_info, EncodeOptions(short_side=64), Wanted())
        assert likeness(wrong.data, source)[0] < 20


def test_the_same_videos_are_chosen_again(videos: Path) -> None:
    assert shuffled_files(videos) == shuffled_files(videos)
    assert len(chosen_videos(shuffled_files(videos), 9, longest=LONGEST)[0]) == 2


def test_what_cannot_be_measured(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    shutil.copy(videos / "notes.txt", tmp_path / "none")
    out = ["--out", str(tmp_path / "out")]
    for arguments, said in (
        (["--videos", str(tmp_path / "nowhere")], "there is no such folder"),
        (["--videos", str(tmp_path / "none")], "none of the 1 files can be taken; passed over: 1 not_video"),
        (["--videos", str(videos), "--clips", "0"], "--clips 0: it must be at least 1"),
        (["--videos", str(videos), "--json", str(tmp_path)], "is a folder"),
    ):
        assert presets.main([*arguments, *out]) == 2
        assert said in capsys.readouterr().err


def test_a_ratio_is_to_copy() -> None:
    of_both = {"clips": 1, "seconds": 10.0, "frames": 300}
    copied = Figures("copy", None, **of_both, bytes=1000, sample_time=1.0, sample_frames=np.array([800, 400]), decode_time=1.0)
    frames = np.array([240, 200])
    made = Figures("vp9", 256, **of_both, bytes=500, sample_time=0.5, sample_frames=frames, decode_time=0.5, psnr=[40.0])
    ratios = {result.name: result.ratio for result in results([copied, made])}
    assert ratios["presets/vp9/256/bytes"] == 0.5
    assert ratios["presets/vp9/256/decode_sample"] == 2.0
    assert ratios["presets/vp9/256/frames_per_sample/stride4"] == 0.3
    assert ratios["presets/vp9/256/psnr"] is None
    assert ratios["presets/copy/bytes"] is None
