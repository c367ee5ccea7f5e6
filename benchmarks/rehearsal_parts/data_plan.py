"""What sampling costs a node, measured by the real code in a process of its own, and what it reads in an epoch.

    data_plan.py DATASET 512 8 8192 global      # prints JSON

A loader's own parts but for decoding: the manifest, the sampler, the notices; then a step of each of the node's ranks, and the
same from a state in mid-epoch. Memory is what a process adds of its own, for two processes a rank, trainer and sidecar. The
columns are a file that all of them map: its pages are counted once, and beside that: the kernel may drop them.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from pipeline.console import prepare

    prepare()

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.sampling.notices import notices
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.sampling.sampler import TrainingSampler
from pipeline.storage.manifest import Manifest
from pipeline.storage.read_ahead import GET_BYTES, ReadAhead

STEPS, WINDOWS = 24, 24  # looked at, for balance and requests
PROCESSES = 2  # of a rank that hold the manifest: trainer and sidecar


def recipe_of(shuffle: str, world_size: int, views_per_step: int, seed: int = 0) -> SamplingRecipe:
    """The paper's, for ViT-g; lanes that so many ranks can share: the default's 768 or more."""
    lanes = -(-768 // world_size) * world_size if shuffle == "window" else None
    return SamplingRecipe(views_per_step=views_per_step, shuffle=shuffle, lanes=lanes, patch_size=14, seed=seed)  # type: ignore[arg-type]


def measure(dataset: str, world_size: int, gpus: int, views_per_step: int, shuffle: str) -> dict[str, Any]:
    """Seconds and bytes, by name."""
    recipe = recipe_of(shuffle, world_size, views_per_step)
    before = anonymous()
    found: dict[str, Any] = {"lanes": recipe.lanes}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        result = work()
        found[name] = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        return result

    manifest = timed("open", lambda: Manifest(dataset))
    sampler = timed("sampler", lambda: TrainingSampler().of(manifest, recipe))
    timed("notices", lambda: notices(manifest, recipe))

    def draw(epoch: int, step: int) -> None:
        for rank in range(gpus):
            positions = sampler.positions(step, rank, world_size, 0)
            clips = sampler.clips(epoch, positions, np.zeros_like(positions))
            sampler.masks(epoch, positions)
            for row in clips.rows.tolist():
                manifest.clip(row)

    timed("a step of the node's ranks", lambda: draw(0, 0))

    def resume() -> None:
        fresh = TrainingSampler().of(Manifest(dataset), recipe)
        positions = fresh.positions(fresh.epoch_end // 2, 0, world_size, 0)
        fresh.clips(7, positions, np.zeros_like(positions))

    timed("resume in mid-epoch", resume)
    found["of a process"] = max(0, anonymous() - before)
    found["mapped"] = Path(manifest._file).stat().st_size
    found["of a node"] = PROCESSES * gpus * found["of a process"]
    found |= balance(manifest, sampler, world_size, gpus)
    found |= requests(manifest, sampler, world_size, gpus)
    found["clips"], found["steps an epoch"] = len(manifest), sampler.epoch_end
    return found


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(row.split()[1]) for row in rows if row.startswith("Anonymous:"))


def balance(manifest: Manifest, sampler: TrainingSampler, world_size: int, gpus: int) -> dict[str, Any]:
    """Over steps of an epoch at equal distances: bytes of the fullest rank by the mean, and each source's share beside that in
    the dataset."""
    worst, rows_seen = [], []
    size = manifest.column("size").chunk(0).to_numpy()
    for step in np.linspace(0, sampler.epoch_end - 1, STEPS).astype(int).tolist():
        rows = np.stack([sampler.rows(0, sampler.positions(step, rank, world_size, 0)) for rank in range(world_size)])
        each = size[rows].sum(axis=1)
        worst.append(each.max() / each.mean())
        rows_seen.append(rows.reshape(-1))
    seen = np.concatenate(rows_seen)
    taken, there = np.bincount(manifest.source[seen], minlength=len(manifest.sources)), np.zeros(len(manifest.sources))
    for begin in range(0, len(manifest), 1 << 20):
        there += np.bincount(manifest.source[begin : begin + (1 << 20)], minlength=len(manifest.sources))
    taken, there = taken / taken.sum(), there / there.sum()
    return {
        "bytes of the fullest rank by the mean": float(np.mean(worst)),
        "shares": {name: [float(taken[s]), float(there[s])] for s, name in enumerate(manifest.sources)},
        "clips a rank and step": len(rows[0]),
    }


def requests(manifest: Manifest, sampler: TrainingSampler, world_size: int, gpus: int) -> dict[str, float]:
    """Bytes and GETs of a node and an epoch from object storage without a cache, by what the real read-ahead makes of some
    windows of rank 0's, or of some steps."""
    ahead = ReadAhead(lambda *_: b"", lambda *_: False, memory=0, get_bytes=GET_BYTES, connections=1)
    clips = gets = size = 0
    marks = np.linspace(0, sampler.epoch_end - 1, WINDOWS).astype(int).tolist()
    for mark in marks:
        positions = sampler.positions(mark, 0, world_size, 0)
        if sampler.lanes:
            positions = sampler.window(0, int(positions[0]))
        runs = ahead._plan([manifest.clip(row) for row in sampler.rows(0, positions).tolist()])
        clips, gets, size = clips + len(positions), gets + len(runs), size + sum(run.size for run in runs)
    ahead.close()
    of_node = sampler.epoch_end * sampler.recipe.clips_per_step * gpus / world_size
    return {"GETs of a node and epoch": gets / clips * of_node, "bytes of a node and epoch": size / clips * of_node}


def main(words: list[str]) -> int:
    dataset, world_size, gpus, views, shuffle = words
    print(json.dumps(measure(dataset, int(world_size), int(gpus), int(views), shuffle)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
