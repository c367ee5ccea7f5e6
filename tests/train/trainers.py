"""Starts the trainer as real processes, a hundred times cheaper than a command does: they are forks of a server that has
imported it once, and so are the decoding processes beside them. (An import takes 5 to 10 s of CPU; torchrun's, another.)"""

import importlib
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from pipeline.stop_signals import NUMBERS

ROOT = Path(__file__).resolve().parents[2]
# two layers on 32 px; 4 clips a step of the 12 in the dataset
SMALL = [
    "tiny",
    *("--views.views-per-step", "8", "--loader.workers", "1", "--log-every", "1"),
    "--no-save-in-background",  # whose process takes seconds to start
    *("--model.input-size", "32", "--model.num-frames", "8"),
    *("--model.encoder-dim", "32", "--model.encoder-depth", "2", "--model.encoder-heads", "2"),
    *("--model.decoder-dim", "16", "--model.decoder-depth", "1", "--model.decoder-heads", "2"),
]
ENOUGH = 250.0  # seconds for anything here


def no_fault(rank: int) -> None:
    """All is well."""


def command(dataset: Path, out: Path, *options: str) -> list[str]:
    """As a user types it."""
    return [sys.executable, str(ROOT / "train" / "pretrain.py"), *SMALL, "--data", str(dataset), "--out", str(out), *options]


class Trainer:
    """A run in work: its ranks' processes, or torchrun's."""

    def __init__(self, out: Path, target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
        """A process for each of the arguments, after the name of the log."""
        out.parent.mkdir(exist_ok=True)
        self.out, self.log = out, out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
        context = start_server()
        self.processes = [context.Process(target=target, args=(self.log, *each)) for each in arguments]
        for process in self.processes:
            process.start()

    def wait(self) -> list[int]:
        """Until all have ended -> their exit codes."""
        deadline = time.monotonic() + ENOUGH
        for process in self.processes:
            process.join(deadline - time.monotonic())
            assert process.exitcode is not None, f"still running: {self.text()}"
        return [process.exitcode for process in self.processes]

    def said(self, code: int) -> str:
        """Wait for the end, with this exit code of every rank -> what they said."""
        assert set(self.wait()) == {code}, self.text()
        return self.text()

    def until(self, step: int) -> "Trainer":
        """Wait for a line of the log."""
        deadline = time.monotonic() + ENOUGH
        while time.monotonic() < deadline and steps(self.out)[-1:] < [step]:
            assert self.processes[0].is_alive(), self.text()
            time.sleep(0.005)
        assert steps(self.out)[-1:] >= [step], self.text()
        return self

    def send(self, number: signal.Signals, *ranks: int) -> "Trainer":
        """A signal to some ranks, or to all."""
        for rank in ranks or range(len(self.processes)):
            os.kill(self.processes[rank].pid, number)
        return self

    def text(self) -> str:
        """All that the ranks said."""
        return self.log.read_text()


def start(
    dataset: Path | None,
    out: Path,
    *options: str,
    ranks: int = 1,
    fault: Callable[[int], None] = no_fault,
    program: Path | str | None = None,
    given: Sequence[str] = SMALL,
) -> Trainer:
    """Without torchrun. `fault` is called in every rank, with its number, before the trainer starts. `program` is the file or
    the module of another one than pre-training, `given` what its options follow."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    environments = [{"RANK": rank, "LOCAL_RANK": rank, **shared} for rank in range(ranks)] if ranks > 1 else [{}]
    data = [] if dataset is None else ["--data", str(dataset)]
    arguments = [*given, *data, "--out", str(out), *options]
    return Trainer(out, be_rank, [(arguments, environment, fault, program) for environment in environments])


def torchrun(
    dataset: Path, out: Path, *options: str, ranks: int, max_restarts: int, faults: Sequence[Callable[[int], None]] = ()
) -> Trainer:
    """With torchrun's agent, which starts forks of itself instead of commands."""
    arguments = [*SMALL, "--data", str(dataset), "--out", str(out), *options]
    return Trainer(out, be_torchrun, [(arguments, ranks, max_restarts, faults)])


def run(dataset: Path, out: Path, *options: str, ranks: int = 1, **how: Any) -> str:
    """A run that succeeds -> what it said."""
    trainer = start(dataset, out, *options, ranks=ranks, **how)
    assert trainer.wait() == [0] * ranks, trainer.text()
    return trainer.text()


def lines(file: Path) -> list[dict[str, Any]]:
    """Of a JSONL file; the last may be in work."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def steps(out: Path) -> list[int]:
    """That are in the log."""
    return [line["step"] for line in lines(out / "metrics.jsonl")] if (out / "metrics.jsonl").exists() else []


def losses(out: Path) -> dict[int, float]:
    """By step; none is missing."""
    found = {line["step"]: line["loss"] for line in lines(out / "metrics.jsonl")}
    assert list(found) == list(range(1, len(found) + 1))
    return found


def start_server() -> Any:
    """The context whose processes are forks of the server; one OpenMP thread each, as the losses' last bits depend on that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.pretrain", "pipeline.workers.sidecar"])
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return context


def be_rank(
    log: Path,
    arguments: list[str],
    environment: dict[str, Any],
    fault: Callable[[int], None],
    program: Path | str | None = None,
) -> None:
    """In a process of its own: the trainer."""
    write_to(log)
    os.environ.update({name: str(value) for name, value in environment.items()})
    train(arguments, (fault,), program)


def be_torchrun(
    log: Path, arguments: list[str], ranks: int, max_restarts: int, faults: Sequence[Callable[[int], None]]
) -> None:
    """In a process of its own: what torchrun's main does."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    write_to(log)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=log.stem,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        start_method="fork",
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        logs_specs=DefaultLogsSpecs(log_dir=str(log.with_suffix(""))),  # error files
    )
    elastic_launch(config, train)(arguments, faults)


def train(arguments: list[str], faults: Sequence[Callable[[int], None]], program: Path | str | None = None) -> None:
    """The trainer's main, with a decoding process that is a fork."""
    from pipeline import loader
    from train import pretrain

    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)  # torchrun's agent, of which this is a fork, has its own
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    loader.subprocess = ForkedCommands()  # type: ignore[assignment]
    for fault in faults:
        fault(int(os.environ.get("RANK", 0)))
    module = importlib.import_module(program) if isinstance(program, str) else imported(program) if program else pretrain
    code = module.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not waiting for torchrun's agent to fetch a return value, which commands do not have


