from dataclasses import replace
from fractions import Fraction

import pytest

from dataset_builders.media.geometry import geometry, parse_canvas
from dataset_builders.media.presets import EncodeOptions
from dataset_builders.media.probe import VideoInfo
from dataset_builders.media.rejects import Reason, RejectedError

INFO = VideoInfo(0, "mp4", "h264", 640, 360, Fraction(1), 0, "yuv420p", True, "bt601", Fraction(30), True, 30)
CANVAS = "352x256,256x352,448x256,256x448,256x256"


@pytest.mark.parametrize(
    ("size", "aspect", "rotation", "scaled", "cropped"),
    [
        ((640, 360), 1, 0, (454, 256), (448, 256)),
        ((640, 360), 1, 90, (256, 454), (256, 448)),
        ((340, 256), 1, 0, (340, 256), (336, 256)),
        ((321, 239), 1, 0, (320, 238), (320, 224)),  # never enlarged, even sizes
        ((720, 576), Fraction(16, 15), 0, (340, 256), (336, 256)),  # PAL, 4:3
        ((720, 480), Fraction(8, 9), 0, (340, 256), (336, 256)),  # NTSC, 4:3
        ((3840, 2160), 1, 270, (256, 454), (256, 448)),
        ((1000, 17), 1, 0, (1000, 16), (992, 16)),
    ],
)
def test_without_canvas(size, aspect, rotation, scaled, cropped) -> None:
    info = replace(INFO, width=size[0], height=size[1], pixel_aspect=Fraction(aspect), rotation=rotation)
    assert geometry(info, EncodeOptions()) == (scaled, cropped)
    assert all(0 <= s - c <= 15 for s, c in zip(scaled, cropped, strict=True))


@pytest.mark.parametrize(
    ("size", "rotation", "scaled", "cropped"),
    [
        ((1920, 1080), 0, (454, 256), (448, 256)),
        ((1920, 1080), 90, (256, 454), (256, 448)),
        ((640, 480), 0, (352, 264), (352, 256)),
        ((1080, 1080), 0, (256, 256), (256, 256)),
        ((1000, 900), 0, (284, 256), (256, 256)),
        ((1920, 800), 0, (614, 256), (448, 256)),  # cinema
        ((448, 256), 0, (448, 256), (448, 256)),
        ((400, 256), 0, (400, 256), (352, 256)),  # 448x256 would have to enlarge it
        ((320, 240), 0, (320, 240), (320, 240)),  # smaller than all: a size of its own
        ((300, 200), 0, (300, 200), (288, 192)),
    ],
)
def test_with_canvas(size, rotation, scaled, cropped) -> None:
    info = replace(INFO, width=size[0], height=size[1], rotation=rotation)
    assert geometry(info, EncodeOptions(canvas=CANVAS)) == (scaled, cropped)


def test_a_canvas_never_enlarges_and_costs_what_is_documented() -> None:
    """1 - exp(-distance of the logarithms), at most 15 % between the canvases' own ratios."""
    lost = []
    for width in range(448, 1800, 7):
        info = replace(INFO, width=width, height=1024)
        scaled, cropped = geometry(info, EncodeOptions(canvas=CANVAS))
        assert scaled[0] <= width and scaled[1] <= 1024
        assert abs(scaled[0] / scaled[1] / (width / 1024) - 1) < 0.01
        assert cropped in parse_canvas(CANVAS)
        assert all(c <= s for s, c in zip(scaled, cropped, strict=True))
        if 256 / 448 <= width / 1024 <= 448 / 256:
            lost.append(1 - cropped[0] * cropped[1] / scaled[0] / scaled[1])
    assert 0.14 < max(lost) < 0.155


@pytest.mark.parametrize("text", ["352x250", "352", "352x256;256x352", "0x256", "352x256,", "-16x16", "16 x 16", "99999x16"])
def test_a_canvas_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        parse_canvas(text)


def test_canvases() -> None:
    assert parse_canvas("") == ()
    assert parse_canvas("352x256, 256x352") == ((352, 256), (256, 352))


def test_too_small() -> None:
    with pytest.raises(RejectedError) as caught:
        geometry(replace(INFO, width=100, height=14), EncodeOptions())
    assert caught.value.reason is Reason.TOO_SMALL
