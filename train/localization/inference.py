"""What a localizer finds in whole videos.

A pass is over one window of one video. A video that is longer than --sequence.longest times the sequences of training is seen
in several, which overlap by half of such a sequence; what a window says of its outer half of an overlap is left to the other
one. So memory is bounded however long a video is: of THUMOS14's model a pass over 13,824 steps (half an hour at stride 4) keeps
some 30 MB a layer, never two.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.localizer import filled
from model.segment_nms import Suppression, suppressed
from model.segments import decode, points_of, to_seconds
from train.localization.feature_set import FeatureSet, FeatureVideo


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """What of the network's answers is taken for a segment, before the best are chosen. Defaults: ActionFormer's."""

    least_score: float = 0.001
    """Of a point and class."""
    most: int = 2000
    """Pairs of point and class that are taken of each level."""
    least_steps: float = 0.05
    """Segments that are not longer are dropped."""

    def __post_init__(self) -> None:
        if not 0 <= self.least_score < 1:
            raise ValueError(f"decode least_score {self.least_score} must be at least 0 and less than 1")
        if self.most < 1 or self.least_steps < 0:
            raise ValueError(f"decode most {self.most} must be at least 1, and least_steps {self.least_steps} at least 0")


@dataclass(frozen=True, slots=True)
class Found:
    """In a video, the best first: seconds (n, 2), scores (n,), labels (n,)."""

    segments: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """Steps [first, end) of a video; its answers count for points in [begin, until)."""

    first: int
    end: int
    begin: float
    until: float


def windows_of(steps: int, longest: int, overlap: int) -> list[Window]:
    """One for a video of at most `longest` steps."""
    if steps <= longest:
        return [Window(0, steps, -math.inf, math.inf)]
    number = math.ceil((steps - overlap) / (longest - overlap))
    firsts = [min(n * (longest - overlap), steps - longest) for n in range(number)]
    middles = [(firsts[n] + longest + firsts[n + 1]) / 2 for n in range(number - 1)]
    ends = zip([-math.inf, *middles], [*middles, math.inf], strict=True)
    return [Window(first, first + longest, *between) for first, between in zip(firsts, ends, strict=True)]


class Inference:
    """Over videos of a dataset."""

    def __init__(self, dataset: FeatureSet, how: DecodeConfig, best: Suppression, device: torch.device) -> None:
        self._dataset, self._how, self._best, self._device = dataset, how, best, device
        model = dataset.model
        self._longest = model.whole(round(dataset.config.longest * model.num_steps))
        self._points: tuple[int, list[Tensor]] = (0, [])

    def passes(self, rows: Sequence[int]) -> int:
        """Forward passes that these take."""
        return sum(len(self._windows(self._dataset.clip(row))) for row in rows)

    def _windows(self, video: FeatureVideo) -> list[Window]:
        return windows_of(video.timing.steps, self._longest, self._dataset.model.num_steps // 2)

    def __call__(self, model: Any, rows: Sequence[int], passes: int) -> Iterator[tuple[int, Found | str]]:
        """(row, what is found, or why it cannot be read) one after the other. It makes so many passes in all, also over
        nothing: on several ranks each pass is an exchange of weights, and a rank that stays away hangs the others."""
        done = 0
        for row in rows:
            video, parts = self._dataset.clip(row), []
            wrong = ""
            for window in self._windows(video):
                try:
                    features = torch.from_numpy(
                        video.read(self._dataset.config, self._dataset.model.input_dim, window.first, window.end)
                    )
                except (OSError, ValueError) as error:
                    wrong, features = str(error), torch.zeros(1, self._dataset.model.input_dim)
                done += 1
                parts.append(self._seen(model, features, window))
            yield row, wrong or self._chosen(video, parts)
        for _ in range(passes - done):
            self._seen(model, torch.zeros(1, self._dataset.model.input_dim), Window(0, 1, -math.inf, math.inf))

    def _seen(self, model: Any, features_TC: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Segments of a window, in steps of the video."""
        features_BTC, mask_BT = filled([features_TC.to(self._device)], self._dataset.model)
        with torch.no_grad():
            found = model(features_BTC, mask_BT)
        points = self._points_of(features_BTC.shape[1])
        masks = [
            mask[0] & (level[:, 0] + window.first >= window.begin) & (level[:, 0] + window.first < window.until)
            for mask, level in zip(found.masks, points, strict=True)
        ]
        logits, offsets = ([each[0].float() for each in levels] for levels in (found.logits, found.offsets))
        how = self._how
        segments, scores, labels = decode(
            points,
            masks,
            logits,
            offsets,
            least_score=how.least_score,
            most=how.most,
            least_steps=how.least_steps,
        )
        return segments.cpu() + window.first, scores.cpu(), labels.cpu()

    def _points_of(self, steps: int) -> list[Tensor]:
        if self._points[0] != steps:
            model = self._dataset.model
            made = points_of(steps, model.strides, model.ranges)
            self._points = steps, [level.to(self._device) for level in made]
        return self._points[1]

    def _chosen(self, video: FeatureVideo, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Found:
        segments, scores, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        segments, scores, labels = suppressed(segments, scores, labels, self._best)
        at = video.timing
        return Found(to_seconds(segments, at.stride, at.frames, at.fps, video.duration), scores, labels)
