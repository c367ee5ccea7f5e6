"""Several clips beside each other as an MP4."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from pipeline.storage.files import write_whole
from train.pictures import plt

SIDE = 224  # pixels, about: smaller clips are enlarged
CAPTION, GAP = 30, 8  # pixels
BT601 = 5  # AVCOL_SPC_BT470BG


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
    write_whole(file, lambda opened: encode(opened, frames, frames_per_second))


def encode(file: BinaryIO, frames: np.ndarray, rate: Fraction) -> None:
    """Uint8 (T, height, width, 3), both even -> MP4."""
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = BT601, ColorRange.MPEG
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            converted = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
            )
            output.mux(stream.encode(converted))
        output.mux(stream.encode())


def captions(names: list[str], side: int, width: int) -> np.ndarray:
    """A strip, uint8 (CAPTION, width, 3)."""
    figure = plt.figure(figsize=(width / 100, CAPTION / 100), dpi=100)
    for i, name in enumerate(names):
        figure.text((i * (side + GAP) + side / 2) / width, 0.5, name, ha="center", va="center", fontsize=9)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    plt.close(figure)
    return pixels
