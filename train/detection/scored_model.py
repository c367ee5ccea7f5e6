"""A detector on the key frames of a dataset, and how good it is."""

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from model.weights import Weights
from pipeline.loader import ClipLoader
from pipeline.progress import Progress
from pipeline.sampling import EvaluationSampler, SamplingRecipe
from pipeline.sampling.splits import checked_split
from pipeline.sampling.view_boxes import SURE
from pipeline.storage.files import write_durably
from pipeline.storage.key_frames import KeyFrames
from pipeline.workers.delivery import FailedClip
from train.accuracy.parts import Parts
from train.checkpoint.descent import fingerprint
from train.checkpoint.files import CONFIG
from train.checkpoint.source import is_run
from train.compute.parallel import Ranks
from train.config import read_config
from train.demos import weights as released
from train.detection.box_files import written
from train.detection.detections import Found, TestBoxes, detections, evaluated, rows_found, rows_of_truth, whole_of
from train.detection.report import report
from train.detection.scored_file import key_frames, names_of

PART_CLIPS = 512  # of a part of the detections: what a kill costs
AT_ONCE = {"cpu": 2, "cuda": 16}  # clips


def score_model(options: argparse.Namespace, ranks: Ranks) -> None:
    """A detector on the key frames of a split; all ranks call it. Raises ValueError for weights and data that do not fit."""
    weights = released.read(options)
    if weights.kind != "detector":
        raise ValueError(
            f"{weights.place} is {weights.what}: give weights of `tubecell detect`, or a file of detections (.csv)"
        )
    frames, rows = key_frames(options)
    vars(options).update(ranks.first(lambda: settings(options)))
    sides = options.sides or whole_of(weights.config.input_size)
    boxes = TestBoxes(options.boxes, options.at_least, (sides[0], sides[1]))
    boxes.check(frames, rows)
    columns = columns_of(weights, frames)
    recipe = SamplingRecipe(
        views_per_step=ranks.world_size,
        views_per_clip=1,
        split=checked_split(options.split),
        sampling=options.sampling,
        num_frames=weights.config.num_frames,
        input_size=weights.config.input_size,
        tubelet_size=weights.config.tubelet_size,
        patch_size=weights.config.patch_size,
        temporal=options.frames,
        crop="none",
        masks=None,
    )
    precision = options.precision or ("bf16" if ranks.device.type == "cuda" else "fp32")
    asked = {
        "weights": ranks.first(lambda: fingerprint(weights.tensors)),
        "key frames": frames.digest,
        "split": recipe.split,
        "boxes": boxes.kind if boxes.kind == "truth" else f"detected, from {boxes.at_least:g} on",
        "view": f"{recipe.num_frames} frames, {options.frames}, {options.sampling}, {boxes.whole[0]} to {boxes.whole[1]} px",
        "precision": precision,
    }
    parts = Parts(options.out, "detections.parquet", asked, "detections")
    left = np.setdiff1d(rows, ranks.first(parts.rows))
    if ranks.rank == 0:
        print(weights)
        there = f", of which {len(rows) - len(left)} were there" if len(left) < len(rows) else ""
        print(f"{len(rows)} key frames of split {recipe.split}{there}", flush=True)
    missing = list[FailedClip]()
    if len(left):
        model = released.on_ranks(weights, ranks, lambda whole: released.build(whole, options))
        missing = [*chain(*ranks.gather(detect(model, recipe, frames, left, boxes, parts, options, ranks)))]
    ranks.gather(None)  # every part is written
    if ranks.rank == 0:
        found = found_of(parts.whole(), weights.num_classes)
        seen = np.concatenate([np.empty(0, np.int64), *(each.rows for each in found)])
        of_found = rows_found(frames, found, columns)
        facts = {
            "of": options.data,
            "frames": len(seen),
            "frames_of": len(rows),
            "asked": asked,
            "missing": [{"key": each.key, "reason": str(each.reason), "detail": each.detail} for each in missing],
        }
        images = {int(row): (frames.movies[frames.movie[row]], float(frames.second[row])) for row in seen}
        write_durably(options.out / "detections.csv", written(images, of_found))
        report(options, rows_of_truth(frames, np.sort(seen)), of_found, names_of(frames), facts, frames=frames, rows=seen)
    ranks.gather(None)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """How frames and boxes are looked at: as the command line says, or else as the run was trained and evaluated, or else the
    official way; sides are None where neither the command line nor a run says them."""
    official = {"frames": "key_frame_videomae", "sampling": "manifest", "at_least": SURE, "sides": None}
    names = {"frames": "frames", "sampling": "views.sampling", "at_least": "evaluate_score", "sides": "evaluate_sides"}
    run = Path(options.weights)
    config = read_config(run / CONFIG) if is_run(run) else {}
    of_run = {name: config[theirs] for name, theirs in names.items() if theirs in config}
    given = {name: value for name in official if (value := getattr(options, name)) is not None}
    return official | of_run | given


