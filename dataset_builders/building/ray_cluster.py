"""The same jobs on a Ray cluster: each shard is a Ray task of one CPU (`--ray ADDRESS`, or `--ray local`).

Every node must see tubecell, the sources and DATASET (or --work) under the same paths. A task whose node dies is started again
by Ray; jobs are idempotent, so that costs time and nothing else. Ray is an optional extra: `pip install 'tubecell[ray]'`.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dataset_builders.building.attempts import Bars, Tally
from dataset_builders.building.jobs import Attempt, BuildState, Hold, Job
from dataset_builders.building.request import Build
from pipeline.children import ROOT
from pipeline.machine import usable_cores

RETRIES = 3  # of a task whose process or node died


def encode_on_ray(
    address: str,
    state: BuildState,
    attempts: Sequence[Attempt],
    build: Build,
    committed: Callable[[Job], None] = lambda job: None,
) -> Tally:
    """Turn every job into a shard and commit it; `committed` is told of each.

    Raises ValueError if there is no Ray, or no cluster at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ValueError("--ray needs the package ray: pip install 'tubecell[ray]'") from None
    where = {"num_cpus": usable_cores(), "include_dashboard": False} if address == "local" else {"address": address}
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    try:
        ray.init(**where, runtime_env=environment, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise ValueError(f"--ray {address}: no cluster answers there ({error}); allowed are 'local' and HOST:PORT") from None
    tally = Tally()
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(encode_one)
        alone = replace(build, limits=replace(build.limits, workers=1))
        running = {task.remote(state.dataset, attempt, alone): attempt for attempt in attempts}
        with Bars(attempts) as progress:
            while running:
                [reference], _ = ray.wait(list(running), num_returns=1)
                attempt = running.pop(reference)
                rejects, done = ray.get(reference)
                for _ in range(attempt.num_requests):
                    progress.update(attempt.job.source, rejects)
                progress.rejected(attempt.job.source, rejects)
                tally.add(done)
                committed(attempt.job)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # what it would be without Ray
    finally:
        ray.shutdown()
    return tally


def encode_one(dataset: Path, attempt: Attempt, build: Build) -> tuple[int, Tally]:
    """A Ray task: one shard. Returns the number of its rejects, and what came of those that were tried again."""
    from dataset_builders.building.encode import encode

    with BuildState(dataset, Hold.STARTER) as state:
        tally = encode(state, [attempt], build)
        return len(state.rejects(attempt.job)), tally
