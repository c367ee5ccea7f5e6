"""Nobody hears what a build says: it goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_videos import tree

from dataset_builders import build_unlabeled_hybrid

ROOT = Path(__file__).resolve().parents[2]
SAYS = """
import os, sys
from dataset_builders.console import heard_or_not
@heard_or_not()
def says():
    taken = open(__file__).fileno()
    for stream in (sys.stdout, sys.stderr):
        print("a word" * 10_000, file=stream)
    os.write(int(sys.argv[1]), b"%d" % taken)
    return 0
sys.exit(says())
"""


@pytest.mark.parametrize("how", ["head", "full", "closed"])
def test_saying_never_fails(how: str, tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(SAYS)
    reading, writing = os.pipe()
    gone, dead = os.pipe()
    os.close(gone)
    with open("/dev/full", "w") as full:
        out = full.fileno() if how == "full" else dead
        command = [sys.executable, str(tmp_path / "says.py"), str(writing)]
        if how == "closed":
            command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
        done = subprocess.run(command, stdout=out, stderr=out, pass_fds=(writing,), env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert int(answer.read()) > 2
    os.close(dead)
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [">&- 2>&- <&-", "2>&1 | true"])
def test_a_build_that_nobody_hears(how: str, videos: Path, undisturbed: Path, tmp_path: Path) -> None:
    arguments = f"--folder v={videos} --clips-per-shard 4 --out {tmp_path / 'dataset'}"
    subprocess.run(f"{sys.executable} {build_unlabeled_hybrid.__file__} {arguments} {how}", shell=True, check=True)
    assert tree(tmp_path / "dataset") == tree(undisturbed)
