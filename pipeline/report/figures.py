"""What the notes of a loader's clips and batches add up to: plain numbers, for JSON and for the report."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.loader import ClipLoader
from pipeline.machine import usable_cores
from pipeline.sampling.samples import SamplingRecipe, sample_clips
from pipeline.stage_meters import STAGES, StageMeters
from pipeline.storage.manifest import Manifest
from pipeline.workers.delivery import FailedClip

PERCENTILES = (50, 90, 99, 99.9)
SLOWEST = 20
GANTT_SECONDS = 2.0
GANTT_LANES = 16
GANTT_CLIPS = 2000  # more would be too small to see; a shorter time is drawn
POINTS = 400  # of a curve over time
GROUPS = 12  # of a table of shares; what is smaller is added up
SHAPES = ((0.9, "upright"), (1.15, "square"), (1.45, "4:3"), (1.85, "16:9"))  # width / height below which a frame is so


def settings_of(loader: ClipLoader) -> dict[str, Any]:
    """What a loader works with."""
    return {
        "workers": loader.workers,
        "cores": usable_cores(),
        "prefetch": loader.prefetch,
        "tuning": str(loader.tuning),
        "clips_per_batch": loader.clips,
        "device": loader.device.type,
        "decoder": loader.decoder_choice.name,
    }


def figures(
    meters: StageMeters,
    manifest: Manifest,
    recipe: SamplingRecipe,
    workers: int,
    failures: Sequence[FailedClip] = (),
    window: StageMeters | None = None,
) -> dict[str, Any]:
    """Everything that the notes tell. What is about time goes by `window`, batches without a break, by default all of them.

    Raises ValueError if there are no notes.
    """
    records, rows, window = meters.records(), meters.rows(), window or meters
    if not len(records) or not window.batches:
        raise ValueError("no batch was taken while the loader was watched")
    milliseconds = (records["ended"] - records["began"]) / 1e6
    return {
        "clips": len(records),
        "clips_seen": meters.clips,
        "views_per_clip": recipe.views_per_clip,
        "stages": stage_figures(records),
        "clip_ms": percentiles(milliseconds),
        "core_ms": float((records["cpu"] + records["plan"]).mean() / 1e6),
        "work_per_core": float((milliseconds.sum() - records["fetch"].sum() / 1e6) / (_work_cpu(records).sum() / 1e6)),
        "busy": busy_share(window.records(), workers),
        "frames": {name: float(records[f"frames_{name}"].mean()) for name in ("decoded", "spanned", "kept")},
        "bytes": {name: float(records[f"bytes_{name}"].mean()) for name in ("read", "used")},
        "batches": batch_figures(window),
        "queue": queue_figures(window),
        "groups": {
            "source": shares(manifest.source[rows], milliseconds, lambda kind: manifest.sources[kind]),
            "codec and size": shares_of_codecs(manifest, rows, milliseconds),
        },
        "slowest": slowest(meters, manifest, recipe),
        "gantt": gantt(window, workers),
        "restarts": int(records["restarts"].sum()),
        "failures": failure_figures(failures, int(records["failures"].sum()), float(records["lost"].sum() / 1e6)),
    }


def _work_cpu(records: np.ndarray) -> np.ndarray:
    return np.maximum(records["cpu"] - records["fetch_cpu"], 1)


def stage_figures(records: np.ndarray) -> list[dict[str, Any]]:
    """Per stage: `core_ms` a clip, the time that a core works at it; `ms`, the time that passes, its mean and percentiles.

    Cores are clocked for fetching, and for the rest together: that is shared out as the time that passes is. Sampling
    ("plan") is done for a batch at once, in a worker of its own.
    """
    work = np.sum([records[stage] for stage in STAGES[1:]], axis=0)
    on_core = np.minimum(1.0, _work_cpu(records) / np.maximum(work, 1))
    lines = [("plan", records["plan"], float(records["plan"].mean() / 1e6))]
    lines.append(("fetch", records["fetch"], float(records["fetch_cpu"].mean() / 1e6)))
    timed = [stage for stage in STAGES[1:] if stage != "augment" or records[stage].any()]
    lines += [(stage, records[stage], float((records[stage] * on_core).mean() / 1e6)) for stage in timed]
    total = sum(core_ms for *_, core_ms in lines)
    return [
        {"name": name, "core_ms": core_ms, "share": core_ms / total if total else 0.0, "ms": percentiles(passed / 1e6)}
        for name, passed, core_ms in lines
    ]


def percentiles(values: np.ndarray) -> dict[str, float]:
    """mean, p50, p90, p99, p99.9 and max."""
    points = np.percentile(values, PERCENTILES)
    named = {f"p{point:g}": float(value) for point, value in zip(PERCENTILES, points, strict=True)}
    return {"mean": float(values.mean()), **named, "max": float(values.max())}


def busy_share(records: np.ndarray, workers: int) -> float:
    """Of the time of all workers between the first clip's beginning and the last one's end, that they had a clip."""
    span = float(records["ended"].max() - records["began"].min())
    return min(1.0, float((records["ended"] - records["began"] + records["lost"]).sum()) / (span * workers))


def batch_figures(meters: StageMeters) -> dict[str, Any]:
    """How the trainer met the batches: the time it waited, and how much of that the slowest batches made."""
    asked, got = (np.array([getattr(batch, name) for batch in meters.batches]) for name in ("asked", "got"))
    waits = (got - asked) / 1e6
    seconds = (got[-1] - got[0]) / 1e9
    clips = sum(len(batch.rows) for batch in list(meters.batches)[1:])
    worst = np.sort(waits[1:])[::-1][: max(1, len(waits) // 20)]  # one batch in twenty
    waited = float(waits[1:].sum())
    return {
        "batches": len(waits),
        "seconds": float(seconds),
        "clips_per_s": clips / seconds if seconds > 0 else None,
        "wait_ms": percentiles(waits[1:]) if len(waits) > 1 else None,
        "wait_share": min(1.0, waited / 1e3 / seconds) if seconds > 0 else None,
        "worst_share": float(worst.sum()) / waited if waited > 0 else 0.0,
        "copy_ms": percentiles(np.array(meters.copies)) if meters.copies else None,
    }


def queue_figures(meters: StageMeters) -> dict[str, Any]:
    """Batches that lay ready when the trainer asked for one, over time in seconds, at most `POINTS` points; where several
    fall on one point, the least."""
    moments = np.array([batch.got for batch in meters.batches])
    ready = np.array([batch.ready for batch in meters.batches])
    seconds = (moments - moments[0]) / 1e9
    edges = np.linspace(0, len(ready), min(len(ready), POINTS), endpoint=False).astype(int)
    return {
        "seconds": [round(float(value), 3) for value in seconds[edges]],
        "ready": np.minimum.reduceat(ready, edges).tolist(),
        "empty_share": float((ready == 0).mean()),
        "mean": float(ready.mean()),
    }


def shares(kinds: np.ndarray, milliseconds: np.ndarray, name: Callable[[int], str]) -> list[dict[str, Any]]:
    """Per kind (n,), a number, its share of the samples and of the decoding time, the largest share of time first."""
    present, places = np.unique(kinds, return_inverse=True)
    counts, times = np.bincount(places), np.bincount(places, milliseconds)
    order = np.argsort(-times)
    lines = [(name(int(present[i])), int(counts[i]), float(times[i])) for i in order[:GROUPS]]
    if len(rest := order[GROUPS:]):
        lines.append((f"{len(rest)} others", int(counts[rest].sum()), float(times[rest].sum())))
    return [
        {"name": name, "samples": count / len(kinds), "time": time / milliseconds.sum(), "clips": count, "ms": time / count}
        for name, count, time in lines
    ]


def shares_of_codecs(manifest: Manifest, rows: np.ndarray, milliseconds: np.ndarray) -> list[dict[str, Any]]:
    """By codec, short side and shape: hundreds of widths would say nothing."""
    codecs = manifest.column("codec").chunk(0)  # a dictionary
    width, height = manifest.width[rows].astype(np.int64), manifest.height[rows].astype(np.int64)
    shape = np.searchsorted([limit for limit, _ in SHAPES], width / height, side="right")
    kinds = (
        (codecs.indices.to_numpy(zero_copy_only=False)[rows].astype(np.int64) << 32) + (np.minimum(width, height) << 8) + shape
    )

    def name(kind: int) -> str:
        shapes = [*(text for _, text in SHAPES), "wide"]
        return f"{codecs.dictionary[kind >> 32].as_py()} {kind >> 8 & 0xFFFFFF} px, {shapes[kind & 0xFF]}"

    return shares(kinds, milliseconds, name)


def slowest(meters: StageMeters, manifest: Manifest, recipe: SamplingRecipe) -> list[dict[str, Any]]:
    """The clips that took longest, each once, with the frames that were asked of it."""
    records, rows, where = meters.records(), meters.rows(), meters.positions()
    spent = records["ended"] - records["began"]
    order, typical, lines = np.argsort(-spent), float(np.median(spent)), []
    for i in order[np.sort(np.unique(rows[order], return_index=True)[1])][:SLOWEST]:
        clip, (epoch, position) = manifest.clip(int(rows[i])), where[i].tolist()
        samples = sample_clips(manifest, recipe, epoch, np.array([position]), records["failures"][i : i + 1])
        same = samples.rows[0] == rows[i]  # not where attempts of an earlier start of the run came before
        lines.append(
            {
                "key": clip.key,
                "row": clip.row,
                "ms": float(spent[i] / 1e6),
                "times_typical": float(spent[i] / typical),
                "core_ms": float(records["cpu"][i] / 1e6),
                "stages": {stage: float(records[stage][i] / 1e6) for stage in STAGES},
                "frames": spelled(np.unique(samples.frames).tolist()) if same else None,
                "frames_decoded": int(records["frames_decoded"][i]),
                "bytes": clip.size,
                "what": f"{clip.codec} {clip.width} x {clip.height}, {clip.num_frames} frames",
                "epoch": epoch,
                "position": position,
            }
        )
    return lines


def spelled(frames: Sequence[int]) -> str:
    """[3, 7, 11] -> "3:12:4", what has no constant step -> "3,4,9"."""
    steps = {b - a for a, b in pairwise(frames)}
    if len(frames) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{frames[0]}:{frames[-1] + 1}:{step}"
    return ",".join(map(str, frames))


def parsed(text: str) -> list[int]:
    """The inverse of `spelled`. Raises ValueError for anything else."""
    try:
        parts = [int(part) for part in text.split(":")] if ":" in text else []
        frames = list(range(*parts)) if 2 <= len(parts) <= 3 else sorted({int(part) for part in text.split(",")})
    except ValueError:
        frames = []
    if not frames or min(frames) < 0:
        raise ValueError(f"frames {text!r} are not known; give numbers, as 3,7,11, or first:end:step, as 3:64:4")
    return frames


def gantt(meters: StageMeters, workers: int) -> dict[str, Any]:
    """What every worker did in `GANTT_SECONDS`: spans of [stage, begin, ms], in ms of that window. It is the last one whose
    clips are all known: of batches that nobody has taken yet, nothing is.

    The stages of a clip are drawn one after the other.
    """
    batches = list(meters.batches)
    first = batches[0].asked
    end = min(batches[-1].got, max(int(batches[-1].records["ended"].max()), first + int(GANTT_SECONDS * 1e9)))
    begin = max(first, end - int(GANTT_SECONDS * 1e9))
    records = meters.records()
    records = records[(records["ended"] >= begin) & (records["began"] <= end)]
    if len(records) > GANTT_CLIPS:
        begin = int(np.sort(records["ended"])[-GANTT_CLIPS])
        records = records[records["ended"] >= begin][-GANTT_CLIPS:]
    lanes = []
    for worker in range(min(workers, GANTT_LANES)):
        spans: list[list[Any]] = []
        mine = records[records["worker"] == worker]
        for record in mine[np.argsort(mine["began"])]:
            moment = int(record["began"])
            for stage in STAGES:
                spans += _span(stage, moment, moment + int(record[stage]), begin, end)
                moment += int(record[stage])
        lanes.append({"name": f"worker {worker + 1}", "spans": spans})
    trainer: list[list[Any]] = []
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        trainer += _span("wait", batch.asked, batch.got, begin, end)
        trainer += _span("step", batch.got, following.asked if following else end, begin, end)
    planned = {(int(b.records["submitted"][0]), int(b.records["plan"].sum())) for b in batches}
    plan = [span for moment, took in sorted(planned) for span in _span("plan", moment - took, moment, begin, end)]
    lanes = [{"name": "trainer", "spans": trainer}, {"name": "sampling", "spans": plan}, *lanes]
    return {"ms": (end - begin) / 1e6, "lanes": lanes, "workers": workers}


def _span(stage: str, begin: int, end: int, first: int, last: int) -> list[list[Any]]:
    """What of it lies in the window from `first` to `last`; [] for nothing, or what is too short to be seen (20 µs)."""
    begin, end = max(begin, first), min(end, last)
    return [[stage, round((begin - first) / 1e6, 2), round((end - begin) / 1e6, 2)]] if end - begin >= 20_000 else []


def failure_figures(failures: Iterable[FailedClip], substituted: int, lost_ms: float) -> dict[str, Any]:
    """By reason, and the clips by name."""
    failures = list(failures)
    clips = Counter((failure.key, str(failure.reason), failure.detail) for failure in failures)
    return {
        "attempts": len(failures),
        "reasons": dict(Counter(str(failure.reason) for failure in failures).most_common()),
        "clips": [
            {"key": key, "reason": reason, "detail": detail, "times": times}
            for (key, reason, detail), times in clips.most_common(SLOWEST)
        ],
        "substituted": substituted,
        "lost_ms": lost_ms,
    }
