import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decoding import colour
from pipeline.decoding.colour import MATRICES, RANGES, RgbConverter, find_swscale, load_swscale, region_around


def frame_of(width: int, height: int, pixels: str = "yuv420p") -> av.VideoFrame:
    """Noise, in rows that are longer than the frame is wide."""
    noise = np.random.default_rng(width * height)
    frame = av.VideoFrame(width, height, pixels)
    for plane in frame.planes:
        plane.update(noise.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    return frame


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(16, 400),
    height=st.integers(16, 200),
    matrix=st.sampled_from(sorted(MATRICES)),
    span=st.sampled_from(sorted(RANGES)),
    pixels=st.sampled_from(["yuv420p", "yuvj420p"]),
    data=st.data(),
)
def test_a_region_has_the_bytes_of_the_whole(
    width: int, height: int, matrix: str, span: str, pixels: str, data: st.DataObject
) -> None:
    boxes = []
    for _ in range(data.draw(st.integers(1, 3))):
        w, h = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
        boxes.append((data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h)), w, h))
    region = x, y, w, h = region_around(np.array(boxes), width, height)
    assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    for left, top, across, down in boxes:
        assert x <= left and y <= top and left + across <= x + w and top + down <= y + h
    frame = frame_of(width, height, pixels)
    whole = RgbConverter(matrix, span, (0, 0, width, height))._whole(frame)[:, : 3 * width]
    with RgbConverter(matrix, span, region) as converter:
        rows = converter.rows(frame)[:, : 3 * w]
        assert converter._context or height % 2, "this test is for swscale itself"
    np.testing.assert_array_equal(rows, whole[y : y + h, 3 * x : 3 * (x + w)])


@pytest.mark.parametrize("pixels", ["yuv444p", "yuv420p10le", "gray", "rgb24"])
def test_other_pixel_formats_are_converted_whole(pixels: str) -> None:
    frame = frame_of(64, 48, pixels)
    with RgbConverter("bt709", "limited", (32, 10, 32, 38)) as converter:
        rows = converter.rows(frame)
    expected = frame.to_ndarray(
        format="rgb24", interpolation=colour.SWSCALE_FLAGS, src_colorspace="ITU709", dst_colorspace="ITU709"
    )
    assert rows[:, : 3 * 32].shape == (38, 96)
    assert np.abs(rows[:, : 3 * 32].reshape(38, 32, 3).astype(int) - expected[10:, 32:]).max() <= 1


def test_without_swscale_the_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, region = frame_of(100, 80), (32, 2, 68, 70)
    with RgbConverter("bt601", "full", region) as converter:
        expected = converter.rows(frame)[:, : 3 * 68].copy()
    monkeypatch.setattr(colour, "load_swscale", lambda: None)
    with RgbConverter("bt601", "full", region) as converter:
        np.testing.assert_array_equal(converter.rows(frame)[:, : 3 * 68], expected)
        assert not converter._context


def test_the_library_is_found() -> None:
    """On Linux it always is."""
    assert load_swscale() is not None


@pytest.mark.parametrize(("version", "why"), [((10, 0, 100), "libswscale is 10"), ((9, 0, 1), "is not among the libraries")])
def test_another_version_is_not_called(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], why: str) -> None:
    monkeypatch.setitem(av.library_versions, "libswscale", version)
    assert why in find_swscale.__wrapped__()
