"""What this process may use of its machine: cores and memory, its share where a container or a launcher limits it.

`os.cpu_count` and the machine's free memory are wrong in a container with limits: Docker's `--cpus` is a quota that the
scheduler's affinity does not show, and memory beyond the control group's limit ends in a kill. Both cgroup versions are read.
"""

import os
import re
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/cgroup")
PROCESSES = Path("/proc")
JOB = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")  # equal in all ranks of a job
RANK = ("RANK", "SLURM_PROCID")  # of torchrun, and of srun without it


def ranks_here() -> int:
    """Processes of this job on this machine that share it: LOCAL_WORLD_SIZE, which torchrun sets, or the tasks that srun
    started; else 1."""
    return _told("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else _tasks_here()


def ranks_of_job() -> int:
    """Processes of this job on all machines: WORLD_SIZE, which torchrun sets; else 1."""
    return _told("WORLD_SIZE")


def _told(variable: str) -> int:
    text = os.environ.get(variable, "1")
    return max(1, int(text)) if text.isdecimal() else 1


def _tasks_here() -> int:
    """Of srun's step, whose list is as `8(x2),4`: eight on each of two nodes, four on the third."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(count) for count, times in parts for _ in range(int(times or 1))]
    node = os.environ.get("SLURM_NODEID", "0")
    return tasks[int(node)] if node.isdecimal() and int(node) < len(tasks) else 1


def usable_cores() -> int:
    """Cores for one rank, at least 1: its share of those that it may run on, and of the control group's quota. A core that
    several ranks may run on is theirs in equal parts; so one that is bound to cores of its own has all of them."""
    quotas = []
    for folder in _groups("cpu"):
        words = _words(folder / "cpu.max") or [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdecimal() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    ranks = ranks_here()
    return max(1, int(min([_share_of_cores(ranks), *(quota / ranks for quota in quotas)])))


def _share_of_cores(ranks: int) -> Fraction | int:
    """Of the cores that this rank may run on. Ranks that are not to be seen, in other containers, may use all of them."""
    ours = os.sched_getaffinity(0)
    if ranks == 1 or len(ours) == os.cpu_count():  # none is bound
        return Fraction(len(ours), ranks)
    others = _other_ranks()
    unseen = max(0, ranks - 1 - len(others))
    return sum(Fraction(1, 1 + unseen + sum(core in theirs for theirs in others)) for core in ours)


def _other_ranks() -> list[set[int]]:
    """The cores that each other rank of this job may run on here.

    A launcher starts them within milliseconds and each imports torch for seconds, so none that asks is the first to be there.
    Of the processes of a rank (a script that binds it, itself, its decoders) the closest bound one counts.
    """
    found: dict[tuple[str, ...], set[int]] = {}
    try:
        job, us = _job_and_rank("self")
    except OSError:  # a kernel that does not tell
        return []
    for process in PROCESSES.iterdir():
        if process.name.isdecimal():
            with suppress(OSError):  # another user's, or gone
                theirs, rank = _job_and_rank(process.name)
                if theirs == job and rank != us:
                    cores = os.sched_getaffinity(int(process.name))
                    found[rank] = min(cores, found.get(rank, cores), key=len)
    return list(found.values())


def _job_and_rank(process: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As the environment said in which it was started. Raises OSError."""
    entries = (PROCESSES / process / "environ").read_bytes().decode(errors="replace").split("\0")
    told = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return tuple(told.get(name, "") for name in JOB), tuple(told.get(name, "") for name in RANK)


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
