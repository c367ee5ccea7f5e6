"""A loader's profile: the measured numbers, the verdict on them, and the page that shows both.

A profile is a dict of plain values, what report.json holds: `figures` (see `loader_figures`) of the loader at work, `run` the
same of training, `rates` in views/s, `stages_alone`, `target`, `settings`, `verdict`. report.html is made of it alone.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.report import sections
from pipeline.report.page import render
from pipeline.report.verdict import Evidence, ceilings, judge
from pipeline.sampling.notices import notices
from pipeline.sampling.samples import SamplingRecipe
from pipeline.sampling.splits import count_clips
from pipeline.storage.manifest import Manifest

FORMAT = 1
TEMPLATE = Path(__file__).with_name("loader_page.html")
# frames/s of an NVDEC engine: 21,890 frames/s on eight H100 of seven engines each, the best that is published (SPDL, 2026)
NVDEC_FRAMES = 21_890 / 56


def assemble(
    *,
    manifest: Manifest,
    recipe: SamplingRecipe,
    loader: Mapping[str, Any],
    run: Mapping[str, Any] | None,
    rates: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    machine: str,
    title: str,
    stages_alone: Mapping[str, Any] | None = None,
    target: float | None = None,
) -> dict[str, Any]:
    """Put a profile together and judge it. `loader` are `figures` of the loader at full speed (of a live run: of the run);
    `run` of training; `rates` {"loader": {"median", "rounds"}, ...} in views/s, of `sections.RATES` what was measured."""
    medians = {name: rate["median"] for name, rate in rates.items()}
    spreads = [(max(rate["rounds"]) - min(rate["rounds"])) / rate["median"] for rate in rates.values()]
    batches = (run or {}).get("batches") or {}
    per_batch = batches["seconds"] / max(batches["batches"] - 1, 1) if batches else 0.0
    copied = batches.get("copy_ms")
    evidence = Evidence(
        **{name: loader[name] for name in ("views_per_clip", "busy", "work_per_core", "clips")},
        **{name: settings[name] for name in ("cores", "workers", "prefetch")},
        shares_cores=settings["device"] == "cpu" and run is not None,
        **{name: medians[name] for name in ("loader", "model", "cached", "together") if name in medians},
        target=target,
        spread=max(spreads, default=0.0),
        batches=batches.get("batches", 0),
        seconds_per_batch=per_batch,
        wait_share=batches.get("wait_share") or 0.0,
        worst_share=batches.get("worst_share", 0.0),
        longest_wait=(batches.get("wait_ms") or {}).get("max", 0.0) / 1e3,
        copy_share=copied["p50"] / 1e3 / per_batch if copied and per_batch else 0.0,
        core_ms={stage["name"]: stage["core_ms"] for stage in loader["stages"]},
        wall_ms={stage["name"]: stage["ms"]["mean"] for stage in loader["stages"]},
        frames_decoded=loader["frames"]["decoded"],
        frames_spanned=loader["frames"]["spanned"],
        frames_kept=loader["frames"]["kept"],
        fetch_rate=max(stages_alone["clips_per_s"]["fetch"]) if stages_alone else None,
        sources=[(line["name"], line["samples"], line["time"]) for line in loader["groups"]["source"]],
        neighbours=settings.get("neighbours", 0.0),
    )
    versioned = {"version": manifest.version, "fingerprint": manifest.fingerprint}
    return {
        "format": FORMAT,
        "title": title,
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine,
        "dataset": {
            "path": manifest.place,
            "clips": count_clips(manifest, recipe.split),
            **versioned,
            "notices": notices(manifest, recipe),
        },
        "recipe": asdict(recipe),
        "settings": dict(settings),
        "rates": {name: dict(rate) for name, rate in rates.items()},
        "figures": dict(loader),
        "run": dict(run) if run else None,
        "stages_alone": dict(stages_alone) if stages_alone else None,
        "ceilings": ceilings(evidence),
        "target": needs(loader, target, rates) if target else None,
        "verdict": asdict(judge(evidence)),
    }


def needs(loader: Mapping[str, Any], target: float, rates: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `target` views/s take, and whether the loader alone gives them."""
    clips = target / loader["views_per_clip"]
    have = rates["loader"]["median"] if "loader" in rates else rates["together"]["median"]
    return {
        "views_per_s": target,
        "clips_per_s": clips,
        "have": have,
        "met": have >= target,
        "cores": clips * loader["core_ms"] / 1e3,
        "mb_per_s": clips * loader["bytes"]["read"] / 1e6,
        "frames_per_s": clips * loader["frames"]["decoded"],
        "nvdec_engines": clips * loader["frames"]["decoded"] / NVDEC_FRAMES,
    }


def write_report(folder: Path, profile: Mapping[str, Any]) -> Path:
    """Write report.html and report.json, each at once -> the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.json", json.dumps(profile) + "\n"), ("report.html", page(profile))):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text)
        temporary.replace(folder / name)
    return folder / "report.html"


def page(profile: Mapping[str, Any]) -> str:
    """The whole document."""
    name, subtitle = Path(profile["dataset"]["path"]).resolve().name, f"Loader report, {profile['time']}; {profile['machine']}"
    values = {**profile, "NVDEC_FRAMES": NVDEC_FRAMES, **sections.values(profile)}
    return render(TEMPLATE, "loader", name, subtitle, **values)
