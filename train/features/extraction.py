"""Windows as they come -> what an encoder makes of them, by video, in a folder.

Windows share decoded frames, not more: embedding patches is 2 % of ViT-S's forward pass on a CPU (4 % in bf16), of which
windows at stride 4 could share three quarters; behind it every token has seen the others of its window.

B windows, T frames, N tokens, D width.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.video_encoder import VideoEncoder
from pipeline.decoding.decode import DecodeError, Failure
from train.features.folder import FeatureFolder
from train.features.stream import Closed, Opened, Window
from train.features.windows import FrameView, TooShortError


class Extraction:
    """Of one rank."""

    def __init__(
        self,
        encoder: VideoEncoder,
        view: FrameView,
        folder: FeatureFolder,
        *,
        batch: int,
        tokens: bool = False,
        dtype: str = "fp32",
    ) -> None:
        """`batch` windows go through the encoder at once, of whichever videos; `dtype`, fp32 or fp16, is what is written."""
        self._encoder, self._view, self._folder, self._batch = encoder, view, folder, batch
        self._tokens, self._dtype = tokens, {"fp32": "float32", "fp16": "float16"}[dtype]
        self._features: dict[str, np.ndarray] = {}  # of videos that are not finished
        self._opened: dict[str, Opened] = {}
        self._waiting: list[Window | Closed] = []

    def run(self, events: Iterable[Opened | Window | Closed], bar: tqdm) -> list[dict[str, Any]]:
        """-> the lines of videos that have no features. Raises ValueError for features that are not finite, OSError."""
        lost: list[dict[str, Any]] = []
        for event in events:
            if isinstance(event, Opened):
                self._opened[event.video.name] = event
                bar.total += len(event.frames)
                bar.refresh()
                continue
            self._waiting.append(event)
            windows = sum(isinstance(each, Window) for each in self._waiting)
            if windows == self._batch or (not windows and isinstance(event, Closed)):
                lost += self._through(bar)
        return lost + self._through(bar)

    def _through(self, bar: tqdm) -> list[dict[str, Any]]:
        """What waits, in its order."""
        windows = [event for event in self._waiting if isinstance(event, Window)]
        for window, features in zip(windows, self.features(windows) if windows else (), strict=True):
            self._keep(window, features)
            bar.update()
        lost = [self._close(event) for event in self._waiting if isinstance(event, Closed)]
        self._waiting.clear()
        return [line for line in lost if line]

    @torch.inference_mode()
    def features(self, windows: list[Window]) -> np.ndarray:
        """Float32 (B, D), or (B, N, D)."""
        weight = self._encoder.patch_embed.proj.weight
        views = torch.stack([torch.stack(window.views) for window in windows])
        if weight.is_cuda and len(windows) < self._batch:  # kernels are chosen by shapes, and sum up in different orders
            views = torch.cat([views, views[-1:].expand(self._batch - len(windows), *views.shape[1:])])
        x_BND = self._encoder.forward_features(self._view.normalised(views.to(weight.device)))
        found: Tensor = x_BND if self._tokens else self._encoder.forward_head(x_BND, pre_logits=True)
        return found[: len(windows)].float().cpu().numpy()

    def _keep(self, window: Window, features: np.ndarray) -> None:
        name = window.video.name
        if name not in self._features:
            shape = len(self._opened[name].frames), *features.shape
            self._features[name] = self._folder.spool(shape, self._dtype)
        with np.errstate(over="ignore"):
            values = features.astype(self._dtype)
        if not np.isfinite(values).all():
            raise ValueError(f"{window.video.source}: features are not finite; try --precision fp32 and --dtype fp32")
        self._features[name][window.number] = values

    def _close(self, event: Closed) -> dict[str, Any] | None:
        """Its line, if it has no features."""
        name = event.video.name
        opened, features = self._opened.pop(name, None), self._features.pop(name, None)
        if event.error is not None:
            return self._folder.lose(event.video, *told(event.error))
        assert opened is not None and features is not None, name
        self._folder.keep(opened, features)
        return None


def told(error: Exception) -> tuple[str, str]:
    """Why there is nothing of a video: a reason and the detail."""
    if isinstance(error, DecodeError):
        return str(error.reason), error.detail
    if isinstance(error, TooShortError):
        return "too_short", str(error)
    if isinstance(error, OSError):
        return str(Failure.READ), error.strerror or str(error)
    return "memory" if isinstance(error, MemoryError) else str(Failure.DAMAGED), str(error) or type(error).__name__
