import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline.workers.fork_server import ForkServer, ProcessDiedError, Serve, ServerDiedError

HERE = f"import sys; sys.path = {sys.path!r}; from {__name__} import *\n"
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


def gone(pid: int) -> bool:
    for _ in range(200):
        with suppress(OSError):
            if ") Z " not in Path(f"/proc/{pid}/stat").read_text():
                time.sleep(0.02)
                continue
        return True
    return False


@pytest.mark.parametrize("case", ["copies_of_the_server", "others_go_on", "nothing_that_has_threads_is_forked"])
def test_in_an_interpreter_of_its_own(case: str) -> None:
    """That of the tests has threads."""
    done = subprocess.run([sys.executable, "-c", f"{HERE}{case}()"], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


def copies_of_the_server() -> None:
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


def others_go_on() -> None:
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
        assert gone(one.pid)
        with pytest.raises(ServerDiedError):
            server.fork()


def nothing_that_has_threads_is_forked() -> None:
    with closing(ForkServer(start_a_thread)) as server:  # in each of its processes, then
        server.fork().send("x")
        assert len(os.listdir(f"/proc/{server._pid}/task")) == 1
    with closing(ForkServer(lambda: signal.signal(signal.SIGUSR1, start_a_thread) and serve)) as server:
        os.kill(server._pid, signal.SIGUSR1)
        with pytest.raises(RuntimeError, match="has 2 threads, of a library beside the first, and is not forked"):
            server.fork()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ForkServer(lambda: 1 // 0)  # type: ignore[arg-type,return-value]


def test_all_leave_with_their_owner_even_from_inside_a_decoder() -> None:
    code = "server = ForkServer(prepare); one = server.fork(); one.send('sleep'); print(one.pid, flush=True); time.sleep(1000)"
    owner = subprocess.Popen([sys.executable, "-c", HERE + code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    sleeper = int(owner.stdout.readline())
    server = int(Path(f"/proc/{sleeper}/status").read_text().split("PPid:")[1].split()[0])
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert gone(server) and gone(sleeper)
