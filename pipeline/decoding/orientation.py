"""How a frame is turned to be shown: one of eight ways, which the manifest's `rotation` and `Clip.rotation` say in one number.

0, 90, 180 or 270 are degrees counter-clockwise; 360 more (`MIRRORED`) if left and right are exchanged before that, as front
cameras ask for: 360 is mirrored, 540 upside down (both mirrored and turned by 180), 450 and 630 are the two transpositions. So
`rotation % 180` still says that width and height are exchanged, and a clip that needs nothing has 0. Datasets from before
29 November 2026 have no mirrored clips: where their `copy` should have said so, `verify` finds it.
"""

import struct
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type

MIRRORED = 360


def _unknown_type(kinds: type[Any], value: int) -> Any:
    """PyAV 18.1 has no name for what JPEG's EXIF became in FFmpeg 8 (31), and then refuses to show any side data."""
    kind = object.__new__(kinds)
    kind._name_, kind._value_ = f"UNKNOWN_{value}", value
    return kind


Type._missing_ = classmethod(_unknown_type)  # type: ignore[assignment]


def rotation_of(frame: av.VideoFrame) -> int:
    """What the file says of a decoded frame, in its display matrix or by EXIF: the nearest of the eight ways."""
    # not `frame.side_data`: the frame would hold it, and it the frame, until Python looks for circles
    data = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]
    if data is None:
        return 0
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])  # the pixel (p, q) is shown at (a p + c q, b p + d q), y downwards
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    # as av_display_rotation_get
    across, down = np.hypot(a, c), np.hypot(b, d)
    if not across or not down:
        return 0
    return round(-np.degrees(np.arctan2(b / down, a / across)) / 90) % 4 * 90 + MIRRORED * mirrored


def upright(frames: np.ndarray, rotation: int) -> np.ndarray:
    """Stored pixels (height, width, ...) -> as they are shown, a view of the same memory."""
    return np.rot90(frames[:, ::-1] if rotation >= MIRRORED else frames, rotation // 90)


def stored_size(width: int, height: int, rotation: int) -> tuple[int, int]:
    """Width and height as shown -> as stored, and the other way round."""
    return (height, width) if rotation % 180 else (width, height)


def stored_box(box: np.ndarray, width: int, height: int, rotation: int) -> tuple[int, int, int, int]:
    """A box (x, y, width, height) of the frame as it is shown -> the same pixels in the frame as it is stored, whose size is
    given."""
    x, y, w, h = (int(value) for value in box)
    match rotation % MIRRORED:
        case 90:
            x, y, w, h = width - y - h, x, h, w
        case 180:
            x, y = width - x - w, height - y - h
        case 270:
            x, y, w, h = y, height - x - w, h, w
    return (width - x - w if rotation >= MIRRORED else x), y, w, h
