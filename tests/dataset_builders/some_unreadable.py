"""A folder of links to small videos on a mount that may be away, and builds of it that are quick."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_videos import make_video

from dataset_builders import build_unlabeled_hybrid
from dataset_builders.building import encode, finish
from dataset_builders.executors import Failure

NAMES = [f"{number:02d}.mp4" for number in range(10)]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small videos."""
    folder: Path = tmp_path_factory.mktemp("real")
    for number, name in enumerate(NAMES):
        make_video(folder / name, "-c:v", "mpeg4", size="32x32", frames=17 + number)
    return folder


@pytest.fixture
def links(real: Path, tmp_path: Path) -> Path:
    """Links to them, where a mount may be away."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in NAMES:
        (folder / name).symlink_to(tmp_path / "mount" / name)
    return folder


@pytest.fixture
def mount(real: Path, tmp_path: Path) -> Callable[..., None]:
    """To call with the names that can be read from now on."""

    def change(*names: str) -> None:
        place = tmp_path / "mount"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name in names:
            os.link(real / name, place / name)

    return change


@pytest.fixture
def halfway(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, tuple[int, Failure]]:
    """Requests are worked on in this process, one after the other (the pool has tests of its own), and there is no report.
    To be filled: path -> (after how many results its worker does not come back, and what is said of that)."""
    faults: dict[bytes, tuple[int, Failure]] = {}

    def work(function, requests, *limits) -> Iterator[list | None]:
        for request in requests:
            results = list(function(request))
            if request.path in faults:
                number, failure = faults[request.path]
                results = [*results[:number], failure]
            yield results
            yield None

    monkeypatch.setattr(encode, "map_ordered", work)
    monkeypatch.setattr(finish, "write_report", lambda dataset: dataset / "report.html")
    return faults


def build(out: Path | str, folder: Path, *more: object) -> int:
    arguments = ["--folder", f"v={folder}", "--out", str(out), "--preset", "copy", "--clips-per-shard", "4"]
    return build_unlabeled_hybrid.main([*arguments, *map(str, more)])
