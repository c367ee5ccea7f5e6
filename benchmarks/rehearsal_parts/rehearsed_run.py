"""All of a rehearsal, as JSON can hold it."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.results import describe_machine
from benchmarks.rehearsal_parts.options import Options
from benchmarks.rehearsal_parts.predictions import mesh_figures, scaling
from benchmarks.rehearsal_parts.rehearsed_step import rehearse
from pipeline.sampling import steps_per_epoch
from train.recipes.pretraining import RECIPES

ROOT = Path(__file__).resolve().parents[2]


def rehearse_run(options: Options) -> dict[str, Any]:
    """Raises ValueError for a recipe that there is not, and for ranks that cannot share a step or a state."""
    if options.recipe not in RECIPES:
        raise ValueError(f"--recipe {options.recipe}: known are {', '.join(RECIPES)}")
    config, cluster = RECIPES[options.recipe](), options.cluster
    views = config.views.views_per_step
    steps = config.total_steps(steps_per_epoch(config.expected_clips, config.sampling))
    rehearsed = [rehearse(config, cluster, mesh) for mesh in options.meshes]
    how: Any = (cluster, options.links, options.device, options.storage)
    meshes = [mesh_figures(each, *how, views_per_step=views, steps=steps) for each in rehearsed]
    fast = max(range(len(meshes)), key=lambda place: meshes[place]["views/s"])
    found: dict[str, Any] = {
        "recipe": options.recipe,
        "cluster": str(cluster),
        "views a step": views,
        "TFLOP a view": rehearsed[0].cost.flops / 1e12,
        "parameters": rehearsed[0].cost.sizes.whole,
        "assumed": options.assumed(),
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "meshes": meshes,
        "fastest": fast,
        "scaling": {},
        "data": {},
    }
    if cluster.nodes > 1:
        found["scaling"] = {
            str(each.mesh): scaling(each, cluster, options.links, options.device, views)
            for each in rehearsed
            if each.plan.passes == 1
        }
    for clips in options.clips if options.folder else ():
        found["data"][str(clips)] = measured_data(options, clips, views)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


def measured_data(options: Options, clips: int, views: int) -> dict[str, Any]:
    """What a made-up manifest of so many clips costs to write, and a node to sample from, each in a process of its own."""
    assert options.folder is not None
    options.folder.mkdir(parents=True, exist_ok=True)
    dataset = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=options.folder.resolve()))
    try:
        found: dict[str, Any] = _alone("synthetic_manifest", dataset, clips)
        found["bytes of the manifest"] = (dataset / "manifest.parquet").stat().st_size
        for shuffle in ("global", "window"):
            words = (dataset, options.cluster.ranks, options.gpus, views, shuffle)
            found[shuffle] = _alone("data_plan", *words)
        return found
    finally:
        shutil.rmtree(dataset)


def _alone(module: str, *words: object) -> Any:
    command = [sys.executable, "-m", f"{__package__}.{module}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
