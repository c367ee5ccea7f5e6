"""A folder of small real videos."""

from pathlib import Path

import pytest
from small_videos import make_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve small videos of three kinds and two files that are none."""
    folder: Path = tmp_path_factory.mktemp("videos")
    for number in range(6):
        make_video(folder / f"{number}.mp4", frames=17 + number)
        (folder / "below").mkdir(exist_ok=True)
        make_video(folder / "below" / f"{number}.mkv", "-c:v", "mpeg4", "-bf", "2", frames=17 + number)
    (folder / "notes.txt").write_text("no video")
    (folder / "empty.mp4").touch()
    return folder
