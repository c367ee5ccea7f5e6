"""One attempt at a job: what became of its requests goes into its shard, in their order, and into its marker.

Of a job that was done before only some requests are tried. What there is of the others is copied from the shard as it was, so
that it comes out as if all had been taken at once, and is copied only once a new clip is there. A shard that a published
manifest names is made again with exactly the clips that it had, and with zeros where clips were removed for good.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Any

import pyarrow.parquet as pq

from dataset_builders.building.jobs import Attempt, BuildState, Job
from dataset_builders.executors import Failure
from dataset_builders.media.clip import EncodedClip
from dataset_builders.media.rejects import MACHINE, Reason
from dataset_builders.tars.members import IndexedClip
from dataset_builders.tars.writer import ShardWriter, tar_members
from pipeline.progress import Progress
from pipeline.storage import files
from pipeline.storage.manifest_writer import REJECT_SCHEMA

COLUMNS = ["key", "root", "path", "source", "split", "source_id"]
LATER = "it was not taken when its shard was first made, and is now: the next build takes it"


class Tally:
    """What came of the requests that were tried again; and whether anything was written down at all."""

    def __init__(self) -> None:
        self.taken = 0
        self.rejected = Counter[str]()
        self.changed = False

    def add(self, other: "Tally") -> None:
        self.taken += other.taken
        self.rejected += other.rejected
        self.changed |= other.changed

    def count(self, taken: bool, rejects: list[dict[str, Any]]) -> None:
        """One request; of one that gave neither, all that it gives was there before."""
        if rejects:
            self.rejected[rejects[0]["reason"]] += 1
        elif taken:
            self.taken += 1

    def __str__(self) -> str:
        """Empty if nothing was tried again."""
        number = self.taken + self.rejected.total()
        if not number:
            return ""
        came = [f"{self.taken} taken now"]
        for reason, count in self.rejected.most_common():
            came.append(f"{count} still {reason}" if reason in MACHINE else f"{count} rejected as {reason}")
        return f"{number} earlier reject{'s' * (number > 1)} tried again: {', '.join(came)}"


class Bars(ExitStack):
    """One per source: requests, rate, time left, rejects."""

    def __init__(self, attempts: Iterable[Attempt]) -> None:
        super().__init__()
        totals = Counter[str]()
        for attempt in attempts:
            totals[attempt.job.source] += attempt.num_requests
        self._bars: dict[str, Progress] = {}
        for i, (source, total) in enumerate(totals.items()):
            bar = Progress(total=total, unit="file", desc=source, position=i, dynamic_ncols=True)
            self._bars[source] = self.enter_context(bar)
        self._rejects = Counter[str]()

    def update(self, source: str, rejects_of_job: int) -> None:
        bar = self._bars[source]
        if not bar.disable:
            bar.set_postfix(rejects=self._rejects[source] + rejects_of_job, refresh=False)
        bar.update()

    def rejected(self, source: str, number: int) -> None:
        self._rejects[source] += number


class Kept:
    """What an earlier attempt at a job left of the requests that are not tried now: rows and rejects by request, the shard."""

    def __init__(self, state: BuildState, attempt: Attempt) -> None:
        self._state, self._job = state, attempt.job
        self.size = 0
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.rejects: dict[str, list[dict[str, Any]]] = {}
        self.all_rejects: list[dict[str, Any]] = []
        self._names: dict[int, str] = {}  # of the members of the shard, by their offset
        marker = state.marker(attempt.job)
        if attempt.tried is None or not marker.exists():
            return
        if attempt.held is None:
            self.size = state.content(attempt.job)["shard_size"]
            requests = {*state.keys(attempt.job)}
            for row in pq.read_table(marker.with_suffix(".parquet")).to_pylist():
                key = row["key"] if row["key"] in requests else row["key"].rpartition("-")[0]
                self.rows.setdefault(key, []).append(row)
        self.all_rejects = state.rejects(attempt.job)
        for reject, keys in zip(self.all_rejects, state.rejected_requests(attempt.job, self.all_rejects), strict=True):
            if left := sorted(keys - attempt.tried):
                self.rejects.setdefault(left[0], []).append(reject)

    def clip(self, row: Mapping[str, Any]) -> EncodedClip:
        """The bytes of a row, from the shard as it was; raises OSError."""
        shard = self._state.dataset / row["shard"]
        if not self._names:
            if not shard.exists():  # it was uploaded, and comes back whole or not at all
                temporary = shard.with_name(f".{shard.stem}.{os.getpid()}.tar.tmp")
                files.download(f"{files.origin(self._state.dataset)}/{row['shard']}", temporary)
                os.replace(temporary, shard)
            self._names = {offset: name for name, offset, _ in tar_members(shard)}
        with shard.open("rb") as file:
            data = os.pread(file.fileno(), row["size"], row["offset"])
        return EncodedClip(data, self._names[row["offset"]].rpartition(".")[2], dict(row))


class Shard:
    """Gets the clips of a job in their order: new ones, and those that are kept, which wait for the first new one."""

    def __init__(self, state: BuildState, job: Job, kept: Kept, places: Mapping[str, Mapping[str, Any]]) -> None:
        """`places`: rows by key of a shard some of whose clips were removed; the others come to lie where they lay."""
        self._state, self._job, self._kept, self._places = state, job, kept, places
        self._writer: ShardWriter | None = None
        self._waiting: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []  # of clips that stay where they lie
        self.changed = False
        self.hashes: dict[str, str] = {}

    def keep(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            if row["shard"] != f"shards/{self._job.name}.tar":
                self._rows.append(row)
            elif self._writer:
                self._writer.add(self._kept.clip(row))
            else:
                self._waiting.append(row)

    def add(self, clip: EncodedClip | IndexedClip, root: str) -> None:
        self.changed = True
        row = {**clip.row, "root": root}
        self.hashes[row["key"]] = row["content_hash"]
        if isinstance(clip, IndexedClip):
            self._rows.append(row)
            return
        if self._writer is None:
            self._writer = ShardWriter(self._state.dataset, self._job.name)
            waiting, self._waiting = self._waiting, []
            self.keep(waiting)
        self._writer.add(EncodedClip(clip.data, clip.extension, row), (self._places.get(row["key"]) or {}).get("offset"))

    def finish(self) -> tuple[list[dict[str, Any]], int]:
        """(rows of all clips, bytes of the shard)"""
        if self._writer is None:
            rows, size = [*self._rows, *self._waiting], self._kept.size
        else:
            rows, size = [*self._rows, *self._writer.finish()], self._writer.size
        if self._places:
            made = {row["key"]: row for row in rows}
            rows = [made.get(key, dict(row)) for key, row in self._places.items() if key in made or not row["size"]]
        return rows, size

    def abandon(self) -> None:
        if self._writer:
            self._writer.abandon()


def write_shard(
    state: BuildState,
    attempt: Attempt,
    results: Iterator[list[Any] | None],
    progress: Bars,
    saw: Callable[[Mapping[str, Any], bool, list[dict[str, Any]]], None],
    before_commit: Callable[[], None],
) -> Tally:
    """Take the results of the requests that are tried, in order, and commit the job if that changes it.

    `saw` is told of each request, whether anything was taken of it and why not; it and `before_commit` may raise. Raises
    ValueError if a shard that is made again would not hold what it had.
    """
    job, kept, tally = attempt.job, Kept(state, attempt), Tally()
    first = attempt.tried is None
    again = state.is_repeated(job) and not state.marker(job).exists() if first else attempt.held is None
    shard = Shard(state, job, kept, attempt.rows)
    rejects: list[dict[str, Any]] = []
    try:
        for request in state.requests(job).select(COLUMNS).to_pylist():
            key = request["key"]
            before = {row["key"]: row for row in kept.rows.get(key, ())}
            if attempt.tried is not None and key not in attempt.tried:
                shard.keep(before.values())
                rejects += kept.rejects.get(key, ())
                continue
            new, left_out, failed = False, False, len(rejects)
            for result in chain.from_iterable(iter(results.__next__, None)):
                if not isinstance(result, EncodedClip | IndexedClip):
                    where = {} if isinstance(result, Failure) else {"start": result.start, "end": result.end}
                    rejects.append({**request, **where, "reason": str(result.reason), "detail": result.detail})
                elif result.row["key"] in before:
                    shard.keep([before.pop(result.row["key"])])
                elif attempt.held is not None and result.row["key"] not in attempt.held:
                    left_out |= result.row["key"] not in attempt.rows  # else it was removed
                elif result.row["key"] not in attempt.elsewhere:
                    shard.add(result, request["root"])
                    new = True
            shard.keep(before.values())  # what this attempt did not come to
            if left_out and len(rejects) == failed and not state.is_tried_later(job, key):
                rejects.append({**request, "reason": str(Reason.UNREADABLE), "detail": LATER})
            if again:
                tally.count(new, rejects[failed:])
            elif first:
                saw(request, new, rejects[failed:])
            progress.update(job.source, len(rejects))
        if attempt.held is not None and attempt.exact:
            _check_held(state, attempt, shard.hashes, rejects)
        before_commit()
        rows, size = shard.finish()
    except BaseException:
        shard.abandon()
        raise
    progress.rejected(job.source, len(rejects))
    if first or attempt.held is not None or shard.changed or _facts(rejects) != _facts(kept.all_rejects):
        state.commit(job, rows, rejects, size)
        tally.changed = True
    return tally


def _facts(rejects: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    return [[reject.get(name) for name in REJECT_SCHEMA.names] for reject in rejects]


def _check_held(state: BuildState, attempt: Attempt, made: Mapping[str, str], rejects: Iterable[Mapping[str, Any]]) -> None:
    assert attempt.held is not None
    wrong = [key for key, digest in attempt.held.items() if made.get(key) != digest]
    if not wrong:
        return
    why = "has other bytes: its source, or the tools that dataset.json lists, have changed"
    if wrong[0] not in made:
        causes = [reject for reject in rejects if wrong[0].startswith(reject.get("key", wrong[0]))]
        why = f"is missing: {causes[0]['reason']}, {causes[0]['detail']}" if causes else "is missing"
    shard = f"{state.dataset}/shards/{attempt.job.name}.tar"
    raise ValueError(
        f"{shard} is lost, and cannot be made again as it was: clip {wrong[0]} {why}. "
        "Put its source back, or restore the shard from a copy, and run the same command again"
    )
