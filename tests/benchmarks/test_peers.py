import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.parts.peers import MEAN, READERS, STD, PeerWork, VideoFiles, endless, missing_reader, multi_scale_crop
from pipeline.sampling import SamplingRecipe

RECIPE = SamplingRecipe(views_per_step=2, views_per_clip=2, num_frames=4, input_size=32, patch_size=8)


@pytest.fixture(scope="session")
def files(dataset: Path) -> list[Path]:
    return sorted(path for path in (dataset.parent / "videos").rglob("*") if path.suffix == ".mp4")[:4]


def test_crops_are_those_of_the_paper() -> None:
    """Sides of 1, 7/8, 3/4 and 0.66 of the shorter one, at most one step apart, at 13 places, never outside."""
    crops = {multi_scale_crop(340, 256, 224) for _ in range(5000)}
    sides = {(w, h) for _, _, w, h in crops}
    assert {w for w, _ in sides} == {256, 224, 192, 168}
    assert len(sides) == 10
    assert (256, 192) not in sides
    assert len(crops) > 100
    assert all(min(x, y) >= 0 and x + w <= 340 and y + h <= 256 for x, y, w, h in crops)
    assert len({(x, y) for x, y, w, h in crops if (w, h) == (168, 168)}) == 13


@pytest.mark.parametrize("reader", READERS)
def test_a_file_becomes_float_views_and_masks(files: list[Path], reader: str) -> None:
    if reason := missing_reader(reader):
        pytest.skip(reason)
    views, masks = VideoFiles(files, reader, RECIPE)[0]
    assert len(views) == len(masks) == 2
    assert not torch.equal(views[0], views[1])  # each has a crop of its own
    for view, mask in zip(views, masks, strict=True):
        assert (view.dtype, view.shape) == (torch.float32, (3, 4, 32, 32))
        pixels = view * STD + MEAN
        assert pixels.min() >= -1e-3
        assert pixels.max() <= 1 + 1e-3
        assert pixels.std() > 0.02
        tubes = mask.view(2, 16)
        assert torch.equal(tubes[0], tubes[1])
        assert tubes[0].sum() == int(0.9 * 16)


def test_readers_give_the_frames_that_were_asked_for(files: list[Path]) -> None:
    if reason := missing_reader("decord2"):
        pytest.skip(reason)
    for file in files:
        for wanted in ([0, 4, 8], [17, 21, 25, 25], [30]):
            lengths: list[int] = []

            def choose(length: int, wanted: list[int] = wanted, lengths: list[int] = lengths) -> list[int]:
                lengths.append(length)
                return wanted

            one, other = (READERS[name](str(file), choose) for name in READERS)
            assert lengths[0] == lengths[1]
            assert one.shape == other.shape
            assert np.abs(one.astype(int) - other).mean() < 2


def test_short_videos_repeat_their_last_frame() -> None:
    choose = VideoFiles([], "PyAV", RECIPE).choose_frames
    assert choose(6) == [0, 4, 5, 5]
    assert {tuple(choose(14)) for _ in range(50)} == {(0, 4, 8, 12), (1, 5, 9, 13)}


def test_a_file_that_cannot_be_read_is_replaced(files: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    random.seed(0)
    views, _ = VideoFiles([broken, files[0]], "PyAV", RECIPE)[0]
    assert len(views) == 2
    with pytest.raises(RuntimeError, match="ten videos in a row"):
        VideoFiles([broken], "PyAV", RECIPE)[0]


def test_workers_deliver_without_end(files: list[Path], tmp_path: Path) -> None:
    """More clips than there are files: an epoch's end is no end."""
    copy = tmp_path / "one.mp4"
    shutil.copy(files[0], copy)
    peer = PeerWork(VideoFiles([copy], "PyAV", RECIPE), torch.device("cpu"))
    peer.prepare()
    assert peer.work() == 2 * peer.workers
    peer.close()
    shuffled = [index for index, _ in zip(endless(5), range(15), strict=False)]
    assert [sorted(shuffled[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
