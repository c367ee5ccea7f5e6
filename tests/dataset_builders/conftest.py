"""A folder of small real videos, and the dataset that they make."""

from pathlib import Path

import pytest
from small_videos import make_video
from some_unreadable import halfway, links, mount, real  # noqa: F401

from dataset_builders import build_unlabeled_hybrid


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


@pytest.fixture(scope="session")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `videos` give, four a shard, if nothing comes between; to be copied before it is changed."""
    dataset: Path = tmp_path_factory.mktemp("undisturbed") / "dataset"
    arguments = ["--folder", f"v={videos}", "--out", str(dataset), "--clips-per-shard", "4", "--workers", "2"]
    assert build_unlabeled_hybrid.main(arguments) == 0
    return dataset
