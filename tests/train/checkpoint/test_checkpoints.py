"""Checkpoints under real faults: writers killed, disks full, folders forbidden, files damaged, storage that fails."""

import ctypes
import math
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from pipeline.storage import files
from tests.pipeline.s3_server import BUCKET, S3Server
from tests.train import saved_model
from tests.train.saved_model import PATIENCE, Trained
from tests.train.trainers import start_server
from train import inspect_checkpoints
from train.checkpoint import state as checkpoints
from train.checkpoint.files import clean_up, damage
from train.checkpoint.mirror import Mirror
from train.checkpoint.writer import ALIGNMENT, Place, Staging
from train.compute.parallel import started

Make = Callable[..., Trained]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes trained models in one process whose checkpoints are in tmp_path / "checkpoints"."""
    made: list[Trained] = []
    with started("cpu") as ranks:

        def one(folder: Path = tmp_path / "checkpoints", **options: int | str) -> Trained:
            made.append(Trained(ranks, folder, **options))
            return made[-1]

        yield one
        for each in made:
            each.saver.close()
        made.clear()


def test_what_is_saved_is_the_state_at_that_moment_though_the_training_goes_on(make: Make) -> None:
    """And the writer does not hear the job's signals; and those that need not stay go."""
    trained = make(keep_last=2, keep_every=3)
    states = {}
    for step in range(1, 7):
        states[step] = trained.state()
        trained.save(step)
        trained.step()  # while it is being written
        if step == 1:
            assert trained.saver._writer
            os.kill(trained.saver._writer.pid, signal.SIGTERM)
            os.kill(trained.saver._writer.pid, signal.SIGINT)
    trained.finish()
    assert trained.steps() == [3, 5, 6]
    assert not trained.said
    for step in (3, 6):
        checkpoints.load(trained.saver.folder / f"step-{step:08d}", trained)
        assert all(torch.equal(a, b) for a, b in zip(trained.state(), states[step], strict=True))
    trained.save(7, background=False)
    assert trained.steps() == [3, 6, 7]
    found = trained.saver.find()
    assert found is not None
    assert checkpoints.read_progress(found).step == 7


@pytest.mark.parametrize("gpu", [False, True])
def test_memory_for_the_first_save_is_taken_beside_the_training(make: Make, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it is pinned, once, by a thread that has made its rank's device its own."""
    calls: list[Any] = []
    cudart = SimpleNamespace(
        cudaHostRegister=lambda address, nbytes, flags: calls.append((threading.current_thread().name, nbytes)) or 0,
        cudaHostUnregister=lambda address: calls.append("gone"),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)

    def entered(device: torch.device) -> Any:
        calls.append((threading.current_thread().name, device))
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    trained = make()
    reserved, staging = checkpoints.share_bytes(trained), Staging(torch.device("cuda", 3) if gpu else torch.device("cpu"))
    staging.reserve(reserved)
    trained.step()  # the optimizer has a state only now
    shipment = staging.stage(checkpoints.state_of(trained), 0)
    staging.close()
    assert shipment.nbytes == reserved
    ends = [place.offset + math.prod(place.shape) * place.dtype.itemsize for place in shipment.data if isinstance(place, Place)]
    assert 0 <= reserved - max(ends) < ALIGNMENT
    name = "checkpoint memory"
    assert calls == ([(name, torch.device("cuda", 3)), (name, reserved)] if gpu else [])


def test_a_writer_that_is_killed_in_the_middle(make: Make) -> None:
    """Is told of at once; the next save has a new one; two such in a row end the run."""
    trained = make()
    trained.save(1, background=False)
    for step in (2, 3):
        trained.saver.wait()
        trained.saver.start()
        writer = trained.saver._writer
        assert writer
        os.kill(writer.pid, signal.SIGSTOP)
        trained.save(step)
        trained.saver.poll()
        assert trained.steps() == [1]
        os.kill(writer.pid, signal.SIGKILL)
        trained.finish()
        assert f"step {step} could not be saved: " in trained.said[-1]
        assert "was ended by SIGKILL" in trained.said[-1]
        assert trained.said[-1].endswith(f"the last checkpoint is {trained.saver.folder / 'step-00000001'}")
    with pytest.raises(OSError, match=r"could not save step 3 .* the last checkpoint is .*step-00000001"):
        trained.save(4)
    assert trained.steps() == [1]
    assert not list(trained.saver.folder.glob(".writing-*"))


@pytest.mark.slow
def test_a_writer_does_not_outlive_its_trainer(tmp_path: Path) -> None:
    """So that it can write neither into nor over what the next run writes."""
    trainer = start_server().Process(target=saved_model.hang, args=(tmp_path,))
    trainer.start()
    said = tmp_path / "writer"
    while not said.exists():
        assert trainer.is_alive()
        time.sleep(0.01)
    writer = psutil.Process(int(said.read_text()))
    trainer.kill()
    trainer.join()
    psutil.wait_procs([writer], timeout=PATIENCE)
    assert not writer.is_running()
    said.unlink()
    clean_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@contextmanager
def no_space(trained: Trained) -> Iterator[str]:
    """A disk that is full."""
    room = os.statvfs(trained.saver.folder)
    filler = trained.saver.folder / "filler"
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - 8192))
    try:
        yield "No space left on device"
    finally:
        filler.unlink()


