"""A run's folder: what was asked for, with which software, whether it is done; and a lock, so that one run writes to it."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.manifest import Manifest
from train import checkpoints
from train.config import PretrainConfig
from train.parallel import Ranks

ROOT = Path(__file__).resolve().parent.parent
# what may change from one start of a run to the next; a change of anything else would be another run
CHANGEABLE = ("data", "out", "steps", "epochs", "log_every", "save_every", "keep_last", "dry_run", "expected_clips")
CHANGEABLE_PARTS = ("optim.", "compute.", "views.threads", "views.prefetch")


class RunFolder:
    """RUN/config.json, environment.json, complete, and the paths of the rest. Every rank has one, rank 0 writes."""

    def __init__(self, config: PretrainConfig, ranks: Ranks) -> None:
        """Create the folder or go on with it.

        Raises ValueError if another run is writing to it, or if it holds a checkpoint of a run with other data, model, views
        or seed, naming what differs.
        """
        assert config.out is not None and config.data is not None
        self.path, self._ranks = config.out, ranks
        self.checkpoints = self.path / "checkpoints"
        self.changes: list[str] = []  # of the configuration since the last start
        error = None
        if ranks.rank == 0:
            try:
                self._open(config, Manifest(config.data))
            except (ValueError, OSError) as caught:
                error = str(caught)
        if error := ranks.gather(error)[0]:
            raise ValueError(error)

    def completed_steps(self) -> int | None:
        """Steps of the run if it is complete."""
        file = self.path / "complete"
        return json.loads(file.read_text())["steps"] if file.exists() else None

    def complete(self, steps: int) -> None:
        """Mark the run as done: what a scheduler should look at, because torchrun returns 1 after a SIGTERM."""
        if self._ranks.rank == 0:
            (self.path / "complete").write_text(json.dumps({"steps": steps, "time": time.time()}) + "\n")

    def _open(self, config: PretrainConfig, manifest: Manifest) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing to {self.path}; wait for it, or choose another --out") from error
        described = {**flatten(asdict(config)), "dataset": manifest.root.name}
        file = self.path / "config.json"
        if file.exists() and checkpoints.latest(self.checkpoints):
            before = flatten(json.loads(file.read_text()))
            after = json.loads(json.dumps(described, default=str))
            self.changes = [
                f"--{name.replace('_', '-')} {before.get(name)} -> {value}"
                for name, value in after.items()
                if before.get(name) != value and name != "dataset"
            ]
            frozen = [c for c in self.changes if not c[2:].replace("-", "_").startswith((*CHANGEABLE, *CHANGEABLE_PARTS))]
            if frozen:
                raise ValueError(
                    f"{self.path} holds another run: {'; '.join(frozen)}. Give the values it began with, or another --out"
                )
        file.write_text(json.dumps(asdict(config), indent=1, default=str) + "\n")
        starts_file = self.path / "environment.json"
        starts = json.loads(starts_file.read_text()) if starts_file.exists() else []
        starts.append(environment(manifest, self._ranks))
        starts_file.write_text(json.dumps(starts, indent=1) + "\n")


def environment(manifest: Manifest, ranks: Ranks) -> dict[str, Any]:
    """One start of a run: when, where, with which software and data."""
    on_gpu = ranks.device.type == "cuda"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": git_commit(),
        "dataset": {"fingerprint": manifest.fingerprint, "version": manifest.version, "clips": len(manifest)},
        "world_size": ranks.world_size,
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "timm", "av", "numpy", "pyarrow")},
        "cuda": torch.version.cuda if on_gpu else None,
    }


def git_commit() -> str | None:
    """The checkout's commit, with "+" if files were changed since; None outside a git checkout."""
    try:
        described = subprocess.run(
            ["git", "-C", ROOT, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {"optim.base_lr": ...}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
