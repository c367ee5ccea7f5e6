from fractions import Fraction
from pathlib import Path

import av
import pytest

from dataset_builders import generate_clips
from dataset_builders.media.moving_shapes import MOTIONS


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_clips_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert generate_clips.main(["--out", str(tmp_path / name), "--clips", "8"]) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert sorted(content(tmp_path / "a")) == sorted(f"{motion}/0000-0.mp4" for motion in list(MOTIONS)[:8])
    with av.open(tmp_path / "a" / "sway" / "0000-0.mp4") as container:
        frames = list(container.decode(video=0))
    assert (len(frames), frames[0].width, frames[0].height) == (90, 160, 128)
    assert (frames[0].colorspace, frames[0].color_range) == (5, 1)  # BT.601, limited
    (tmp_path / "a" / "fall" / "0000-0.mp4").unlink()
    (tmp_path / "a" / "fall" / ".0000-0.mp4.4194305.tmp").write_bytes(b"half of one, left by a killed process")
    capsys.readouterr()
    assert generate_clips.main(["--out", str(tmp_path / "a"), "--clips", "8"]) == 0
    assert "1 of them made now" in capsys.readouterr().out
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_other_sizes_lengths_and_motions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", "64x48", "--frames", "12", "--fps", "7.5", "--motions", "12", "--clips", "12"]
    assert generate_clips.main(["--out", str(tmp_path), *size]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(MOTIONS)
    with av.open(tmp_path / "turn-back" / "0000-0.mp4") as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].average_rate == Fraction(15, 2)
    assert (len(frames), frames[0].width, frames[0].height) == (12, 64, 48)
    assert generate_clips.main(["--out", str(tmp_path), *size]) == 0
    assert generate_clips.main(["--out", str(tmp_path), *size, "--fps", "30"]) == 2
    assert "of 64x48, 12 frames at 7.5/s, not of 64x48, 12 frames at 30/s; give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--motions", "13"], "--motions 13: it must be 1 to 12"),
        (["--size", "64"], "--size 64: WIDTHxHEIGHT in pixels is needed, each even and from 32 to 1024"),
        (["--size", "64x33"], "--size 64x33: WIDTHxHEIGHT"),
        (["--frames", "0"], "--frames 0: it must be 1 to 10000"),
        (["--fps", "1/0"], "--fps 1/0: it must be 1 to 240 frames a second"),
        (["--clips", "0"], "--clips 0 --seed 0: at least 1 and 0 are needed"),
    ],
)
def test_impossible_clips_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert generate_clips.main(["--out", str(tmp_path / "new"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
