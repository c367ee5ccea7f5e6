"""Locks where there are none: a library between Python and the system says what such file systems say."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.file_lock import ENOTSUPP, lock

ROOT = Path(__file__).resolve().parents[3]
SOURCE = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
ERRORS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, ENOTSUPP]
# what holds a lock, one after the other: a build and its plan, the cache, and what torch would lock
HOLDERS = """
import errno, fcntl, os, sys
from pathlib import Path
import pyarrow as pa
from dataset_builders.building.jobs import BuildState, Hold
from dataset_builders.plan import Plan, assemble
from pipeline.storage.clip_cache import ClipCache
from pipeline.storage.file_lock import lock
out = Path(sys.argv[1])
for number in map(int, sys.argv[2:]):
    os.environ["FLOCK_ERRNO"] = str(number)
    os.putenv("FLOCK_ERRNO", str(number))
    folder = out / str(number)
    with BuildState(folder, Hold.SHARE), BuildState(folder):
        pass
    cache = ClipCache(folder / "cache", 1 << 20)
    assert cache.put("ab" * 16, b"clip") and cache.get("ab" * 16) == b"clip"
os.putenv("FLOCK_ERRNO", str(errno.EIO))
try:
    lock((out / "file").open("w"))
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process on a file system without locks."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("library") / "noflock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-xc", "-", "-o", library], input=SOURCE, text=True, check=True)
    return {**os.environ, "LD_PRELOAD": str(library), "FLOCK_ERRNO": str(errno.ENOLCK), "PYTHONPATH": str(ROOT)}


def test_locks_keep_others_out(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a+") as first, (tmp_path / "lock").open("a+") as second:
        lock(first, shared=True)
        lock(second, shared=True)
        with pytest.raises(BlockingIOError):
            lock(second)


def test_without_locks_work_goes_on_and_says_so_once(no_locks: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDERS, str(tmp_path), *map(str, ERRORS)]
    done = subprocess.run(command, env=no_locks, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has no locks") == 1
    assert f"{tmp_path / str(errno.ENOLCK) / '.build' / 'lock'} has no locks (No locks available); going on" in done.stderr
    assert "cannot be locked: Input/output error" in done.stdout and str(tmp_path / "file") in done.stdout


@pytest.mark.slow
def test_a_dataset_is_built_and_trained_on_without_locks(no_locks: dict[str, str], dataset: Path, tmp_path: Path) -> None:
    from tests.train.trainers import command

    videos = dataset.parent / "videos"
    build = [sys.executable, str(ROOT / "dataset_builders/build_unlabeled_hybrid.py"), "--folder", f"generated={videos}"]
    shares = [[*build, "--out", str(tmp_path / "built"), "--clips-per-shard", "5", "--job", f"{i}/2"] for i in (1, 2)]
    running = [subprocess.Popen(share, env=no_locks, stderr=subprocess.PIPE, text=True) for share in shares]
    for process in running:  # both at once: only one of them writes the plan
        said = process.communicate()[1]
        assert process.returncode == 0 and said.count("has no locks") == 1, said
    subprocess.run([*shares[0][:-2], "--finish"], env=no_locks, check=True)
    assert (tmp_path / "built/manifest.parquet").read_bytes() == (dataset / "manifest.parquet").read_bytes()
    train = command(tmp_path / "built", tmp_path / "run", "--steps", "2")
    done = subprocess.run(train, env=no_locks, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'run' / '.lock'} has no locks" in done.stderr
    assert (tmp_path / "run/complete").exists()
