"""Pictures -> a small video: H.264 in BT.601 and limited range, tagged so, which every decoder here takes for what it is."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

BT601 = 5  # AVCOL_SPC_BT470BG
COLOURS: dict[str, Any] = {
    "format": "yuv420p",
    "dst_colorspace": Colorspace.ITU601,
    "src_color_range": ColorRange.JPEG,
    "dst_color_range": ColorRange.MPEG,
}


def encode(file: Path | BinaryIO, frames: Iterable[np.ndarray], rate: Fraction, **x264: str) -> None:
    """uint8 (height, width, 3) each, both even, and frames a second -> MP4, the same bytes every time. `x264` are the encoder's
    options, with _ for -. Raises OSError.

    One converter for all: made anew for each frame, it took more of a small clip's time than x264.
    """
    options = {name.replace("_", "-"): value for name, value in x264.items()}
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream("libx264", rate=rate, options=options)
        to_yuv = VideoReformatter()
        for number, pixels in enumerate(frames):
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt, stream.thread_count = "yuv420p", 1
                stream.codec_context.colorspace, stream.codec_context.color_range = BT601, ColorRange.MPEG
            output.mux(stream.encode(to_yuv.reformat(av.VideoFrame.from_ndarray(pixels, format="rgb24"), **COLOURS)))
        output.mux(stream.encode())
