"""From jobs to shards, in worker processes of this machine, in order."""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Any

from dataset_builders.building.attempts import Bars, Tally, write_shard
from dataset_builders.building.common_fault import CommonFault, clip_requests
from dataset_builders.building.jobs import Attempt, BuildState, Job
from dataset_builders.building.request import Build
from dataset_builders.building.trial import ffmpeg_banner, try_here
from dataset_builders.building.worker import Worker
from dataset_builders.executors import map_ordered
from dataset_builders.media.clip import ClipRequest
from dataset_builders.media.ffmpeg_process import ffmpeg_path


def try_ffmpeg(build: Build) -> None:
    """Find the program and make a clip with it, once a process; raises ValueError if that cannot be."""
    program = os.environ["IMAGEIO_FFMPEG_EXE"] = ffmpeg_path()  # for the workers: each would search, and try it out
    ffmpeg_banner(program)
    if any(source.kind != "index" for source in build.sources):
        try_here(program, build.encoding)


def encode(
    state: BuildState, attempts: Sequence[Attempt], build: Build, committed: Callable[[Job], None] = lambda job: None
) -> Tally:
    """Turn every job into a shard and commit it; `committed` is told of each. Raises ValueError for what is wrong with all."""
    tally = Tally()
    if not attempts:
        return tally
    roots = {root: path for source in build.sources for root, path in source.roots().items()}
    known = {source.name for source in build.sources}
    for job in (attempt.job for attempt in attempts):
        if job.source not in known:
            raise ValueError(
                f"shard {job.name} is not finished; name its source {job.source!r}, too, as in the build that began"
            )
    try_ffmpeg(build)
    worker = Worker(os.fspath(state.dataset), os.fspath(state.root), build.encoding)
    limits = build.limits

    def work(worker: Worker, requests: Iterable[ClipRequest], number: int) -> Generator[list[Any] | None, None, None]:
        return map_ordered(worker, requests, min(limits.workers, number), limits.time_limit, int(limits.memory_limit * 2**30))

    fault = CommonFault(state, roots, worker, lambda worker, requests: work(worker, requests, len(requests)))
    requests = (
        request
        for attempt in attempts
        for request in clip_requests(state.requests(attempt.job), roots)
        if attempt.tried is None or request.key in attempt.tried
    )
    with closing(work(worker, requests, sum(one.num_requests for one in attempts))) as results, Bars(attempts) as progress:
        for attempt in attempts:
            tally.add(write_shard(state, attempt, results, progress, fault.saw, fault.before_commit))
            committed(attempt.job)
    return tally
