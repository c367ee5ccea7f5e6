"""A fault that hits every file is the machine's: it is told once and ends the build, and no file is blamed for it.

After some files in a row that failed for the same reason of the machine (and before a shard is committed of which every file
did) others of the same folder are asked, spread over all of it: whether they can be opened, or whether they fail as well. Where
one does not, the build goes on, and asks again after twice as many. Whether FFmpeg can still make clips is asked of one of our
own. A disk that is full needs no asking.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builders.building.jobs import BuildState
from dataset_builders.building.trial import NO_CLIP, our_video
from dataset_builders.building.worker import Worker
from dataset_builders.executors import Failure
from dataset_builders.media.clip import ClipRequest, Reject
from dataset_builders.media.probe import open_file
from dataset_builders.media.rejects import MACHINE, Reason, RejectedError

IN_A_ROW = 8  # failures, and as many others that fail as well: fewer files are told of one by one
OPENED = 1000  # files that are opened: if none of them can be, then with 95 % certainty less than 0.3 % of all could
TRIED = 8  # files that are tried as the workers would, where opening does not tell
ADVICE = {Reason.TIMEOUT: " Raise --time-limit.", Reason.OUT_OF_MEMORY: " Raise --memory-limit."}

# what a disk says, the scratch folder's, that no file is to blame for
FULL = ("No space left on device", "Disk quota exceeded", "Read-only file system", "Too many open files")


Work = Callable[[Worker, Sequence[ClipRequest]], Iterable[list[Any] | None]]


class CommonFault:
    """Looks at what becomes of one request after the other."""

    def __init__(self, state: BuildState, roots: Mapping[str, bytes], worker: Worker, work: Work) -> None:
        """`work` gives the results of requests, as `map_ordered` does."""
        self._state, self._roots, self._worker, self._work = state, roots, worker, work
        self._what: tuple[str, str, Reason] | None = None  # source, root and reason of the failures in a row
        self._example: Mapping[str, Any] = {}
        self._in_a_row, self._ask_at, self._asked = 0, IN_A_ROW, False
        self._of_job = [0, 0]  # requests, and those that failed so

    def saw(self, request: Mapping[str, Any], taken: bool, rejects: list[dict[str, Any]]) -> None:
        """A request and what became of it; raises ValueError if it fails as all do."""
        reason = Reason(rejects[0]["reason"]) if rejects and not taken else None
        what = (request["source"], request["root"], reason) if reason in MACHINE else None
        if what != self._what:
            self._what, self._in_a_row, self._ask_at, self._asked = what, 0, IN_A_ROW, False
            self._example = rejects[0] if rejects else {}
        self._of_job[0] += 1
        if what is None:
            return
        self._of_job[1] += 1
        self._in_a_row += 1
        if self._in_a_row >= self._ask_at:
            self._ask()

    def before_commit(self) -> None:
        """Raises ValueError if all requests of a job failed, as all others do."""
        requests, failures = self._of_job
        self._of_job = [0, 0]
        if requests == failures > 0 and not self._asked:
            self._ask()

    def _ask(self) -> None:
        assert self._what is not None
        source, root, reason = self._what
        self._asked, self._ask_at = True, 2 * self._in_a_row if self._in_a_row >= IN_A_ROW else IN_A_ROW
        detail = self._example["detail"]
        example = f"such as {os.fsdecode(self._example['path'])!r}: {detail}"
        again = "Put that right and run the same command again, which tries these files again"
        if self._in_a_row >= IN_A_ROW and reason is not Reason.UNREADABLE and any(sign in detail for sign in FULL):
            raise ValueError(f"{source}: {self._in_a_row} files in a row fail, {example}, in {self._worker.scratch}. {again}")
        if reason is not Reason.UNREADABLE and reason is not Reason.TIMEOUT and (why := self._trial()):
            raise ValueError(f"{source}: {NO_CLIP} ({why}). {again}")
        if reason not in (Reason.UNREADABLE, *ADVICE):
            return  # it lies with these files
        requests = self._others(source, root)
        if reason is Reason.UNREADABLE and not any(request.kind == "member" for request in requests):
            failed = [request for request in requests if not _opens(request)]
            advice = f" Is what holds {os.fsdecode(self._roots[root])!r} mounted, and may it be read?"
        else:
            requests = _spread(requests, TRIED)
            made = self._made(self._worker, requests)
            failed = [request for request, results in zip(requests, made, strict=True) if _reason(results) is reason]
            advice = ADVICE.get(reason, "")
        if IN_A_ROW <= len(requests) == len(failed):
            raise ValueError(f"{source}: all {len(failed)} files that were tried fail: {reason}, {example}.{advice} {again}")

    def _trial(self) -> str:
        """Why not even our own clip can be made by a worker, within its limits; empty if it can."""
        options = replace(self._worker.options, min_frames=1)
        with our_video() as request:
            request = request if options.preset == "copy" else replace(request, clip_frames=8)  # uses the scratch folder
            [results] = self._made(replace(self._worker, options=options), [request])
        return next((f"{one.reason}, {one.detail}" for one in results if isinstance(one, Reject | Failure)), "")

    def _made(self, worker: Worker, requests: Sequence[ClipRequest]) -> list[list[Any]]:
        made: list[list[Any]] = [[]]
        for results in self._work(worker, requests):
            if results is None:
                made.append([])
            else:
                made[-1] += [one if isinstance(one, Reject | Failure) else None for one in results]
        return made[:-1]

    def _others(self, source: str, root: str) -> list[ClipRequest]:
        """Requests of a folder, spread over all that were ever planned."""
        requests = pa.concat_tables([pq.read_table(file) for file in self._state.first_plans()], promote_options="default")
        requests = requests.filter((pc.field("source") == source) & (pc.field("root") == root))
        return list(clip_requests(requests.take(_spread(range(len(requests)), OPENED)), self._roots))


def clip_requests(requests: pa.Table, roots: Mapping[str, bytes]) -> Iterator[ClipRequest]:
    """Rows of a plan -> what workers are asked for."""
    for row in requests.drop_columns(["clips", "seconds"]).to_pylist():
        yield ClipRequest(folder=roots[row.pop("root")], **row)


def _spread(items: Sequence[Any], number: int) -> list[Any]:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)]


def _reason(results: list[Any]) -> Reason | None:
    return results[0].reason if results and all(results) else None


def _opens(request: ClipRequest) -> bool:
    path = os.path.join(request.folder, request.path)
    try:
        if request.kind == "frames":
            return bool(os.listdir(path))
        with open(open_file(path), "rb", buffering=0) as file:
            file.read(1)
    except (OSError, RejectedError):
        return False
    return True
