from pathlib import Path

import av
import numpy as np
import pytest

from dataset_builders import generate_clips
from dataset_builders.generate_clips import MOTIONS, render


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_clips_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert generate_clips.main(["--out", str(tmp_path / name), "--clips", "8"]) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert sorted(content(tmp_path / "a")) == sorted(f"{motion}/0000-0.mp4" for motion in MOTIONS)
    with av.open(tmp_path / "a" / "orbit" / "0000-0.mp4") as container:
        frames = list(container.decode(video=0))
    assert (len(frames), frames[0].width, frames[0].height) == (90, 160, 128)
    (tmp_path / "a" / "fall" / "0000-0.mp4").unlink()
    (tmp_path / "a" / "fall" / ".0000-0.mp4.4194305.tmp").write_bytes(b"half of one, left by a killed process")
    capsys.readouterr()
    assert generate_clips.main(["--out", str(tmp_path / "a"), "--clips", "8"]) == 0
    assert "1 of them made now" in capsys.readouterr().out
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("motion", MOTIONS)
def test_shapes_move_as_the_folder_says(motion: str) -> None:
    u = np.array([0.3, 0.5, 0.5, 0.5])
    before, after = MOTIONS[motion](0.10, u), MOTIONS[motion](0.12, u)
    moved = (np.sign(round(after.x - before.x, 6)), np.sign(round(after.y - before.y, 6)))
    expected = {
        "slide-right": (1, 0),
        "slide-left": (-1, 0),
        "fall": (0, 1),
        "rise": (0, -1),
        "rotate": (0, 0),
        "zoom-in": (0, 0),
    }
    assert moved == expected.get(motion, moved)
    assert (after.radius > before.radius) == (motion == "zoom-in")
    assert (after.angle > before.angle) == (motion == "rotate")
    assert moved != (0, 0) or motion in ("rotate", "zoom-in")


def test_pictures_have_contrast_and_motion() -> None:
    frames = render("orbit", (0, 7)).astype(float)
    assert frames.std() > 20
    assert np.abs(np.diff(frames, axis=0)).mean() > 0.5
    assert not np.array_equal(render("orbit", (0, 7)), render("orbit", (0, 8)))
