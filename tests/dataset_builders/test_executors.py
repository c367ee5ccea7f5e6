import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset_builders import executors
from dataset_builders.executors import Failure, map_ordered
from dataset_builders.media.rejects import Reason
from pipeline.storage.remote import StorageError


def work(task: object) -> Iterator[object]:
    """Runs in the worker: does to it what the task says."""
    if isinstance(task, tuple):
        count, task = task
        yield from (f"{task} {i}" for i in range(count))
    match task:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(1000)
        case "raise":
            raise KeyError("missing")
        case "storage":
            raise StorageError("it is not mounted", transient=True)
        case "memory":
            yield bytes(8 << 30)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            time.sleep(0.3)
        case "large":
            yield from (bytes(1 << 20) for _ in range(40))
    yield task


def run_all(tasks: list[object], workers: int = 2, time_limit: float = 60.0) -> list[list[object]]:
    results: list[list[object]] = [[]]
    for some in map_ordered(work, tasks, workers, time_limit, 2 << 30):
        if some is None:
            results.append([])
        else:
            results[-1].extend(some)
    assert results.pop() == []
    return results


def run(tasks: list[object], workers: int = 2, time_limit: float = 60.0) -> list[object]:
    return [result for (result,) in run_all(tasks, workers, time_limit)]


def test_a_task_gives_many_results() -> None:
    tasks: list[object] = [(3, "slow"), (0, 1), (2, "segfault"), (5, "raise")]
    slow, nothing, crash, error = run_all(tasks)
    assert (slow, nothing) == (["slow 0", "slow 1", "slow 2", "slow"], [1])
    assert crash[:2] == ["segfault 0", "segfault 1"]
    assert isinstance(crash[2], Failure) and len(crash) == 3
    assert isinstance(error[5], Failure) and len(error) == 6


def test_results_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers ahead of a slow one are held back, by their pipes, and lose nothing, nor are they taken for hanging."""
    monkeypatch.setattr(executors, "MAX_WAITING_BYTES", 3 << 20)
    results = run_all(["slow", "large", "large", "slow"], workers=3, time_limit=20)
    assert [len(some) for some in results] == [1, 41, 41, 1]


def test_results_come_in_the_order_of_the_tasks() -> None:
    assert run(["slow", *range(20)]) == ["slow", *range(20)]


def test_a_bad_task_costs_itself_alone() -> None:
    bad = {
        "segfault": (Reason.CRASH, "SIGSEGV"),
        "exit": (Reason.CRASH, "status 3"),
        "raise": (Reason.CRASH, "KeyError"),
        "memory": (Reason.OUT_OF_MEMORY, "2 GiB"),
        "killed": (Reason.OUT_OF_MEMORY, "killed"),
    }
    tasks = [item for number, name in enumerate(bad) for item in (number, name)]
    results = run(tasks)
    assert results[::2] == [0, 1, 2, 3, 4]
    for name, result in zip(bad, results[1::2], strict=True):
        assert isinstance(result, Failure)
        assert result.reason is bad[name][0], name
        assert bad[name][1] in result.detail, name


def test_a_hanging_task_is_ended() -> None:
    results = run([1, "hang", 2, 3, "hang", 4], time_limit=1.0)
    assert [result.reason if isinstance(result, Failure) else result for result in results] == [
        1,
        Reason.TIMEOUT,
        2,
        3,
        Reason.TIMEOUT,
        4,
    ]


def test_workers_that_cannot_start_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import os\nif 'LATER' in os.environ: raise ImportError('no')\ndef work(task): yield task\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from dataset_builders.executors import map_ordered\n"
        "from task import work\n"
        "os.environ['LATER'] = '1'\n"
        "try: list(map_ordered(work, [1], 1, 9.0, 2 << 30))\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert "a worker process did not start" in done.stdout


def test_workers_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import os, time\ndef work(task):\n    print(os.getpid(), flush=True)\n    time.sleep(1000)\n    yield task\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from dataset_builders.executors import map_ordered\n"
        "from task import work\n"
        "list(map_ordered(work, [1, 2], 2, 999.0, 2 << 30))\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(worker) for worker in workers)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 3])
def test_no_tasks(workers: int) -> None:
    assert run([], workers) == []


def test_trouble_of_the_storage_is_no_result_of_a_task() -> None:
    with pytest.raises(StorageError, match="it is not mounted"):
        run_all(["fine", "storage", "fine"], workers=1)
