"""A run's folder: what was asked for, with which software, whether it is done; and a lock, so that one run writes to it."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.files import write_durably
from pipeline.manifest import Manifest
from train import checkpoints
from train.checkpoint_files import clean_up
from train.config import PretrainConfig
from train.meters import keep_lines
from train.parallel import Ranks
from train.run_checkpoints import RunCheckpoints, on_rank_0

ROOT = Path(__file__).resolve().parent.parent
# what may change from one start of a run to the next; a change of anything else would be another run
CHANGEABLE = (
    *("data", "out", "steps", "epochs", "log_every", "save_every", "save_in_background", "keep_last", "keep_every", "mirror"),
    *("wandb", "reconstruct_every", "profile", "profile_loader", "dry_run", "expected_clips"),
)
CHANGEABLE_PARTS = ("optim.", "compute.", "views.workers", "views.prefetch")


class RunFolder:
    """RUN/config.json, environment.json, complete, and the paths of the rest. Every rank has one, rank 0 writes."""

    def __init__(self, config: PretrainConfig, ranks: Ranks) -> None:
        """Create the folder or go on with it, from the newest whole checkpoint in it or in the mirror; all ranks agree.

        Raises ValueError on every rank if another run is writing to it, if it holds a checkpoint of a run with another model,
        views or seed, naming what differs, if none of its checkpoints is whole, or if some rank cannot see it.
        """
        assert config.out is not None and config.data is not None
        self.path, self._ranks = config.out, ranks
        self.checkpoints = self.path / "checkpoints"
        self.completed_steps: int | None = None  # of the run, if it is complete
        self.changes: list[str] = []  # of the configuration since the last start
        on_rank_0(ranks, self._lock_it)
        self.saver = RunCheckpoints(
            self.checkpoints, ranks, keep_last=config.keep_last, keep_every=config.keep_every, mirror=config.mirror
        )
        self.checkpoint = self.saver.find()  # to go on from
        self.completed_steps = on_rank_0(ranks, partial(self._open, config))
        self.progress = checkpoints.read_progress(self.checkpoint) if self.checkpoint else None
        self.first_step = self.progress.step if self.progress else 0  # that are done

    def complete(self, steps: int) -> None:
        """Mark the run as done: what a scheduler should look at, because torchrun returns 1 after a SIGTERM."""
        if self._ranks.rank == 0:
            write_durably(self.path / "complete", (json.dumps({"steps": steps, "time": time.time()}) + "\n").encode())

    def begin(self) -> None:
        """The run is not complete any more, if it was: it gets more steps."""
        if self._ranks.rank == 0:
            (self.path / "complete").unlink(missing_ok=True)

    def note(self, **facts: str | float | dict[str, float]) -> None:
        """Add to what environment.json says of this start."""
        if self._ranks.rank == 0:
            file = self.path / "environment.json"
            starts = json.loads(file.read_text())
            starts[-1].update(facts)
            write_durably(file, (json.dumps(starts, indent=1) + "\n").encode())

    def _lock_it(self) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing to {self.path}; wait for it, or choose another --out") from error
        clean_up(self.checkpoints)

    def _open(self, config: PretrainConfig) -> int | None:
        """Check what is asked for against what is there, and write it down -> steps of the run, if it is complete."""
        assert config.data is not None
        data = checkpoints.read_progress(self.checkpoint).loader if self.checkpoint else None
        manifest = Manifest(config.data, data.version if data else None)
        file = self.path / "config.json"
        if self.checkpoint:
            # a run that goes on from its mirror, on another machine, has no folder yet
            before = flatten(json.loads((file if file.exists() else self.checkpoint / file.name).read_text()))
            after = flatten(json.loads(json.dumps(asdict(config), default=str)))
            self.changes = [
                f"--{name.replace('_', '-')} {before.get(name)} -> {value}"
                for name, value in after.items()
                if before.get(name) != value
            ]
            frozen = [c for c in self.changes if not c[2:].replace("-", "_").startswith((*CHANGEABLE, *CHANGEABLE_PARTS))]
            if frozen:
                raise ValueError(
                    f"{self.path} holds another run: {'; '.join(frozen)}. Give the values it began with, or another --out"
                )
        resumed = (data.epoch, data.step * config.sampling.clips_per_step) if data else (0, 0)
        keep_lines(self.path / "failures.jsonl", lambda failure: (failure["epoch"], failure["position"]) < resumed)
        asked = json.dumps(asdict(config), indent=1, default=str) + "\n"
        self.saver.documents[file.name] = asked
        write_durably(file, asked.encode())
        starts_file = self.path / "environment.json"
        starts = json.loads(starts_file.read_text()) if starts_file.exists() else []
        starts.append(environment(manifest, self._ranks))
        write_durably(starts_file, (json.dumps(starts, indent=1) + "\n").encode())
        complete = self.path / "complete"
        return json.loads(complete.read_text())["steps"] if complete.exists() else None


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
