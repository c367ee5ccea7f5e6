"""Sizes: what a source is scaled to, and what is cropped from it."""

import math
import re
from fractions import Fraction
from functools import cache

from dataset_builders.media.presets import EncodeOptions
from dataset_builders.media.probe import VideoInfo
from dataset_builders.media.rejects import Reason, RejectedError

MULTIPLE = 16  # width and height of an encoded clip: what NVDEC's surfaces are rounded to
Size = tuple[int, int]  # width, height


def geometry(info: VideoInfo, options: EncodeOptions) -> tuple[Size, Size]:
    """-> (size to scale to, size of the centre that is kept), upright; raises RejectedError(too_small).

    Scaling makes pixels square by changing the width and never enlarges a side. Without a canvas the short side becomes
    `short_side`; sizes are rounded down to even numbers (4:2:0), then to multiples of 16: at most 15 pixels are cropped.

    With canvases, the picture covers the one whose aspect ratio is nearest to its own among those that it is large enough
    for, and its centre is kept. Of its area that costs 1 - exp(-d) where d is the distance of the logarithms of the two
    ratios. With 256x256, 352x256 and 448x256 and their upright forms: 16:9 loses 2 %, 4:3 3 %, at most 15 % between two
    canvases (at 1.17:1), beyond them more (27 % of cinema's 2.39:1). A source that is smaller than all of them keeps a size
    of its own, as without canvas; its row shows it by its size.
    """
    width, height = info.width * info.pixel_aspect, Fraction(info.height)
    if info.rotation % 180:
        width, height = height, width
    large_enough = [size for size in parse_canvas(options.canvas) if size[0] <= width and size[1] <= height]
    if large_enough:
        canvas = min(large_enough, key=lambda size: (abs(math.log(width / height * size[1] / size[0])), -size[0] * size[1]))
        factor = max(canvas[0] / width, canvas[1] / height)
        return (_cover(width * factor, canvas[0]), _cover(height * factor, canvas[1])), canvas
    factor = min(Fraction(options.short_side) / min(width, height), Fraction(1))
    scaled = int(width * factor / 2) * 2, int(height * factor / 2) * 2
    cropped = scaled[0] // MULTIPLE * MULTIPLE, scaled[1] // MULTIPLE * MULTIPLE
    if min(cropped) < MULTIPLE:
        raise RejectedError(Reason.TOO_SMALL, f"{round(width)}x{round(height)} pixels; at least 16x16 are needed")
    return scaled, cropped


def shown(info: VideoInfo, options: EncodeOptions) -> list[float]:
    """What a clip shows of a source's picture: a box x1, y1, x2, y2, in fractions of it."""
    scaled, kept = geometry(info, options)
    x, y = ((whole - part) // 2 // 2 * 2 for whole, part in zip(scaled, kept, strict=True))  # as FFmpeg's crop, of 4:2:0
    return [x / scaled[0], y / scaled[1], (x + kept[0]) / scaled[0], (y + kept[1]) / scaled[1]]


def _cover(length: Fraction, at_least: int) -> int:
    return max(int(length / 2) * 2, at_least)


@cache
def parse_canvas(text: str) -> tuple[Size, ...]:
    """ "352x256,256x352" -> ((352, 256), (256, 352)), "" -> (); raises ValueError."""
    sizes = []
    for part in text.split(",") if text else ():
        found = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", part.strip())
        if not found or int(found[1]) % MULTIPLE or int(found[2]) % MULTIPLE:
            raise ValueError(
                f"canvas {text!r}: {part!r} is no size; give widths and heights that are multiples of {MULTIPLE}, "
                "such as 352x256,256x352,448x256,256x448,256x256"
            )
        sizes.append((int(found[1]), int(found[2])))
    return tuple(sizes)