@contextmanager
def short_files(trained: Trained) -> Iterator[str]:
    """No file of the writer or of ours may grow over 20 kB, as with a quota; what shares their memory is there by then."""
    trained.save(1)
    trained.finish()
    assert trained.saver._writer
    processes = [psutil.Process(), psutil.Process(trained.saver._writer.pid)]
    unlimited = processes[0].rlimit(psutil.RLIMIT_FSIZE)
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        yield "File too large"
    finally:
        processes[0].rlimit(psutil.RLIMIT_FSIZE, unlimited)


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """A folder that must not be written to; root, whom that does not bind, gives up the capability to ignore it (1)."""
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, rights) == 0
    less = (ctypes.c_uint32 * 6)(rights[0] & ~(1 << 1), *rights[1:])  # of this thread, in effect
    folder.chmod(0o500)
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, rights) == 0
        folder.chmod(0o700)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB, room for a few checkpoints of 80 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [no_space, pytest.param(short_files, marks=pytest.mark.slow)])
def test_what_cannot_be_written_leaves_the_last_good_one(
    fault: Callable[[Trained], contextmanager], make: Make, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In the background it is told of, and tried again at the next save; in the foreground it is an error."""
    folder = request.getfixturevalue("disk") if fault is no_space else tmp_path
    trained = make(folder / "checkpoints")
    if fault is not short_files:
        trained.save(1, background=False)
    with fault(trained) as reason:
        trained.save(2)
        trained.finish()
        assert "step 2 could not be saved" in trained.said[-1]
        assert reason in trained.said[-1]
        with pytest.raises(OSError, match=f"could not save step 3 in .*{reason}.* the last checkpoint is .*step-00000001"):
            trained.save(3, background=False)
    assert not [*trained.saver.folder.glob(".*")], "what could not be finished takes no space"
    trained.save(4)
    trained.finish()
    assert trained.steps() == [1, 4]
    assert [damage(trained.saver.folder / f"step-{step:08d}") for step in trained.steps()] == [None, None]


def test_a_folder_that_must_not_be_written_to(make: Make) -> None:
    trained = make()
    trained.save(1, background=False)
    with forbidden(trained.saver.folder), pytest.raises(OSError, match=r"step 2 .*Permission denied.* is .*step-00000001"):
        trained.save(2, background=False)
    assert trained.steps() == [1]
    trained.save(2, background=False)
    assert trained.steps() == [1, 2]


def cut_off(checkpoint: Path) -> None:
    file = checkpoint / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    file.write_bytes(data)


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / ".metadata").unlink()


def empty_the_checksums(checkpoint: Path) -> None:
    (checkpoint / "checksums.json").write_text("")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut_off, r"__0_0.distcp has \d+ bytes instead of \d+"),
        (flip_a_bit, "the bytes of __0_0.distcp are not those that were written"),
        (lose_a_file, ".metadata is missing"),
        (empty_the_checksums, "checksums.json is cut off or garbled"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(harm: Callable[[Path], None], words: str, make: Make) -> None:
    trained = make()
    for step in (1, 2):
        trained.save(step, background=False)
    newest = trained.saver.folder / "step-00000002"
    harm(newest)
    found = trained.saver.find()
    assert found == trained.saver.folder / "step-00000001"
    assert re.search(f"step-00000002 is damaged .{words}.: .* going on from step-00000001", trained.said[-1])
    trained.save(2, background=False)  # the step comes again
    assert trained.saver.find() == newest
    harm(newest)
    harm(trained.saver.folder / "step-00000001")
    with pytest.raises(ValueError, match="has no whole checkpoint left"):
        trained.saver.find()
    assert trained.saver.find() is None  # as the message says


@pytest.mark.slow
def test_any_number_of_ranks_reads_what_any_other_wrote(make: Make, tmp_path: Path) -> None:
    """1 -> 2 -> 1, the two with writers in a process group of their own."""
    trained = make()
    trained.save(1, background=False)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    context = start_server()
    ranks = [
        context.Process(target=saved_model.resave, args=(trained.saver.folder, {**address, "RANK": rank, "LOCAL_RANK": rank}))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    before = trained.state()
    trained.step()
    two = trained.saver.folder / "step-00000002"
    assert len(list(two.glob("__*"))) == 2
    assert trained.saver.find() == two
    checkpoints.load(two, trained)
    assert all(torch.equal(a, b) for a, b in zip(trained.state(), before, strict=True))


def test_the_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lists, verifies, and makes the file of weights that the run itself makes."""
    trained = make()
    for step in (1, 2):
        trained.save(step, background=False)
        trained.step()
    checkpoints.load(trained.saver.folder / "step-00000001", trained)
    checkpoints.export(tmp_path, trained, {"format": "pt"})
    file = tmp_path / "one.safetensors"
    assert inspect_checkpoints.main([str(tmp_path), "--consolidate", str(file), "--step", "1"]) == 0
    assert file.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert inspect_checkpoints.main([str(tmp_path), "--consolidate", str(file), "--ema"]) == 2
    assert "step-00000002 of" in (said := capsys.readouterr().err) and "has no running mean: the run was begun without" in said
    assert inspect_checkpoints.main([str(tmp_path)]) == 0
    cut_off(trained.saver.folder / "step-00000002")
    capsys.readouterr()
    assert inspect_checkpoints.main([str(tmp_path), "--verify"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert re.match(r"step-00000001  0.\d MiB by 1 rank  .*  epoch 0, 1 steps into it  whole", first)
    assert "DAMAGED: __0_0.distcp has" in second
    assert inspect_checkpoints.main([str(tmp_path / "checkpoints")]) == 2
    assert "has no checkpoint; give the folder of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mirror_survives_the_loss_of_the_machine(make: Make, s3: S3Server, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/runs/lost"
    trained = make(mirror=url, keep_last=2, keep_every=2)
    states = {}
    for step in range(1, 6):
        states[step] = trained.state()
        trained.save(step, background=step < 5)
        trained.finish()
        trained.step()
    assert trained.steps() == [4, 5]
    assert Mirror(url).names() == [f"step-{step:08d}" for step in (2, 4, 5)]
    assert inspect_checkpoints.main([url, "--verify"]) == 0

    # an upload that was cut off, and a copy that rotted
    files.write_durably(f"{url}/step-00000009-0123abcd/.metadata", b"")
    place = next(name for name in files.listed(url) if name.startswith("step-00000005") and name.endswith("__0_0.distcp"))
    files.write_durably(f"{url}/{place}", b"rotten")
    other = make(tmp_path / "other", mirror=url)
    found = other.saver.find()
    assert found == tmp_path / "other" / "step-00000004"
    assert "step-00000005 is damaged (__0_0.distcp has 6 bytes instead of" in other.said[-1]
    checkpoints.load(found, other)
    assert all(torch.equal(a, b) for a, b in zip(other.state(), states[4], strict=True))
    assert Mirror(url).names() == ["step-00000002", "step-00000004"]
    other.save(5, background=False)
    assert {name.partition("/")[0][:13] for name in files.listed(url)} == {"step-00000004", "step-00000005"}


@pytest.mark.slow
def test_storage_that_refuses_the_copy_leaves_the_one_on_disk(make: Make, s3: S3Server) -> None:
    url = f"s3://{BUCKET}/runs/refused"
    trained = make(mirror=url)
    s3.inject("403", writing=True)
    trained.save(1)
    trained.finish()
    assert "step-00000001 could not be uploaded" in trained.said[-1]
    assert "access is denied" in trained.said[-1]
    s3.inject("403", writing=True)
    with pytest.raises(OSError, match=r"step 2 is saved in .* but not in s3://.*access is denied"):
        trained.save(2, background=False)
    assert trained.steps() == [1, 2]
    assert Mirror(url).names() == []
    s3.inject("503", writing=True)  # a passing trouble
    trained.save(3, background=False)
    assert Mirror(url).names() == ["step-00000003"]
