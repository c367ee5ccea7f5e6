"""Batches of sequences of features with what a localizer shall say of them, prepared by threads beside the training.

The same dataset, recipe and configuration give the same bytes of every global batch, for any number of ranks and restarts.
Memory: `AHEAD` batches, each 4 (C + 1) bytes a step and 4 (K + 2) a point, beside what an .npy file has of a part.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.segment_losses import running_mean
from model.segments import assign, inside_window, points_of
from pipeline import keyed
from pipeline.decoding.decode import Failure
from pipeline.loader import LoaderError, LoaderState
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.order import order_of
from pipeline.sampling.splits import describe_split, split_digest
from pipeline.stage_meters import StageMeters
from pipeline.workers.delivery import FailedClip
from pipeline.workers.tuning import Tuning
from train.localization.feature_set import FeatureSet
from train.localization.parts_of_videos import part_of

AHEAD, THREADS = 4, 2
MEMORY = 512  # steps that the running mean knows: what was before counts 0.9^512, less than float64 tells
MOST_FAILURES, FAILURE_SHARE = 16, 0.02  # of videos that could not be read, before a run ends


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """B parts of videos, T steps, P points of all levels, K classes."""

    features: Tensor  # float32 (B, T, C), zeros where there is no step
    mask: Tensor  # bool (B, T), which steps are the part's
    counted: Tensor  # bool (B, P), which points are, and of a video that could be read
    classes: Tensor  # float32 (B, P, K)
    distances: Tensor  # float32 (B, P, 2)
    normaliser: Tensor  # float32 (): the running mean of the points that answer for an action, of whole steps
    epoch: int
    step: int  # of the epoch
    positions: Tensor  # int64 (B,), on the CPU
    rows: Tensor  # int64 (B,), on the CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """How points come to answer for actions."""

    radius: float | None
    """Strides around an action's middle; None: all of it."""
    first_norm: float
    """What the running mean begins with."""


