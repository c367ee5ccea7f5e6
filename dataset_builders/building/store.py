"""A dataset behind a URL while it is built: what is there, what is still to be uploaded, and in which order.

    URL/shards/NAME-000000.tar, .idx   uploaded as soon as they are finished, then deleted from the work folder
    URL/.build/                        options, plans and markers of finished jobs, see jobs.py; a marker follows its shard
    URL/report.html, dataset.json ...  at the end, and manifest.parquet last

A build runs in a local work folder, which looks like any dataset that is built. Object storage has no rename and needs none: an
object appears when it is complete, and readers trust only the manifest. Whatever lies there already with the same bytes is not
uploaded again. The state behind the URL is what counts: a machine with an empty work folder goes on from it, and the shares of
--job need nothing in common but the URL. Object storage has no locks, either: two machines must not do the same share.
"""

import re
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from dataset_builders.building.jobs import BuildState, Job
from pipeline.storage import files
from pipeline.storage.remote import StorageError

UPLOADS = 4  # shards on their way at once
MAX_WAITING = 8  # finished shards on the disk, those on their way among them; then the build waits
FETCHES = 16  # small files that are read at once
ATTEMPTS = 3  # at a file whose bytes arrive changed; errors are repeated by pipeline.files
TABLES = ("manifest.parquet", "rejects.parquet", "dropped.parquet", "dataset.json", ".build/finished.json")  # as published last
STATE = re.compile(r"\.build/(options\.json|plan-\d{3,}\.parquet|done/[A-Za-z0-9_-]+\.(json|parquet))")


def claim(work: Path, url: str | None) -> None:
    """Note in a folder that it is for the build of `url`, None for a local one; raises ValueError if it is another's."""
    before = files.origin(work)
    if url is None:
        if before is not None:
            raise ValueError(f"--out {work} is the work folder of {before}; name that, or another folder")
    elif before is None and (work / ".build").is_dir():
        raise ValueError(f"--work {work} is a dataset of its own; a build of {url} needs another folder, such as a new one")
    elif before not in (None, url):
        raise ValueError(f"--work {work} belongs to the build of {before}; {url} needs another one")
    else:
        work.mkdir(parents=True, exist_ok=True)
        files.write_durably(work / files.ORIGIN, url.encode())


class Store:
    """What a build needs of the place behind `url`; a context manager, because it uploads in the background."""

    def __init__(self, url: str, state: BuildState) -> None:
        """Bring the work folder of `state` to what lies behind the URL. Raises OSError if that cannot be read."""
        self._url, self._state = url, state
        self._there = files.states(url)
        with ThreadPoolExecutor(FETCHES) as pool:
            list(pool.map(self._fetch, [name for name in self._there if name in TABLES or STATE.fullmatch(name)]))
        for name in set(TABLES) - set(self._there):
            (state.dataset / name).unlink(missing_ok=True)
        shards = {name: entry["size"] for name, entry in self._there.items() if re.fullmatch(r"shards/[^/]+\.tar", name)}
        state.elsewhere = {Path(name).stem: size for name, size in shards.items()}
        self._pool = ThreadPoolExecutor(UPLOADS)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put_plans(self) -> None:
        """Upload the options and what plans there are not yet. Raises OSError."""
        for file in (self._state.root / "options.json", *self._state.plans()):
            self._put(file)

    def add(self, job: Job) -> None:
        """Upload what a finished job made, in the background; first waits if many do. Raises OSError of earlier uploads."""
        while self._waiting and (len(self._waiting) >= MAX_WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._upload, job))

    def catch_up(self, jobs: Iterable[Job]) -> None:
        """Upload what finished jobs of an earlier, killed build left in the work folder. Raises OSError, as `add`."""
        for job in jobs:
            if self._tar(job).exists() or not self._lies_there(self._state.marker(job)):
                self.add(job)

    def wait(self) -> None:
        """Until all uploads have ended; raises OSError of the first that failed."""
        while self._waiting:
            self._waiting.popleft().result()

    def publish(self) -> None:
        """Upload the tables of the work folder, last of all the manifest. Raises OSError."""
        tables = [file for file in sorted(self._state.dataset.iterdir()) if file.is_file() and not file.name.startswith(".")]
        for file in sorted(tables, key=lambda file: file.name == "manifest.parquet"):
            if file.name != files.ORIGIN:
                self._put(file)

    def put_finished(self) -> None:
        """Say that what is published covers all jobs. Raises OSError."""
        self._put(self._state.root / "finished.json")

    def _upload(self, job: Job) -> None:
        tar, marker = self._tar(job), self._state.marker(job)
        index = tar.with_suffix(".idx")
        for file in (index, tar, marker.with_suffix(".parquet"), marker):
            if file.exists():  # not the shard of a job without clips, nor what was uploaded before a kill
                self._put(file)
        if tar.exists():
            self._state.elsewhere[job.name] = tar.stat().st_size
            index.unlink(missing_ok=True)
            tar.unlink()

    def _tar(self, job: Job) -> Path:
        return self._state.dataset / "shards" / f"{job.name}.tar"

    def _fetch(self, name: str) -> None:
        if not self._lies_there(file := self._state.dataset / name):
            files.write_durably(file, files.read(f"{self._url}/{name}"))

    def _put(self, file: Path) -> None:
        if self._lies_there(file):
            return
        for _ in range(ATTEMPTS):
            files.upload(file, self._address(file))
            if files.is_copy(self._address(file), file):
                return
        where = self._address(file)
        raise StorageError(f"{where}: other bytes arrived than were sent, {ATTEMPTS} times; check the network", transient=True)

    def _lies_there(self, file: Path) -> bool:
        """Whether the same bytes were behind the URL when the build began."""
        known = self._there.get(file.relative_to(self._state.dataset).as_posix())
        return known is not None and file.exists() and files.is_copy(self._address(file), file, known)

    def _address(self, file: Path) -> str:
        return f"{self._url}/{file.relative_to(self._state.dataset).as_posix()}"
