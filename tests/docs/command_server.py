"""Our commands, a hundred times cheaper: a process that has imported everything once, and forks for each of them.

`write_commands` makes `tubecell`, `torchrun` and `python` that a page's bash finds first: they hand their words, folder,
environment and open files to the server and end as its fork does. Other things for `python` run in a Python of their own.
"""

import array
import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from tubecell.__main__ import programs

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ("train.pretrain", "train.finetune", "train.evaluate", "train.localize", "train.convert", "dataset_builders.subset")
PRELOADED += (
    "dataset_builders.build_dataset",
    "matplotlib.pyplot",
    "timm",
    "torch.distributed.run",
    "pipeline.workers.sidecar",
)
PROGRAMS = {module.removeprefix("tubecell.") for module, _ in programs().values()} | {"__main__", "torch.distributed.run"}
LENGTH = 8  # bytes of a message's length
GRACE = 10.0  # seconds from SIGTERM to SIGKILL for a command whose caller has gone
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python":
    while words[:1] == ["-u"]:
        words = words[1:]
    if not words or not (words[0].endswith(".py") or words[:2] == ["-m", "tubecell"]):
        os.execv({python!r}, [{python!r}, *words])
asked = json.dumps(dict(name=name, words=words, folder=os.getcwd(), environment=dict(os.environ))).encode()
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [len(asked).to_bytes({length}, "big")], [0, 1, 2])
server.sendall(asked)
process = int.from_bytes(server.recv({length}), "big")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: os.kill(process, number))
status = server.recv({length})
sys.exit(int.from_bytes(status, "big") if status else 1)
"""


def write_commands(folder: Path, address: Path) -> None:
    """tubecell, torchrun and python, for a PATH."""
    folder.mkdir()
    text = CLIENT.format(python=sys.executable, address=str(address), length=LENGTH)
    for name in ("tubecell", "torchrun", "python"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def serve(address: str) -> None:
    """Until nobody holds this process's stdin open."""
    for module in PRELOADED:
        importlib.import_module(module)
    for name in [name for name in sys.modules if name != "__main__" and name.removeprefix("tubecell.") in PROGRAMS]:
        del sys.modules[name]  # or runpy would warn of each
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen(64)
        os.rename(f"{address}.new", address)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who watches a command
        while True:
            ready, _, _ = select.select([server, 0], [], [])
            if 0 in ready and not os.read(0, 1):
                return
            if server in ready:
                connection, _ = server.accept()
                if not os.fork():
                    server.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    watch(connection)
                connection.close()


def watch(connection: socket.socket) -> None:
    """In a fork: be the command's parent, and end it when who called it has gone. Does not return."""
    size, descriptors, _, _ = socket.recv_fds(connection, LENGTH, 3)
    asked = bytearray()
    while len(asked) < int.from_bytes(size, "big"):
        asked += connection.recv(1 << 16)
    if not (process := os.fork()):
        connection.close()
        os._exit(work(json.loads(asked), descriptors))
    for descriptor in {0, *descriptors}:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        connection.send(process.to_bytes(LENGTH, "big"))
    ended = os.pidfd_open(process)
    if ended not in select.select([connection, ended], [], [])[0]:
        os.kill(process, signal.SIGTERM)
        if not select.select([ended], [], [], GRACE)[0]:
            os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):
        connection.send((status if status >= 0 else 128 - status).to_bytes(LENGTH, "big"))
    os._exit(0)


def work(asked: dict[str, Any], descriptors: "array.array[int] | list[int]") -> int:
    """In a fork of it: be the command -> its exit status."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.environ["PYTHON_EXEC"] = str(Path(asked["environment"]["COMMANDS"]) / "python")  # torchrun's ranks
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status = 0
    try:
        begin(asked["name"], asked["words"])
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return status


def begin(name: str, words: list[str]) -> None:
    sys.path[0] = os.getcwd()
    if name == "python" and words[0] != "-m":
        sys.argv[:] = words
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
        return
    module = "torch.distributed.run" if name == "torchrun" else "tubecell"
    sys.argv[:] = [name, *(words[2:] if name == "python" else words)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1])