def imported(program: Path) -> Any:
    """A module by its path."""
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec and spec.loader
    module = sys.modules[program.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_to(log: Path) -> None:
    """All that this process and its children say, each line at once."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


class ForkedCommands:
    """Stands for `subprocess` in the loader: the decoding process is a fork, not a new interpreter."""

    DEVNULL, TimeoutExpired = subprocess.DEVNULL, subprocess.TimeoutExpired

    class Popen:
        def __init__(self, command: list[str], *, pass_fds: tuple[int, ...], env: dict[str, str], stdin: int) -> None:
            self.pid = os.fork()
            self.returncode: int | None = None
            if self.pid == 0:
                kept = sorted({0, 1, 2, *pass_fds})
                for after, before in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
                    os.closerange(after + 1, before)  # the trainer's sockets and its lock
                for number in NUMBERS:
                    signal.signal(number, signal.SIG_DFL)
                os.environ.update(env)
                sys.argv = ["sidecar", command[-1]]
                try:
                    from pipeline.workers.sidecar import main

                    main()
                finally:
                    os._exit(0)

        def wait(self, timeout: float | None = None) -> int:
            deadline = None if timeout is None else time.monotonic() + timeout
            while self.returncode is None:
                pid, status = os.waitpid(self.pid, 0 if deadline is None else os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
                elif deadline is not None and time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired("sidecar", timeout or 0)
                else:
                    time.sleep(0.002)
            return self.returncode

        def kill(self) -> None:
            if self.returncode is None:
                os.kill(self.pid, signal.SIGKILL)
