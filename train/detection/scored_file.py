"""Detections of a file, against a dataset's key frames or files of truth."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.storage.action_list import parse_actions
from pipeline.storage.key_frames import KeyFrames
from pipeline.storage.manifest import Manifest
from train.detection.box_files import BoxFile, numbered, parse_boxes, parse_excluded
from train.detection.detections import evaluated, key_frames_of, rows_of_truth
from train.detection.mean_precision import Rows
from train.detection.report import report


def score_file(options: argparse.Namespace) -> None:
    """Detections of a file, against a dataset's key frames or files of truth. Raises ValueError for what is no such file."""
    found = parse_boxes(_read(options.weights), options.weights, scored=True)
    if options.data is None:
        truths = [parse_boxes(_read(file), str(file), scored=False) for file in options.truth]
        excluded = [parse_excluded(_read(file), str(file)) for file in options.excluded]
        names = parse_actions(_read(options.actions).decode("utf-8", "replace"), str(options.actions))
        (of_found, *others), images = numbered([found, *truths, *excluded])
        truth = Rows.joined(others[: len(truths)])
        left_out = np.concatenate([np.empty(0, np.int64), *(rows.images for rows in others[len(truths) :])])
        notices = [f"{file.place}: {notice}" for file in (found, *truths) for notice in file.notices]
        facts = {"of": ", ".join(map(str, options.truth)), "frames": len(np.unique(truth.images)), "notices": notices}
        report(options, truth, of_found, names, facts, left_out)
        return
    frames, rows = key_frames(options)
    here = BoxFile(
        options.data,
        pa.chunked_array([pa.array([frames.movies[movie] for movie in frames.movie[rows].tolist()], pa.string())]),
        frames.second[rows],
        replace(Rows.joined([]), images=np.zeros(len(rows), np.int64)),
    )
    (of_found, of_rows), images = numbered([found, here])
    row_of = np.full(len(images), -1)
    row_of[of_rows.images] = rows
    of_found = replace(of_found, images=row_of[of_found.images])
    elsewhere = int((of_found.images < 0).sum())
    notices = [f"{options.weights}: {notice}" for notice in found.notices]
    notices += (
        [f"{elsewhere:,} of {len(of_found):,} rows are of no key frame of the split: they do not count"] if elsewhere else []
    )
    facts = {"of": options.data, "frames": len(rows), "notices": notices}
    report(
        options,
        rows_of_truth(frames, rows),
        of_found.of(of_found.images >= 0),
        names_of(frames),
        facts,
        frames=frames,
        rows=rows,
    )


def key_frames(options: argparse.Namespace) -> tuple[KeyFrames, np.ndarray]:
    """The dataset's, and the rows of the split that have one. Raises ValueError if there is none."""
    manifest = Manifest(options.data)
    frames = KeyFrames(manifest)
    rows = key_frames_of(frames, rows_of_split(manifest, checked_split(options.split)))
    if not len(rows):
        raise ValueError(f"split {options.split} of {options.data} has no key frame")
    return frames, rows


def names_of(frames: KeyFrames) -> dict[int, str]:
    """Of the classes that count, by number."""
    return {frames.actions[place].id: frames.actions[place].name for place in evaluated(frames)}


def _read(file: object) -> bytes:
    try:
        return Path(str(file)).read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