class FeatureLoader:
    """An endless iterator over this rank's batches; what the loop asks of it is `AnyLoader`."""

    tuning: Tuning | None = None
    decoder_choice = "none: features are read as they lie"

    def __init__(
        self,
        dataset: FeatureSet,
        recipe: SamplingRecipe,
        targets: Targets,
        *,
        rank: int,
        world_size: int,
        clips_per_batch: int,
        device: torch.device,
        state: Mapping[str, Any] | LoaderState | None = None,
    ) -> None:
        """Raises ValueError if dataset, recipe, ranks and state do not fit each other."""
        self.epoch = self.step = self._part = 0
        if state is not None:
            before = LoaderState.of(state)
            if before.dataset != dataset.fingerprint:
                raise ValueError(
                    f"{dataset.place} and its features are not those that the run began with (fingerprint "
                    f"{dataset.fingerprint}, was {before.dataset}); give those, or another --out"
                )
            recipe = recipe.going_on(SamplingRecipe.of(before.recipe))
            self.epoch, self.step = before.epoch, before.step
        self.manifest, self.recipe = dataset, recipe
        self._order = order_of(dataset, recipe)
        self._rank, self._world_size, self._clips = rank, world_size, clips_per_batch
        self._per_step = len(self._order.rank_positions(0, rank, world_size)) // clips_per_batch
        self._targets, self._device, model = targets, device, dataset.model
        self._points = torch.cat(points_of(model.num_steps, model.strides, model.ranges))
        self._level_steps = torch.cat([torch.arange(0, model.num_steps, stride) for stride in model.strides])
        self.steps_per_epoch: int = self._order.steps_per_epoch
        self.notices = [describe_split(dataset, recipe.split), *dataset.notices]
        self.label_map = dataset.names
        self.failures: list[FailedClip] = []
        self.num_failures, self.wait_seconds = 0, 0.0
        self.meters: StageMeters | None = None
        self._counts: dict[int, float] = {}  # of points that answer, of the last steps, by the step since the run's begin
        self._counting = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "features", self._enter)
        self._ahead: deque[Future[tuple[FeatureBatch, list[FailedClip]]]] = deque()
        self._next = (self.epoch, self.step, 0)  # to be prepared

    def __iter__(self) -> "FeatureLoader":
        return self

    def __next__(self) -> FeatureBatch:
        """Raises LoaderError if too many videos cannot be read."""
        while len(self._ahead) < AHEAD:
            self._ahead.append(self._threads.submit(self._prepare, *self._next))
            self._next = self._after(*self._next)
        asked = time.perf_counter()
        batch, failures = self._ahead.popleft().result()
        self.wait_seconds += time.perf_counter() - asked
        self.failures += failures
        self.num_failures += len(failures)
        self.epoch, self.step, self._part = self._after(batch.epoch, batch.step, self._part)
        done = (self.epoch * self.steps_per_epoch + self.step) * self._per_step * self._clips
        if self.num_failures > max(MOST_FAILURES, FAILURE_SHARE * done):
            last = self.failures[-1]
            raise LoaderError(
                f"{self.num_failures} parts of videos could not be read; the last: {last.detail}. Extract these features again"
            )
        return batch

    def _after(self, epoch: int, step: int, part: int) -> tuple[int, int, int]:
        if part + 1 < self._per_step:
            return epoch, step, part + 1
        return (epoch, step + 1, 0) if step + 1 < self.steps_per_epoch else (epoch + 1, 0, 0)

    def state(self) -> dict[str, Any]:
        """Where the next step begins."""
        assert self._part == 0, "of whole steps only"
        return LoaderState(
            epoch=self.epoch,
            step=self.step,
            ledger=(),
            dataset=self.manifest.fingerprint,
            version=self.manifest.version,
            recipe=asdict(self.recipe),
            taken=split_digest(self.manifest, self.recipe.split),
        ).plain()

    def keys(self, epoch: int, step: int, part: int | None = None) -> list[str]:
        """Of this rank's videos of a step, or of one of its batches."""
        return [self.manifest.clip(row).key for row in self._order.rows(epoch, self._positions(step, part)).tolist()]

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _positions(self, step: int, part: int | None) -> np.ndarray:
        positions = self._order.rank_positions(step, self._rank, self._world_size)
        return positions if part is None else positions[part * self._clips : (part + 1) * self._clips]

    def _enter(self) -> None:
        """A thread begins. CUDA's device is a thread's own, GPU 0 at first, and pinned memory is that device's business."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def _prepare(self, epoch: int, step: int, part: int) -> tuple[FeatureBatch, list[FailedClip]]:
        """In a thread."""
        dataset, model = self.manifest, self.manifest.model
        positions = self._positions(step, part)
        rows = self._order.rows(epoch, positions)
        features = torch.zeros(len(rows), model.num_steps, model.input_dim)
        lengths, failed, failures = list[int](), list[bool](), list[FailedClip]()
        classes, distances = list[Tensor](), list[Tensor]()
        for place, (position, row) in enumerate(zip(positions.tolist(), rows.tolist(), strict=True)):
            first, length = self._part_of(epoch, position, row)
            video = dataset.clip(row)
            try:
                features[place, :length] = torch.from_numpy(video.read(dataset.config, model.input_dim, first, first + length))
            except (OSError, ValueError) as error:
                failures.append(FailedClip(epoch, position, 0, row, video.key, Failure.READ, str(error)))
            failed.append(len(failures) > sum(failed))
            lengths.append(length)
            wanted = self._wanted(row, first, length)
            classes.append(wanted[0])
            distances.append(wanted[1])
        length_B1, whole_B1 = torch.tensor(lengths)[:, None], ~torch.tensor(failed)[:, None]
        tensors: dict[str, Any] = {
            "features": features,
            "mask": torch.arange(model.num_steps) < length_B1,
            "counted": (self._level_steps < length_B1) & whole_B1,
            "classes": torch.stack(classes),
            "distances": torch.stack(distances),
            "normaliser": torch.tensor(self.normaliser(epoch * self.steps_per_epoch + step)),
        }
        if self._device.type == "cuda":
            tensors = {name: tensor.pin_memory().to(self._device, non_blocking=True) for name, tensor in tensors.items()}
        batch = FeatureBatch(
            **tensors,
            epoch=epoch,
            step=step,
            positions=torch.from_numpy(positions),
            rows=torch.from_numpy(rows),
        )
        return batch, failures

    def _part_of(self, epoch: int, position: int, row: int) -> tuple[int, int]:
        dataset = self.manifest
        at = dataset.clip(row).timing
        key = keyed.mix(self.recipe.seed, epoch, position)
        return part_of(key, at.steps, dataset.model.num_steps, dataset.truth(row)[0], margin(at), dataset.config)

    def _wanted(self, row: int, first: int, length: int) -> tuple[Tensor, Tensor]:
        """Of a part of a video: classes (P, K) and distances (P, 2) of its points."""
        dataset = self.manifest
        segments, labels = dataset.truth(row)
        if length < dataset.clip(row).timing.steps:
            share = dataset.config.least_share
            segments, labels = inside_window(segments, labels, first, length, share, margin(dataset.clip(row).timing))
        return assign(self._points, segments, labels, len(dataset.names), self._targets.radius)

    def normaliser(self, step: int) -> float:
        """After a step, counted since the run's begin from 0: the running mean of the points that answer for an action in a
        step of all ranks. A function of the step alone: it begins MEMORY steps before it at the latest."""
        first, mean = max(0, step - MEMORY + 1), self._targets.first_norm
        with self._counting:
            for number in range(first, step + 1):
                if number not in self._counts:
                    self._counts[number] = self._answering(*divmod(number, self.steps_per_epoch))
                mean = running_mean(mean, self._counts[number])
            for old in [number for number in self._counts if number < first - AHEAD]:
                del self._counts[old]
        return mean

    def _answering(self, epoch: int, step: int) -> float:
        """Points that answer for an action in a step of all ranks."""
        positions = self._order.rank_positions(step, 0, 1)
        found = 0
        for position, row in zip(positions.tolist(), self._order.rows(epoch, positions).tolist(), strict=True):
            first, length = self._part_of(epoch, position, row)
            classes = self._wanted(row, first, length)[0]
            found += int(((classes.sum(1) > 0) & (self._level_steps < length)).sum())
        return float(found)


def margin(at: Any) -> float:
    """Steps by which an action may reach over the end of a part: half of the frames that a step is made of."""
    return 0.5 * at.frames / at.stride
