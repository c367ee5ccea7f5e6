"""What a model finds at the boxes of key frames, and what is true of them, as rows that can be scored. m boxes, C classes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import nn

from model.action_detector import Regions
from pipeline.loader import Batch, ClipLoader
from pipeline.sampling import EvaluationSampler, SamplingRecipe
from pipeline.sampling.view_boxes import SURE, WHOLE, ViewBoxes, evaluation_boxes, whole_frames_by_size
from pipeline.storage.key_frames import NONE, KeyFrames, Kind
from pipeline.workers.delivery import FailedClip
from train.augmentation import on_device
from train.detection.mean_precision import Rows
from train.detection.multi_label import action_scores


@dataclass(frozen=True, slots=True)
class TestBoxes:
    """Which boxes a test is of, and how large frames are seen."""

    __test__ = False  # for pytest

    kind: Kind = "detection"
    at_least: float = SURE
    """A detection's score."""
    whole: tuple[int, int] = WHOLE
    """Short side of a frame and its longest long side, in pixels."""

    def check(self, frames: KeyFrames, rows: np.ndarray) -> None:
        """Raises ValueError if these key frames have no such box."""
        if not len(frames.of_clips(rows, self.kind, self.at_least)[0]):
            place, what = frames.manifest.place, "annotated" if self.kind == "truth" else f"detected (score {self.at_least:g})"
            raise ValueError(
                f"no box is {what} in the {len(rows):,} key frames of {place} to look at; give boxes that are there: truth, or "
                "detections with a lower score"
            )


@dataclass(frozen=True, slots=True)
class Found:
    """Of a batch of clips that could be decoded."""

    rows: np.ndarray
    """Int64 (B,), of the manifest."""
    places: np.ndarray
    """Int64 (m,), in `KeyFrames`; those of a clip adjacent."""
    scores: np.ndarray
    """Float32 (m, C); not finite where the model's are not."""

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.scores).all())


Open = Callable[[SamplingRecipe, EvaluationSampler], ClipLoader]


def whole_of(input_size: int) -> tuple[int, int]:
    """How large whole frames are seen by a model that is trained on views of so many pixels: 256 and 464 of 224 (official)."""
    short, longest = (round(side * input_size / 224) for side in WHOLE)
    return short, longest


def key_frames_of(frames: KeyFrames, rows: np.ndarray) -> np.ndarray:
    """Those of some clips that have one."""
    return rows[frames.frame[rows] != NONE]


@torch.no_grad()
def detections(
    model: nn.Module, open_loader: Open, recipe: SamplingRecipe, frames: KeyFrames, rows: np.ndarray, boxes: TestBoxes
) -> Iterator[Found | FailedClip]:
    """Every clip of the `rows` once: what is found in this rank's, and those that could not be decoded. Whole frames are seen;
    for each size that they have there is a pass. All ranks make the same number of forward passes."""
    for size, some in whole_frames_by_size(frames.manifest, rows, recipe.patch_size, boxes.whole).items():
        plain = replace(recipe, input_size=size, crop="none", views_per_clip=1, randaugment="", crop_resize="antialiased")
        with closing(open_loader(plain, EvaluationSampler(rows=some))) as loader:
            for batch in loader:
                yield found_in(model, batch, frames, boxes)
            yield from loader.missing


def found_in(model: nn.Module, batch: Batch, frames: KeyFrames, boxes: TestBoxes) -> Found:
    """In a batch of an evaluation; where no clip stands, nothing."""
    rows, there = batch.rows.numpy(), batch.weight.cpu().numpy() > 0
    size = batch.views.shape[2], batch.views.shape[3]
    seen = evaluation_boxes(frames, size, rows, batch.crops, boxes.kind, weight=there, at_least=boxes.at_least)
    logits_mC = model(batch.views, regions_of(seen, batch.views.device)).float()
    person = on_device(np.array(frames.score[seen.places]), logits_mC.device)
    return Found(rows[there], seen.places, action_scores(logits_mC, person).cpu().numpy())


def regions_of(boxes: ViewBoxes, device: torch.device) -> Regions:
    """As the model takes them."""
    return Regions(on_device(boxes.boxes, device), on_device(boxes.view, device))


def rows_found(frames: KeyFrames, found: Sequence[Found], columns: Sequence[int] | None = None) -> Rows:
    """A row of each box and class; by default of the classes that are evaluated, which are `columns` of the scores in their
    order."""
    wanted = evaluated(frames)
    taken = wanted if columns is None else list(columns)
    ids = np.array([frames.actions[place].id for place in wanted], np.int64)

    def of(each: Found) -> Rows:
        m, places = len(each.places), np.repeat(each.places, len(ids))
        return Rows(frames.row[places], frames.box[places], np.tile(ids, m), each.scores[:, taken].astype(float).reshape(-1))

    return Rows.joined(of(each) for each in found)


def rows_of_truth(frames: KeyFrames, rows: np.ndarray) -> Rows:
    """A row of each annotated box and action of these clips."""
    places, _ = frames.of_clips(rows, "truth")
    box, action = np.nonzero(frames.labels(places))
    ids, places = np.array([each.id for each in frames.actions], np.int64), places[box]
    return Rows(frames.row[places].astype(np.int64), np.array(frames.box[places]), ids[action], np.ones(len(places)))


def evaluated(frames: KeyFrames) -> list[int]:
    """Places of the classes that count."""
    return [place for place, action in enumerate(frames.actions) if action.evaluated]


def keys_of(missing: Sequence[Sequence[FailedClip]]) -> list[str]:
    """Of every rank's clips."""
    return [failed.key for failed in chain(*missing)]
