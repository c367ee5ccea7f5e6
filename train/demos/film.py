"""Several clips beside each other as an MP4."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.decoding.encoding import encode
from pipeline.storage.files import write_whole
from train.pictures import plt

SIDE = 224  # pixels, about: smaller clips are enlarged
CAPTION, GAP = 30, 8  # pixels


def write_film(file: Path, clips: Mapping[str, np.ndarray], rate: float) -> None:
    """Clips by caption, uint8 (T, size, size, 3) each, and frames per second -> H.264, whole or not at all. Raises OSError."""
    enlarged = max(1, round(SIDE / next(iter(clips.values())).shape[1]))
    columns = [np.repeat(np.repeat(clip, enlarged, axis=1), enlarged, axis=2) for clip in clips.values()]
    length, side = columns[0].shape[:2]
    height, width = side + CAPTION, len(columns) * side + (len(columns) - 1) * GAP
    frames = np.full((length, height + height % 2, width + width % 2, 3), 255, np.uint8)
    frames[:, :CAPTION, :width] = captions(list(clips), side, width)
    for i, column in enumerate(columns):
        left = i * (side + GAP)
        frames[:, CAPTION:height, left : left + side] = column
    frames_per_second = Fraction(rate).limit_denominator(1000)
    write_whole(file, lambda opened: encode(opened, frames, frames_per_second, crf="16"))


def captions(names: list[str], side: int, width: int) -> np.ndarray:
    """A strip, uint8 (CAPTION, width, 3)."""
    figure = plt.figure(figsize=(width / 100, CAPTION / 100), dpi=100)
    for i, name in enumerate(names):
        figure.text((i * (side + GAP) + side / 2) / width, 0.5, name, ha="center", va="center", fontsize=9)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    plt.close(figure)
    return pixels
