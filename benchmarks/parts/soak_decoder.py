"""The decoder of the soak; in a module of its own because the sidecar imports it by name, and does without torch."""

import os
from dataclasses import dataclass

import numpy as np

from pipeline.decoding.decode import ClipRequest, DecodeError, Failure, decode_libav

BAD_EVERY = 12  # clips


@dataclass(frozen=True, slots=True)
class CountingDecoder:
    """libav, except for clips that always fail. A file in `folder`, named with its process's number, grows by a byte a clip."""

    folder: str  # no Path: pathlib interns every name, and the table of those takes 2 MB more after 20,000 clips

    def __call__(self, request: ClipRequest, views: np.ndarray) -> None:
        with open(f"{self.folder}/{os.getpid()}", "ab") as file:
            file.write(b".")
        if request.clip.row % BAD_EVERY == BAD_EVERY - 1:
            raise DecodeError(Failure.DAMAGED, "made to fail")
        decode_libav(request, views)
