"""The checkpoints of a run while it runs: saved beside the training, thinned out, copied away, and found again whole.

A save copies each rank's share of the state into shared memory (the training stands still for that long, so that the optimizer
cannot move before it is done), and a process beside each rank writes it (`checkpoint_writer`). Later, between two steps, rank 0
gives what is written its final name and removes the older ones. It holds the run's lock: nothing that outlives a killed run can
name a checkpoint. `checkpoint_files` has the files, `checkpoint_mirror` the copies in object storage.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from pipeline.storage.files import sync_directory
from train.checkpoint.files import PROGRESS, damage, latest, listed, name_of, set_aside, surplus
from train.checkpoint.helper_process import HelperProcess, Post
from train.checkpoint.mirror import Mirror
from train.checkpoint.state import Progress
from train.checkpoint.writer import Staging, write, write_shipment
from train.compute.parallel import Ranks

MAX_FAILURES = 2  # saves in the background, in a row: one may be a passing trouble of the storage

Result = TypeVar("Result")


@dataclass(slots=True)
class _Save:
    """One that has been begun."""

    step: int
    temporary: Path
    ended: bool = False
    error: str | None = None


class RunCheckpoints:
    """The checkpoints of one run. Every rank has one and calls its methods at the same moments."""

    def __init__(
        self, folder: Path, ranks: Ranks, *, keep_last: int = 2, keep_every: int | None = None, mirror: str | None = None
    ) -> None:
        """`folder` is RUN/checkpoints, which all ranks see and whose lock rank 0 holds.

        The last `keep_last` stay, and those of the steps that `keep_every` divides. With a `mirror`, a URL, both rules hold
        there, and on disk the last ones stay.
        """
        self.folder = folder
        self.documents: dict[str, str] = {}  # small files to save with each checkpoint: name -> text
        self.say: Callable[[str], None] = print  # to people; only rank 0 does
        self._ranks, self._keep_last, self._keep_every = ranks, keep_last, keep_every
        self._staging: Staging | None = None
        self._writer: HelperProcess | None = None
        self._save: _Save | None = None
        self._failures = 0  # in a row
        self._broom = ThreadPoolExecutor(1)  # removing many GB takes seconds
        self._mirror = Mirror(mirror) if mirror else None
        self._uploader: HelperProcess | None = None
        self._to_upload: Path | None = None
        self._uploading: Path | None = None
        self._fetched: set[str] = set()

    def find(self) -> Path | None:
        """The newest whole checkpoint, on disk or fetched from the mirror; None if there is none at all.

        The ranks share the reading, and agree. A damaged one is set aside and the one before is taken, which rank 0 says.
        Raises ValueError on all ranks if there are some, but none is whole; if the mirror cannot be read; or if some rank
        cannot see the folder.
        """
        damaged: list[str] = []
        while (candidate := on_rank_0(self._ranks, self._candidate)) is not None:
            if not all(self._ranks.gather(candidate.is_dir())):
                raise ValueError(f"not every rank can see {candidate}; --out must be a folder that all nodes share")
            wrong = [w for w in self._ranks.gather(damage(candidate, self._ranks.rank, self._ranks.world_size)) if w]
            if not wrong:
                if damaged and self._ranks.rank == 0:
                    self.say(f"{'; '.join(damaged)}: set aside as damaged-...; going on from {candidate.name}")
                return candidate
            damaged.append(f"checkpoint {candidate.name} is damaged ({wrong[0]})")
            on_rank_0(self._ranks, partial(self._discard, candidate))
        if damaged:
            raise ValueError(
                f"{self.folder} has no whole checkpoint left: {'; '.join(damaged)}. They are called damaged-... now; "
                "the same command begins the run anew"
            )
        return None

    def start(self, nbytes: int | None = None) -> None:
        """Start the writing processes, which takes them two seconds, unless they are there. `nbytes` is how much of a state a
        rank will save, if that is known before."""
        if not self._ranks.any(self._writer is None or not self._writer.alive):
            return
        self._stop_writer()  # the writers of a group come and go together
        if self._staging is None:
            self._staging = Staging(self._ranks.device)
            if nbytes:
                self._staging.reserve(nbytes)
        group, ranks = self._ranks.gather(uuid.uuid4().hex)[0], self._ranks
        self._writer = HelperProcess(Post(ranks.rank, ranks.world_size, group, self._staging.memfd, Staging.__module__))

    def save(self, state: dict[str, Any], progress: Progress, *, background: bool = True) -> None:
        """Save a checkpoint of `state_of` a training, after the one before; when this returns, the state may change.

        In the background, this copies the state and returns. Otherwise the trainer writes, without a copy, and without a
        process that may have been ended with the rest of the job; the checkpoint is on disk, and on the mirror, when this
        returns. Raises OSError on all ranks if that failed, or if the last two saves in the background did; the checkpoints
        before are as they were.
        """
        self.wait()
        self._save = _Save(progress.step, self.folder / f".writing-{self._ranks.gather(uuid.uuid4().hex)[0]}")
        documents = {**self.documents, PROGRESS: json.dumps(asdict(progress), indent=1) + "\n"}
        if background:
            self._ship(state, documents)
            return
        error = None
        try:
            write(self._save.temporary, state, DefaultSavePlanner(), documents, self._ranks.rank, self._ranks.gather)
        except OSError as caught:
            error = str(caught)
        self._end(error)
        self._settle(most_failures=0)
        if self._mirror and (upload_error := on_rank_0(self._ranks, self._finish_upload)):
            raise OSError(f"step {progress.step} is saved in {self.folder}, but not in {self._mirror.url}: {upload_error}")

    def poll(self) -> None:
        """Between two steps: give what has been written its name, and see to the upload. Does not wait for anything."""
        if self._ranks.rank != 0:
            return
        if self._save and not self._save.ended and self._writer and self._writer.answered():
            self._end(self._writer.outcome())
        self._upload()

    def wait(self) -> None:
        """Wait until what is being saved is on disk. Raises OSError as `save` does."""
        if self._save:
            if not self._save.ended:
                assert self._writer is not None
                self._end(self._writer.outcome())
            self._settle(most_failures=MAX_FAILURES - 1)

    def close(self) -> None:
        """Let what is being written end, and take it in. The one method that a rank may call alone, after an error."""
        if self._save and not self._save.ended and self._writer:
            self._end(self._writer.outcome())
        self._stop_writer()
        if self._uploader:
            self._uploader.close(at_once=True)
        if self._staging:
            self._staging.close()
        self._broom.shutdown()

    def _ship(self, state: dict[str, Any], documents: dict[str, str]) -> None:
        """Copy the state, and have it written; if a rank has no memory for the copy, that is a save that failed."""
        self.start()
        assert self._save is not None and self._writer is not None and self._staging is not None
        shipment, error = None, None
        try:
            shipment = self._staging.stage(state, self._ranks.rank)
        except OSError as caught:
            error = f"rank {self._ranks.rank} has no memory for the copy: {caught}"
        errors = [error for error in self._ranks.gather(error) if error]
        if errors:
            self._end(errors[0])
        else:
            self._writer.submit(write_shipment, self._save.temporary, shipment, documents)

    def _end(self, error: str | None) -> None:
        """This rank knows how the save went. Rank 0, which hears last, gives it its name."""
        assert self._save is not None
        self._save.ended, self._save.error = True, error
        if self._ranks.rank != 0:
            return
        try:
            if error is None:
                final = self.folder / name_of(self._save.step)
                self._save.temporary.rename(final)  # fails if there is one
                sync_directory(self.folder)
                self._to_upload = final if self._mirror else None
                self._thin_out()
        except OSError as caught:
            error = self._save.error = str(caught)
        if error is not None:
            shutil.rmtree(self._save.temporary, ignore_errors=True)
            self.say(f"step {self._save.step} could not be saved: {error}; the last checkpoint is {latest(self.folder)}")

    def _settle(self, most_failures: int) -> None:
        """All ranks agree on how the save went."""
        assert self._save is not None
        errors = [error for error in self._ranks.gather(self._save.error) if error]
        step, self._save = self._save.step, None
        if not errors:
            self._failures = 0
            return
        self._failures += 1
        self._stop_writer()  # the writers may wait for each other in the wrong places
        if self._failures > most_failures:
            kept = latest(self.folder)
            raise OSError(f"could not save step {step} in {self.folder}: {errors[0]}; the last checkpoint is {kept}")

    def _stop_writer(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None

    def _thin_out(self) -> None:
        names = [checkpoint.name for checkpoint in listed(self.folder)]
        for name in surplus(names, self._keep_last, None if self._mirror else self._keep_every):
            if self._uploading is None or name != self._uploading.name:
                doomed = self.folder / f".deleting-{name}"  # a half-deleted one must not look whole
                (self.folder / name).rename(doomed)
                self._broom.submit(shutil.rmtree, doomed, ignore_errors=True)

    def _upload(self) -> str | None:
        """On rank 0, see to the upload of the newest checkpoint; those that come too fast for the network are left out.

        Returns what went wrong with one that has just ended."""
        error = None
        if self._uploading and self._uploader and self._uploader.answered():
            error = self._uploader.outcome()
            if error:
                self.say(f"{self._uploading.name} could not be uploaded: {error}; it is in {self.folder}")
            self._uploading = None
        if self._mirror and self._to_upload and not self._uploading:
            if self._uploader is None or not self._uploader.alive:
                self._uploader = HelperProcess(Post())
            self._uploader.submit(self._mirror.publish, self._to_upload, self._keep_last, self._keep_every)
            self._uploading, self._to_upload = self._to_upload, None
        return error

    def _finish_upload(self) -> str | None:
        error = None
        while self._mirror and (self._to_upload or self._uploading):
            if self._uploading and self._uploader:
                self._uploader.wait()
            error = self._upload()
        return error

    def _candidate(self) -> Path | None:
        local = {checkpoint.name: checkpoint for checkpoint in listed(self.folder)}
        name = max([*local, *(self._mirror.names() if self._mirror else [])], default=None)
        if name is None or name in local:
            return local.get(name or "")
        assert self._mirror is not None
        self._fetched.add(name)
        self.say(f"fetching {name} from {self._mirror.url}")
        return self._mirror.fetch(name, self.folder)

    def _discard(self, checkpoint: Path) -> None:
        set_aside(checkpoint)
        if self._mirror and checkpoint.name in self._fetched:
            self._mirror.withdraw(checkpoint.name)


def on_rank_0(ranks: Ranks, function: Callable[[], Result]) -> Result:
    """What the function returns on rank 0, on all ranks. Raises ValueError on all if it raises that or OSError there."""
    result, error = None, None
    if ranks.rank == 0:
        try:
            result = function()
        except (OSError, ValueError) as caught:
            error = str(caught)
    result, error = ranks.gather((result, error))[0]
    if error is not None:
        raise ValueError(error)
    return result
