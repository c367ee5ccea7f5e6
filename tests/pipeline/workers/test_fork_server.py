import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline.workers.fork_server import ForkServer, ProcessDiedError, ServerDiedError

ROOT = Path(__file__).resolve().parents[3]
SHARED = ["made before"]


def serve(connection: Connection) -> None:
    while True:
        message = connection.recv()
        if message == "sleep":
            time.sleep(1000)
        if isinstance(message, int):
            os.kill(os.getpid(), message)
        connection.send((os.getpid(), message, SHARED[0]))


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    made = ForkServer(serve)
    SHARED[0] = "changed after"
    yield made
    made.close()


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_they_are_copies_of_the_moment_when_the_server_was_made(server: ForkServer) -> None:
    processes = [server.fork() for _ in range(3)]
    for number, process in enumerate(processes):
        process.send(str(number))
    answers = [process.receive(10) for process in processes]
    assert answers == [(process.pid, str(number), "made before") for number, process in enumerate(processes)]
    assert len({os.getpid(), *(process.pid for process in processes)}) == 4
    for process in processes:
        process.close()
        assert gone(process.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_how_one_ended_is_named_and_others_go_on(server: ForkServer, number: signal.Signals) -> None:
    dying, other = server.fork(), server.fork()
    dying.send(number)
    with pytest.raises(ProcessDiedError, match=number.name):
        dying.receive(10)
    other.send("still")
    assert other.receive(10)[1] == "still"
    other.close()


def test_one_that_says_nothing_is_killed(server: ForkServer) -> None:
    process = server.fork()
    process.send("sleep")
    with pytest.raises(TimeoutError):
        process.receive(0.2)
    assert gone(process.pid)


def test_all_leave_with_their_owner_even_from_inside_a_decoder() -> None:
    code = (
        "import os, sys, time; from tests.pipeline.workers.test_fork_server import ForkServer, serve\n"
        "server = ForkServer(serve); one = server.fork(); one.send('sleep')\n"
        "print(one.pid, flush=True); time.sleep(1000)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert owner.stdout is not None
    sleeper = int(owner.stdout.readline())
    server = int(Path(f"/proc/{sleeper}/status").read_text().split("PPid:")[1].split()[0])
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert gone(server) and gone(sleeper)


def test_without_the_server_nothing_is_forked() -> None:
    with closing(ForkServer(serve)) as server:
        one = server.fork()
        parent = int(Path(f"/proc/{one.pid}/status").read_text().split("PPid:")[1].split()[0])
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert gone(one.pid)
        with pytest.raises(ServerDiedError):
            server.fork()
        one.close()
