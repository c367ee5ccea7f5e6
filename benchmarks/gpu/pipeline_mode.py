"""`DaliDecoder`'s graph in DALI's pipeline mode, only to compare the two.

It prefetches two batches by itself and needs no Python between operators; but R views are R resizes and a copy that joins them,
all batches have one size, clips that need their frames repeated or turned are not served, and a clip that fails ends it.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from pipeline.decoding.dali import colour_transform
from pipeline.decoding.trim import TrimmedClip

PREFETCH = 2


class PipelineDecoder:
    """The same batches again and again, as a pipeline delivers them."""

    def __init__(self, device: torch.device, threads: int, size: int, batches: Sequence[Sequence[TrimmedClip]]) -> None:
        """`batches` have equally many clips, of equally many views."""
        views = len(batches[0][0].boxes)
        on_gpu = device.type == "cuda"
        self._pipeline = Pipeline(
            batch_size=len(batches[0]),
            num_threads=threads,
            device_id=device.index or 0 if on_gpu else None,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,
        )
        with self._pipeline:
            data, frames, matrix, offset, *corners = fn.external_source(_inputs(batches), num_outputs=4 + 2 * views, batch=True)
            video = fn.decoders.video(data, device="mixed" if on_gpu else "cpu", frames=frames, pad_mode="none")
            video = fn.coord_transform(video, M=matrix, T=offset, dtype=types.DALIDataType.UINT8)
            crops: list[Any] = [
                fn.resize(
                    video,
                    size=(size, size),
                    roi_start=corners[2 * view],
                    roi_end=corners[2 * view + 1],
                    interp_type=types.DALIInterpType.INTERP_LINEAR,
                    antialias=True,
                    dtype=types.DALIDataType.UINT8,
                )
                for view in range(views)
            ]
            self._pipeline.set_outputs(fn.stack(*crops))
        self._pipeline.build()

    def __call__(self) -> torch.Tensor:
        """The next batch: uint8 (B, R, T, size, size, 3) on the device. Raises RuntimeError if a clip does not decode."""
        (views,) = self._pipeline.run()
        return torch.from_dlpack(views.as_tensor())


def _inputs(batches: Sequence[Sequence[TrimmedClip]]) -> Iterator[tuple[list[Any], ...]]:
    for batch in cycle(batches):
        colours = [colour_transform(clip.clip.matrix, clip.clip.range == "full") for clip in batch]
        boxes = np.stack([clip.boxes for clip in batch]).astype(np.float32)  # (B, R, x y w h)
        low, high = boxes[..., 1::-1], (boxes[..., :2] + boxes[..., 2:])[..., ::-1]  # (y, x)
        corners = [list(np.ascontiguousarray(ends[:, view])) for view in range(boxes.shape[1]) for ends in (low, high)]
        yield (
            [np.frombuffer(clip.data, np.uint8) for clip in batch],
            [clip.frames for clip in batch],
            [matrix for matrix, _ in colours],
            [offset for _, offset in colours],
            *corners,
        )
