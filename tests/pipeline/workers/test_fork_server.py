import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline.workers.fork_server import ForkServer, ProcessDiedError, Serve, ServerDiedError

HERE = f"import sys; sys.path = {sys.path!r}; from {__name__} import "
SHARED = ["not prepared"]


def serve(connection: Connection) -> None:
    while True:
        message = connection.recv()
        if message == "sleep":
            time.sleep(1000)
        if isinstance(message, int):
            os.kill(os.getpid(), message)
        connection.send((os.getpid(), message, SHARED[0]))


def prepare() -> Serve:
    SHARED[0] = "prepared"
    return serve


def start_a_thread(*_: object) -> Serve:
    threading.Thread(target=threading.Event().wait, name="of a library", daemon=True).start()
    return serve


def alone(test: Callable[[], None]) -> Callable[[], None]:
    """In an interpreter of its own; that of the tests has threads."""

    @functools.wraps(test)
    def run() -> None:
        code = f"{HERE}{test.__name__} as run; run.__wrapped__()"
        done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr

    return run


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@alone
def test_they_are_copies_of_the_server_when_it_was_prepared() -> None:
    with closing(ForkServer(prepare)) as server:
        processes = [server.fork() for _ in range(3)]
        for number, process in enumerate(processes):
            process.send(str(number))
        answers = [process.receive(10) for process in processes]
        assert answers == [(process.pid, str(number), "prepared") for number, process in enumerate(processes)]
        assert len({os.getpid(), *(process.pid for process in processes)}) == 4 and SHARED == ["not prepared"]
        for process in processes:
            process.close()
            assert gone(process.pid)


@alone
def test_how_one_ended_is_named_and_others_go_on() -> None:
    with closing(ForkServer(prepare)) as server:
        for number in (signal.SIGTERM, signal.SIGKILL):
            dying, other = server.fork(), server.fork()
            dying.send(number)
            with pytest.raises(ProcessDiedError, match=number.name):
                dying.receive(10)
            other.send("still")
            assert other.receive(10)[1] == "still"
        other.send("sleep")
        with pytest.raises(TimeoutError):
            other.receive(0.2)
        assert gone(other.pid)
        one = server.fork()
        os.kill(server._pid, signal.SIGKILL)
        os.waitpid(server._pid, 0)
        assert gone(one.pid)
        with pytest.raises(ServerDiedError):
            server.fork()


@alone
def test_what_has_threads_is_not_forked() -> None:
    refused = "has 2 threads, of a library beside the first, and is not forked"
    with closing(ForkServer(start_a_thread)) as server:  # in each of its processes, then
        process = server.fork()
        process.send("sleep")
        assert [len(os.listdir(f"/proc/{server._pid}/task")), gone(process.pid)] == [1, False]
    with closing(ForkServer(lambda: signal.signal(signal.SIGUSR1, start_a_thread) and serve)) as server:
        os.kill(server._pid, signal.SIGUSR1)
        with pytest.raises(RuntimeError, match=refused):
            server.fork()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ForkServer(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    start_a_thread()
    with pytest.raises(RuntimeError, match=refused):
        ForkServer(prepare)


def test_all_leave_with_their_owner_even_from_inside_a_decoder() -> None:
    code = (
        f"{HERE}ForkServer, prepare, time\n"
        "server = ForkServer(prepare); one = server.fork(); one.send('sleep')\n"
        "print(one.pid, flush=True); time.sleep(1000)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    sleeper = int(owner.stdout.readline())
    server = int(Path(f"/proc/{sleeper}/status").read_text().split("PPid:")[1].split()[0])
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert gone(server) and gone(sleeper)
