"""A run's folder: what was asked for, with which software, whether it is done; and a lock, so that one run writes to it."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch

from pipeline.console import complain, may_fail
from pipeline.sampling.splits import count_clips
from pipeline.settings import completed, fields_of, flag, flatten, kept, value_of, with_values
from pipeline.storage.dataset import Dataset
from pipeline.storage.file_lock import lock
from pipeline.storage.files import write_durably
from pipeline.storage.output_folder import refuse_for_run
from pipeline.version import git_commit, version
from train.checkpoint import state as checkpoints
from train.checkpoint.files import CONFIG, clean_up
from train.checkpoint.mirror import Mirror
from train.checkpoint.saving import RunCheckpoints, on_rank_0
from train.command_line import Kind, check_length, flags_of, is_place, read_toml, spoken
from train.compute.parallel import Ranks
from train.compute.startup import COMPILED, LOCK
from train.config import LoopConfig, read_config, read_stage
from train.watch.json_lines import keep_lines

ENVIRONMENT = "environment.json"
LENGTH = {"steps", "epochs"}  # two ways to say one thing
# before `begin`
PARTS = ("checkpoints", "metrics.jsonl", "tensorboard", COMPILED, "loader_profile", "reconstructions", "text_tower", LOCK)


class RunFolder:
    """RUN/config.json, environment.json, label_map.json (the classes of training, where clips are labelled), descent.json (what
    it began with, after --init), complete, and the paths of the rest. Every rank has one, rank 0 writes.

    What `begin` writes is written then, and not before: a start that is refused leaves no trace.
    """

    def __init__(
        self, stage: str, config: LoopConfig, ranks: Ranks, given: Collection[str] = (), recipe: str | None = None
    ) -> None:
        """Create the folder or go on with it, from the newest whole checkpoint in it or in the mirror; all ranks agree.

        `config` of this object is the one to run: fields that remember what older code did (`setting`), and those of a --config
        FILE, stay as they were begun, unless they are among the `given`. Raises ValueError on every rank if another run is
        writing to it, if it holds a checkpoint of another stage's run, or of one with another model, views or seed, naming what
        differs, if none of its checkpoints is whole, if some rank cannot see it, or if a new run would lie in a dataset or its
        sources."""
        assert config.out is not None
        self.path, self._ranks, self._stage, self._recipe = config.out, ranks, stage, recipe
        self.checkpoints = self.path / "checkpoints"
        self.changes: list[str] = []  # of the configuration since the last start
        self._begun = False
        self._facts: dict[str, Any] = {}  # noted before that
        self._made: list[Path] = []  # what was not there before
        self._lock: TextIOWrapper | None = None
        try:
            self._find(config, given)
        except BaseException:
            self.close()
            raise

    def _find(self, config: LoopConfig, given: Collection[str]) -> None:
        ranks = self._ranks
        on_rank_0(ranks, partial(check_place, config))
        on_rank_0(ranks, self._lock_it)
        self.saver = RunCheckpoints(
            self.checkpoints, ranks, keep_last=config.keep_last, keep_every=config.keep_every, mirror=config.mirror
        )
        self.checkpoint = self.saver.find()  # to go on from
        self.progress = checkpoints.read_progress(self.checkpoint) if self.checkpoint else None
        self.first_step = self.progress.step if self.progress else 0  # that are done
        self.config, self.changes, self.completed_steps = on_rank_0(ranks, partial(self._compare, config, given))
        self.manifest = self.config.dataset(self.progress.loader.version if self.progress else None)

    def document(self, name: str) -> Path | None:
        """The run's label_map.json or descent.json, if it has one: in its folder, or in the checkpoint that came back from the
        mirror."""
        folders = [self.path, *([self.checkpoint] if self.checkpoint else [])]
        return next((folder / name for folder in folders if (folder / name).exists()), None)

    def keep(self, name: str, values: list[Any]) -> None:
        """For rank 0: `begin` writes it, and it goes with every checkpoint."""
        self.saver.documents[name] = json.dumps(values, indent=1) + "\n"

    def complete(self, steps: int) -> None:
        """Mark the run as done: what a scheduler should look at, because torchrun returns 1 after a SIGTERM."""
        if self._ranks.rank == 0:
            write_durably(self.path / "complete", (json.dumps({"steps": steps, "time": time.time()}) + "\n").encode())

    def begin(self) -> None:
        """Write down what was asked for. The run is not complete any more, if it was: it gets more steps."""
        self._begun = True
        if self._ranks.rank != 0:
            return
        data = self.progress.loader if self.progress else None
        resumed = (data.epoch, data.step * self.config.sampling.clips_per_step) if data else (0, 0)
        keep_lines(self.path / "failures.jsonl", lambda failure: (failure["epoch"], failure["position"]) < resumed)
        for name, text in self.saver.documents.items():
            write_durably(self.path / name, text.encode())
        starts_file = self.path / ENVIRONMENT
        starts = json.loads(starts_file.read_text()) if starts_file.exists() else []
        starts.append(environment(self.manifest, self.config.sampling.split, self._ranks) | self._facts)
        write_durably(starts_file, (json.dumps(starts, indent=1) + "\n").encode())
        (self.path / "complete").unlink(missing_ok=True)

    def note(self, **facts: str | float | dict[str, float] | list[str]) -> None:
        """Add to what environment.json says of this start."""
        self._facts |= facts
        if self._ranks.rank == 0 and self._begun:
            file = self.path / ENVIRONMENT
            with may_fail(str(file)):
                starts = json.loads(file.read_text())
                starts[-1].update(facts)
                write_durably(file, (json.dumps(starts, indent=1) + "\n").encode())

    def close(self) -> None:
        """Give the folder free. What was made in it for a start that came to nothing goes, and it, and what it lies in, if they
        were made, too, and are empty."""
        parts = [] if self._begun else [path for path in self._made if path.parent == self.path]
        for part in parts:
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        with suppress(OSError):  # what another run has come to lie in stays
            for folder in () if self._begun else [path for path in self._made if path.parent != self.path]:
                folder.rmdir()
        if self._lock:
            self._lock.close()
        self._made, self._lock = [], None

    def _lock_it(self) -> None:
        parts = [self.path / name for name in PARTS]
        self._made = [path for path in (*parts, self.path, *self.path.parents) if not path.exists()]
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / LOCK).open("w")
        try:
            lock(self._lock)
        except BlockingIOError as error:
            self._made = []
            raise ValueError(f"another process is writing to {self.path}; wait for it, or choose another --out") from error
        clean_up(self.checkpoints)

    def _compare(self, config: LoopConfig, given: Collection[str]) -> tuple[LoopConfig, list[str], int | None]:
        """What is asked for against what is there -> what to run, what has changed, and the steps of a run that is complete."""
        changes: list[str] = []
        if not self.checkpoint:
            check_length(config, given)
        else:
            # a run that goes on from its mirror, on another machine, has no folder yet
            file = self.path / CONFIG if (self.path / CONFIG).exists() else self.checkpoint / CONFIG
            if (theirs := read_stage(file)) != self._stage:
                raise ValueError(f"{self.path} holds a run of `{theirs}`, not of `{self._stage}`; give another --out")
            before = completed(read_config(file), config)
            config = with_values(config, kept(before, config, given))
            config = over_file(config, before, given)
            config, told = self._length(config, before, given)
            before, after = (flatten(json.loads(json.dumps(values, default=str))) for values in (before, asdict(config)))
            fields = fields_of(config)
            if after["steps"]:
                before["epochs"] = after["epochs"]  # which then say nothing
            changed = [name for name, value in after.items() if before[name] != value]
            changes = told + [f"{flag(name)} {before[name]} -> {after[name]}" for name in changed]
            frozen = [f"{flag(name)} {before[name]} -> {after[name]}" for name in changed if not fields[name][1]]
            frozen += [f"{flag(name)}, which this tubecell does not know (update it)" for name in before.keys() - after.keys()]
            if frozen:
                raise ValueError(
                    f"{self.path} holds another run: {'; '.join(frozen)}. Give the values it began with, or another --out"
                )
        named = {"stage": self._stage, "recipe": self._recipe}
        self.saver.documents[CONFIG] = json.dumps(named | asdict(config), indent=1, default=str) + "\n"
        complete = self.path / "complete"
        return config, changes, json.loads(complete.read_text())["steps"] if complete.exists() else None

    def _length(self, config: LoopConfig, before: Mapping[str, Any], given: Collection[str]) -> tuple[LoopConfig, list[str]]:
        """Steps or epochs of a run that goes on, and what is to be said. Raises ValueError if two things are asked for.

        Older code wrote both down, and let steps win: the command line's, or else the recipe's. A run that was begun so
        goes on so, if it is asked for in the same words.
        """
        starts = self.path / ENVIRONMENT  # not of a run that comes back from its mirror: taken for one of those
        command = json.loads(starts.read_text())[-1]["command"] if starts.exists() else ["", "--epochs"]
        steps, epochs, named = before["steps"], before["epochs"], flags_of(command)
        if {"steps", "epochs"} <= set(given):
            if (config.steps, config.epochs) != (steps, epochs):
                check_length(config, given)
        elif config.steps or not steps or config.epochs != epochs or "epochs" not in named or "steps" in named:
            return config, []
        said = f"--epochs {epochs} took no effect when this run was begun, and takes none now: it has {steps} steps"
        return replace(config, steps=steps), [said]


def over_file(config: LoopConfig, before: Mapping[str, Any], given: Collection[str]) -> LoopConfig:
    """What a run that goes on has wins over --config FILE, and it says so; but where things lie is the file's, if it may
    change."""
    if config.config is None:
        return config
    fields, values, told = fields_of(config), dict[str, Any](), []
    of_file = read_toml(config.config, config)[1].keys() - set(given)
    for name in of_file | (LENGTH if of_file & LENGTH and not LENGTH & set(given) else set()):
        field, may_change = fields[name]
        value = Kind.of(field.type).read(spoken(before[name]), name)
        if (is_place(field) and may_change) or value == (asked := value_of(config, name)):
            continue
        values[name] = value
        if name in of_file:
            words = " ".join(spoken(asked))
            remedy = f"{flag(name)} {words} changes it" if may_change else "another --out begins a run with that"
            told.append(f"{name} {words}, but the run goes on with {' '.join(spoken(value))}; {remedy}")
    for line in sorted(told):
        complain(f"--config {config.config} has {line}")
    return with_values(config, values)


def check_place(config: LoopConfig) -> None:
    """Raises ValueError if a run would be written into a dataset or its sources; one that was begun there goes on."""
    assert config.out is not None
    try:
        refuse_for_run(config.out, config.place, config.mirror)
    except ValueError:
        if not (config.mirror and Mirror(config.mirror).names()):
            raise


def environment(manifest: Dataset, split: str, ranks: Ranks) -> dict[str, Any]:
    """One start of a run: when, where, with which software and data."""
    on_gpu = ranks.device.type == "cuda"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "folder": str(Path.cwd()),  # that relative paths of the command begin in
        "tubecell": version(),
        "commit": git_commit(),
        "dataset": {
            "fingerprint": manifest.fingerprint,
            "version": manifest.version,
            "split": split,
            "clips": count_clips(manifest, split),
        },
        "world_size": ranks.world_size,
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("torch", "timm", "av", "numpy", "pyarrow")},
        "cuda": torch.version.cuda if on_gpu else None,
    }