def columns_of(weights: Weights, frames: KeyFrames) -> list[int]:
    """Of each class that counts its place in the weights' head: by name, or, where the weights have no names, in the order of
    the dataset's. Raises ValueError if one is not there."""
    if weights.labels is None:
        if weights.num_classes != len(frames.actions):
            raise ValueError(
                f"{weights.place} has {weights.num_classes} classes without names, and {frames.manifest.place} has "
                f"{len(frames.actions)}; they must be the same ones"
            )
        return evaluated(frames)
    place = {name: number for number, name in enumerate(weights.labels)}
    names = [frames.names[number] for number in evaluated(frames)]
    if lacking := [name for name in names if name not in place]:
        raise ValueError(
            f"{weights.place} does not know {len(lacking)} of the {len(names)} classes of {frames.manifest.place}, such as "
            f"{lacking[0]!r}"
        )
    return [place[name] for name in names]


def detect(
    model: nn.Module,
    recipe: SamplingRecipe,
    frames: KeyFrames,
    rows: np.ndarray,
    boxes: TestBoxes,
    parts: Parts,
    options: argparse.Namespace,
    ranks: Ranks,
) -> list[FailedClip]:
    """Fill `parts` with this rank's share of the rows -> its clips that could not be decoded."""

    def opened(plain: SamplingRecipe, sampler: EvaluationSampler) -> ClipLoader:
        return ClipLoader(
            options.data,
            plain,
            sampler=sampler,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            clips_per_batch=AT_ONCE[ranks.device.type],
            workers=options.workers,
            label_map=frames.names,
        )

    missing, kept = list[FailedClip](), list[Found]()
    with Progress(total=len(rows), unit="frame", quiet=ranks.rank != 0) as bar:
        for each in detections(model, opened, recipe, frames, rows, boxes):
            if isinstance(each, FailedClip):
                missing.append(each)
                continue
            if not each.finite:
                raise ValueError("the scores are not finite; try --precision fp32")
            kept.append(each)
            bar.update(min(len(each.rows) * ranks.world_size, len(rows) - bar.n))
            if sum(len(one.rows) for one in kept) >= PART_CLIPS:
                parts.add(table_of(kept, frames))
                kept = []
    if any(len(one.rows) for one in kept):
        parts.add(table_of(kept, frames))
    return missing


def table_of(found: Sequence[Found], frames: KeyFrames) -> pa.Table:
    """A line for each clip: its row, the places of its boxes, and their scores, class by class."""
    rows, places = np.concatenate([each.rows for each in found]), np.concatenate([each.places for each in found])
    scores = np.concatenate([each.scores for each in found])
    of = np.searchsorted(np.sort(rows), frames.row[places])
    order = np.argsort(rows, kind="stable")
    rows, sorting = rows[order], np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=len(rows))
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    classes = scores.shape[1]
    columns = {
        "row": pa.array(rows, pa.int64()),
        "places": pa.ListArray.from_arrays(pa.array(ends), pa.array(places[sorting], pa.int64())),
        "scores": pa.ListArray.from_arrays(pa.array(ends * classes), pa.array(scores[sorting].reshape(-1), pa.float32())),
    }
    return pa.table(columns)


def found_of(table: pa.Table | None, classes: int) -> list[Found]:
    """The other way round."""
    if table is None:
        return []
    places, scores = (table[name].combine_chunks().flatten().to_numpy() for name in ("places", "scores"))
    return [Found(table["row"].to_numpy(), places, scores.reshape(-1, classes))]
