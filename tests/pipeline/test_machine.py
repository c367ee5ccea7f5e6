import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline import machine

GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups of our own, of version 2: nested ones, with this process in the inner."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "PROCESS", tmp_path / "process")
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100 * GIB}))
    (tmp_path / "process").write_text("0::/job/step\n")
    (tmp_path / "groups" / "job" / "step").mkdir(parents=True)
    return tmp_path / "groups"


def test_without_limits_it_is_the_machine(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (machine.usable_cores(), machine.available_memory()) == (16, 100 * GIB)
    (groups / "job" / "cpu.max").write_text("max 100000\n")
    (groups / "job" / "memory.max").write_text("max\n")
    (groups / "job" / "memory.current").write_text("5\n")
    assert (machine.usable_cores(), machine.available_memory()) == (16, 100 * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (machine.ranks_here(), machine.usable_cores()) == (8, 2)


def test_limits_of_any_group_around_count(groups: Path) -> None:
    (groups / "job" / "cpu.max").write_text("250000 100000\n")
    (groups / "job" / "step" / "cpu.max").write_text("max 100000\n")
    (groups / "job" / "memory.max").write_text(f"{10 * GIB}\n")
    (groups / "job" / "memory.current").write_text(f"{8 * GIB}\n")
    (groups / "job" / "memory.stat").write_text(f"anon 7\ninactive_file {3 * GIB}\n")
    assert (machine.usable_cores(), machine.available_memory()) == (2, 5 * GIB)


def test_version_one_in_a_container_that_sees_the_root_only(groups: Path) -> None:
    machine.PROCESS.write_text("4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n")
    for name in ("memory", "cpu"):
        (groups / name).mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (groups / "memory" / "memory.usage_in_bytes").write_text(f"{2 * GIB}\n")
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert (machine.usable_cores(), machine.available_memory()) == (1, 0)
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.usable_cores() == 16


CORES = 112  # of a machine with two NUMA nodes
NODE = CORES // 2
TORCHRUN = {"MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "one", "LOCAL_WORLD_SIZE": "8"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2),8", "SLURM_NODEID": "2"}


@pytest.mark.parametrize(
    ("told", "cores_of", "seen", "cores"),
    [
        pytest.param(TORCHRUN, lambda rank: range(CORES), 8, 14, id="not bound"),
        pytest.param(TORCHRUN, lambda rank: range(8, 64), 8, 7, id="in a container with a cpuset"),
        pytest.param(TORCHRUN, lambda rank: range(14 * rank, 14 * rank + 14), 8, 14, id="--numa-binding exclusive"),
        pytest.param(TORCHRUN, lambda rank: range(rank // 4 * NODE, rank // 4 * NODE + NODE), 8, 14, id="--numa-binding node"),
        pytest.param(TORCHRUN, lambda rank: range(14 * (rank % 4), 14 * (rank % 4) + 14), 8, 7, id="two ranks a core complex"),
        pytest.param(TORCHRUN, lambda rank: range(14 * rank, 14 * rank + 14), 1, 1, id="the others are not to be seen"),
        pytest.param(SRUN, lambda rank: range(14 * rank, 14 * rank + 14), 8, 14, id="srun --cpus-per-task 14"),
        pytest.param(SRUN, lambda rank: range(14, 70), 8, 7, id="srun --cpu-bind none, in a cpuset"),
        pytest.param({**SRUN, "SLURM_NODEID": "1"}, lambda rank: range(14, 70), 4, 14, id="four tasks on another node"),
        pytest.param({**SRUN, **TORCHRUN, "SLURM_STEP_TASKS_PER_NODE": "1"}, lambda rank: range(56), 8, 7, id="srun torchrun"),
    ],
)
def test_ranks_divide_the_cores_that_they_share(
    groups: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, str],
    cores_of: Callable[[int], range],
    seen: int,
    cores: int,
) -> None:
    """Each rank is a shell with all cores and a process; beside them there are their launcher and another job."""
    processes, masks = groups.parent / "processes", {}
    monkeypatch.setattr(machine, "PROCESSES", processes)
    monkeypatch.setattr(os, "cpu_count", lambda: CORES)
    monkeypatch.setattr(os, "sched_getaffinity", masks.__getitem__)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    torchrun, us = "MASTER_PORT" in told, 3

    def start(process: int, environment: dict[str, str], mask: range, name: str = "") -> None:
        folder = processes / (name or str(process))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "environ").write_bytes("\0".join(f"{key}={value}" for key, value in environment.items()).encode() + b"\0")
        masks[process] = set(mask)

    for rank in range(8) if seen == 8 else range(us, us + seen):
        environment = {**told, **({"RANK": str(rank), "SLURM_PROCID": "0"} if torchrun else {"SLURM_PROCID": str(rank)})}
        start(10 + rank, environment, range(CORES) if len(cores_of(rank)) < 50 else cores_of(rank))
        start(100 + rank, environment, cores_of(rank))
        if rank == us:
            start(0, environment, cores_of(rank), "self")
        start(200 + rank, {**environment, "MASTER_PORT": "29501", "SLURM_STEP_ID": "1"}, cores_of(0))
    start(1, {}, range(CORES))
    (processes / "77").mkdir()  # another user's
    assert machine.usable_cores() == cores
    (processes / "self" / "environ").unlink()
    assert machine.usable_cores() == max(1, len(cores_of(us)) // machine.ranks_here())


def test_this_machine_has_something() -> None:
    assert machine.usable_cores() >= 1
    assert machine.available_memory() > 0
