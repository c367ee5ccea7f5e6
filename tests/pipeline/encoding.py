"""Clips whose frames carry their number as a bar code, so that a test can read which frame it was given."""

import io
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT, CELL = 128, 64, 16  # 8 bits of 16 px in the upper row; the lower half tells left from right


def numbered_frame(number: int) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3): bit b of the number is the b-th cell of the upper rows, white or black."""
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for bit in range(8):
        frame[: HEIGHT // 2, bit * CELL : (bit + 1) * CELL] = 235 if number >> bit & 1 else 20
    frame[HEIGHT // 2 :, : WIDTH // 2] = (200, 60, 60)
    return frame


def read_number(frame: np.ndarray) -> int:
    """The inverse of `numbered_frame`, from the cells' middles."""
    middles = frame[HEIGHT // 4, CELL // 2 :: CELL].mean(-1)
    return sum(1 << bit for bit, level in enumerate(middles) if level > 128)


def encode(
    frames: list[np.ndarray],
    codec: str = "libx264",
    container: str = "mp4",
    fps: int = 30,
    gop: int = 8,
    stamps: list[int] | None = None,
    options: dict[str, str] | None = None,
    matrix: str = "bt601",
    full_range: bool = False,
) -> bytes:
    """Encode RGB frames; `stamps` in units of 1/fps makes the frame rate variable."""
    from av.video.reformatter import ColorRange, Colorspace

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        stream.time_base = Fraction(1, fps)
        space = Colorspace.ITU709 if matrix == "bt709" else Colorspace.ITU601
        color_range = ColorRange.JPEG if full_range or codec == "mjpeg" else ColorRange.MPEG
        stream.codec_context.color_range = color_range
        stream.codec_context.colorspace = {"bt601": 5, "bt709": 1}[matrix]
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=stream.pix_fmt, dst_colorspace=space, dst_color_range=color_range, src_color_range=ColorRange.JPEG
            )
            frame.pts = stamps[number] if stamps else number
            frame.time_base = Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()
