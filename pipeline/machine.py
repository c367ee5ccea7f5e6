"""What this process may use of its machine: cores and memory, its share where a container or a launcher limits it.

`os.cpu_count` and the machine's free memory are wrong in a container with limits: Docker's `--cpus` is a quota that the
scheduler's affinity does not show, and memory beyond the control group's limit ends in a kill. Both cgroup versions are read.
"""

import os
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/cgroup")


def ranks_here() -> int:
    """Processes of this job on this machine that share it: LOCAL_WORLD_SIZE, which torchrun sets; else 1."""
    return _told("LOCAL_WORLD_SIZE")


def ranks_of_job() -> int:
    """Processes of this job on all machines: WORLD_SIZE, which torchrun sets; else 1."""
    return _told("WORLD_SIZE")


def _told(variable: str) -> int:
    text = os.environ.get(variable, "1")
    return max(1, int(text)) if text.isdecimal() else 1


def usable_cores() -> int:
    """Cores for one rank, at least 1: those that it may run on, no more than the control group's quota, by the ranks here."""
    quotas = []
    for folder in _groups("cpu"):
        words = _words(folder / "cpu.max") or [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdecimal() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    cores = min([len(os.sched_getaffinity(0)), *quotas])
    return max(1, int(cores / ranks_here()))


def available_memory() -> int:
    """Bytes that can still be taken on this machine, without swapping, or being killed for a control group's limit."""
    room = [psutil.virtual_memory().available]
    for folder in _groups("memory"):
        limits = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limits and used and limits[0].isdecimal():
            cached = dict(line.split() for line in _lines(folder / "memory.stat") if line.count(" ") == 1)
            given_back = int(cached.get("inactive_file", 0))  # the page cache, which the kernel drops first
            room.append(int(limits[0]) - int(used[0]) + given_back)
    return max(0, min(room))


def _groups(controller: str) -> list[Path]:
    """Folders of this process's control group and of those around it. In a container the path that the kernel names may be
    the host's, of which only the root is to be seen."""
    found: list[Path] = []
    for line in _lines(PROCESS):
        number, names, path = line.split(":", 2)
        if number == "0" or controller in names.split(","):
            root = CGROUPS if number == "0" else CGROUPS / controller
            group = root / path.strip("/")
            found += [folder for folder in (group, *group.parents) if folder.is_relative_to(root) and folder.is_dir()]
    return found


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
