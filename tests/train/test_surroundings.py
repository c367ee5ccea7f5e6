"""A run where something is missing that most machines have: the same losses, and its metrics."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch

from pipeline.storage.files import cache_folder
from tests.train.trainers import losses, run

STEPS = ("--steps", "3")
CLONE_NEWNET = 0x40000000
NOBODY = 54321  # a user without an entry in passwd


@pytest.fixture(scope="module")
def expected(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    out = tmp_path_factory.mktemp("plain") / "run"
    run(dataset, out, *STEPS)
    return losses(out)


def without_streams(rank: int) -> None:
    """As after `>&- 2>&-`."""
    sys.stdout = sys.stderr = None  # type: ignore[assignment]
    os.close(1)
    os.close(2)


def in_ascii(rank: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


def without_network(rank: int) -> None:
    """No interface at all: not even the loopback is up in a network of one's own."""
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def test_closed_streams_cost_no_metrics(dataset: Path, expected: dict[int, float], tmp_path: Path) -> None:
    assert run(dataset, tmp_path / "run", *STEPS, fault=without_streams) == ""
    assert losses(tmp_path / "run") == expected


@pytest.mark.slow
def test_output_in_ascii_does_not_end_a_run(dataset: Path, expected: dict[int, float], tmp_path: Path) -> None:
    assert "step 3/3 \\xb7 loss" in run(dataset, tmp_path / "run", *STEPS, fault=in_ascii)
    assert losses(tmp_path / "run") == expected


@pytest.mark.skipif(os.getuid() != 0, reason="only root may leave the network")
@pytest.mark.skipif(torch.__version__ < "2.15", reason="its stand-in for gloo exchanges nothing, which is an error with words")
def test_one_process_needs_no_network(dataset: Path, expected: dict[int, float], tmp_path: Path) -> None:
    run(dataset, tmp_path / "run", *STEPS, fault=without_network)
    assert losses(tmp_path / "run") == expected


def in_a_child(function: object) -> int:
    """What a fork of this process, as another user without a home, ends with."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ.pop("HOME", None)
            os.environ.pop("XDG_CACHE_HOME", None)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = function()  # type: ignore[operator]
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_who_has_no_home_keeps_files_of_their_own_among_the_temporary_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    import tempfile

    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    def use() -> int:
        folder = cache_folder()
        assert folder == cache_folder() == place / f"tubecell-{NOBODY}" and folder.stat().st_mode & 0o777 == 0o700
        os.environ["HOME"] = "/proc/nowhere"
        return 0 if cache_folder() == folder else 2

    try:
        assert in_a_child(use) == 0
        os.chown(place / f"tubecell-{NOBODY}", 0, 0)  # somebody else's: what is compiled there must not be loaded

        def refuse() -> int:
            with pytest.raises(PermissionError, match="not this user's alone"):
                cache_folder()
            return 0

        assert in_a_child(refuse) == 0
    finally:
        shutil.rmtree(place)
