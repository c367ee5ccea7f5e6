"""Eight ways to turn a frame: what a file says, what is shown, and where a part of it lies."""

import io

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.decoding.orientation import rotation_of, stored_box, stored_size, upright
from tests.pipeline.encoding import numbered_frame

ROTATIONS = [0, 90, 180, 270, 360, 450, 540, 630]
STORED = np.arange(5 * 7 * 3).reshape(5, 7, 3)


def test_the_ways_are_eight() -> None:
    shown = [upright(STORED, rotation) for rotation in ROTATIONS]
    assert len({pixels.tobytes() + bytes(pixels.shape) for pixels in shown}) == 8
    np.testing.assert_array_equal(shown[4], STORED[:, ::-1])
    np.testing.assert_array_equal(shown[6], STORED[::-1])
    np.testing.assert_array_equal(np.sort(shown[5], axis=None), np.sort(STORED, axis=None))
    assert [(rotation, pixels.shape[1::-1]) for rotation, pixels in zip(ROTATIONS, shown, strict=True)] == [
        (rotation, stored_size(7, 5, rotation)) for rotation in ROTATIONS
    ]


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_box_is_found_where_it_is_stored(rotation: int) -> None:
    left, top, width, height = 1, 2, 3, 2
    x, y, w, h = stored_box(np.array([left, top, width, height]), 7, 5, rotation)
    part = upright(STORED, rotation)[top : top + height, left : left + width]
    np.testing.assert_array_equal(upright(STORED[y : y + h, x : x + w], rotation), part)


@pytest.mark.parametrize("way", range(1, 9))
def test_photographs_say_it_by_exif(way: int) -> None:
    """As Pillow shows them; FFmpeg hands on what it read of them as side data that PyAV has no name for."""
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = way
    Image.fromarray(numbered_frame(37)).save(data, "jpeg", quality=95, exif=exif)
    frame = next(iter(av.CodecContext.create("mjpeg", "r").decode(av.Packet(data.getvalue()))))
    shown = upright(frame.to_ndarray(format="rgb24"), rotation_of(frame)).astype(int)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(data)))
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 2
