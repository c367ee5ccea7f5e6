"""Who has a model in `evaluation.py`: it alone, and the whole of `evaluate`."""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parts.stopwatch import Work
from model.classifier import VideoClassifier
from pipeline.sampling import SamplingRecipe
from train.accuracy.predictions import Predictions
from train.accuracy.scores import view_probabilities
from train.compute.parallel import Ranks
from train.demos.prediction import VIEWS_AT_ONCE
from train.evaluate import predict


class ForwardWork(Work):
    """The model alone: as many passes over views that lie ready as `evaluate` makes of so many clips."""

    def __init__(self, model: nn.Module, views: Tensor, clips: int, device: torch.device) -> None:
        """Views (R, T, H, W, 3) of a clip, on the device."""
        self.model, self.views, self.clips, self.at_once = model, views, clips, VIEWS_AT_ONCE[device.type]

    @torch.inference_mode()
    def work(self) -> int:
        """The clips of a pass."""
        for _ in range(self.clips):
            view_probabilities(self.model, self.views, self.at_once)
        return self.clips


class WholeWork(Work):
    """What `evaluate` does with its clips: a loader of its own, decoding, the model, a part of predictions on disk."""

    def __init__(
        self, model: VideoClassifier, recipe: SamplingRecipe, rows: np.ndarray, clips: int, ranks: Ranks, **options: Any
    ) -> None:
        """A pass takes so many of the rows in turn."""
        self.passes = itertools.cycle(np.array_split(rows, len(rows) // clips))
        self.model, self.recipe, self.ranks, self.options = model, recipe, ranks, argparse.Namespace(**options)

    def work(self) -> int:
        """The clips of a pass. Raises RuntimeError if one could not be decoded."""
        rows, names = next(self.passes), [f"class {number}" for number in range(self.model.head.out_features)]
        with tempfile.TemporaryDirectory(prefix="tubecell-evaluation-") as folder:
            predictions = Predictions(Path(folder), {}, names)
            missing = predict(self.model, self.recipe, rows, names, None, predictions, self.options, self.ranks)
            if missing:
                raise RuntimeError(f"{missing[0][0]} could not be decoded: {missing[0][2]}")
            return len(predictions.rows())
