"""Fixtures: real material when it lies beside the checkout, generated clips otherwise, and a small dataset built from them."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.pipeline.s3_server import s3, s3_session  # noqa: F401  one server for all tests of a process


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material: TUBECELL_SHARED, or ../shared beside the checkout."""
    path = Path(os.environ.get("TUBECELL_SHARED", ROOT.parent / "shared"))
    if not (path / "clips").is_dir():
        pytest.skip("needs the reference material beside the checkout (or TUBECELL_SHARED)")
    return path


@pytest.fixture(autouse=True)
def _same_draws_each_time(request: pytest.FixtureRequest) -> None:
    """What draws from a global generator (the peers of the benchmarks, tensors of tests) draws the same in every run, in any
    order of tests."""
    random.seed(request.node.nodeid)
    torch.manual_seed(random.getrandbits(63))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 generated clips, built by the real builder."""
    from dataset_builders import build_unlabeled_hybrid, generate_clips

    folder = tmp_path_factory.mktemp("clips")
    assert generate_clips.main(["--out", str(folder / "videos"), "--clips", "12"]) == 0
    arguments = ["--folder", f"generated={folder / 'videos'}", "--out", str(folder / "dataset"), "--clips-per-shard", "5"]
    assert build_unlabeled_hybrid.main(arguments) == 0
    return folder / "dataset"


@pytest.fixture(scope="session")
def labelled(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 12 clips to train on and 7 others of split val, labelled with what they show."""
    from dataset_builders import build_dataset, generate_clips

    folder, train = tmp_path_factory.mktemp("labelled"), dataset.parent / "videos"
    assert generate_clips.main(["--out", str(folder / "val"), "--clips", "7", "--seed", "1"]) == 0
    sources = ["--folder", f"own={train}", "--folder", f"own:val={folder / 'val'}"]
    assert build_dataset.main([*sources, "--labels-from-folder", "--out", str(folder / "dataset")]) == 0
    return folder / "dataset"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """OpenMP threads that wait for each other take ten times as long where another program has a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
