from pathlib import Path

import pytest

from tests.train.trainers import run


@pytest.fixture(scope="session")
def straight(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps without a break. Tests that go on with it take a copy."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(dataset, out, "--steps", "20")
    return out
