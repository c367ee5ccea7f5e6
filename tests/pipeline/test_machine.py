import os
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
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
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


def test_this_machine_has_something() -> None:
    assert machine.usable_cores() >= 1
    assert machine.available_memory() > 0
