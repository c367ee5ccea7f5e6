"""Decoded frames -> RGB, and only the part of them that somebody looks at.

The conversion is swscale's, whose flags are part of a batch's bytes. PyAV can ask it for whole frames only, each in fresh
memory; `RgbConverter` calls it, in the library that PyAV has loaded, for the box around a clip's crops. 16 frames of 336 x 256
whole: 0.84 ms, 192 x 192 of them 0.48 ms (one core of an Intel Xeon). The bytes are the same, and where swscale cannot be
called this way (pixel formats other than 4:2:0 in planes), PyAV does it; so it does for frames of odd height, which swscale
converts by another path with other bytes.
"""

import ctypes
import functools
import threading
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

# swscale's plain bilinear path converts 256 x 384 in about a quarter of the time of ACCURATE_RND (0.1 against 0.4 ms a frame
# here, decoding itself 0.15) and differs from it by about one level.
SWSCALE_FLAGS = Interpolation.BILINEAR
MATRICES = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709, "bt2020": Colorspace.BT2020}
RANGES = {"limited": ColorRange.MPEG, "full": ColorRange.JPEG}
TAGS = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}  # of AVCOL_SPC_*
PLANAR = {"yuv420p": 0, "yuvj420p": 12}  # AVPixelFormat; the second is always of full range
RGB24 = 2
SWSCALE_MAJOR = 9  # FFmpeg 8: what is called here, and the numbers above, are its
UNITY = 1 << 16  # contrast and saturation
ALIGNED = 32  # pixels: where a region begins, so that rows of chroma begin as aligned as those of a frame
PAD = 64  # bytes between rows, and after the last: vectors write beyond a row


Region = tuple[int, int, int, int]
"""x, y, width, height in pixels of the frame as it is stored."""


def matrix_of(frame: av.VideoFrame) -> str:
    """The YCbCr matrix of a frame; where it is not tagged, BT.709 from 720 lines on and BT.601 below, as players do. Grey and
    black-and-white frames and palettes have no chroma that a matrix could be of, whatever their tag: PNG's is number 0, RGB.
    Raises ValueError for one that has no name in TAGS."""
    if frame.format.is_rgb or frame.colorspace == 2:  # AVCOL_SPC_UNSPECIFIED
        return "bt709" if frame.height >= 720 and not frame.format.is_rgb else "bt601"
    if frame.colorspace not in TAGS:
        if len(frame.format.components) < 3:  # the second is alpha
            return "bt601"
        raise ValueError(f"colour matrix number {frame.colorspace} (H.273) is not supported")
    return TAGS[frame.colorspace]


def range_of(frame: av.VideoFrame) -> str:
    """A key of RANGES."""
    return "full" if frame.color_range == 2 or "yuvj" in frame.format.name or frame.format.is_rgb else "limited"


def region_around(boxes: np.ndarray, width: int, height: int) -> Region:
    """What to convert of frames of this size for boxes (R, 4) (x, y, width, height): all of them, and a little more."""
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
    x = min(int(boxes[:, 0].min()), max(0, width - ALIGNED)) // ALIGNED * ALIGNED
    y = int(boxes[:, 1].min()) // 2 * 2
    return x, y, min(width, x + -(-(right - x) // 16) * 16) - x, min(height, -(-bottom // 2) * 2) - y


class RgbConverter:
    """Frames of one clip -> RGB of a region. A context manager, of one thread."""

    _memory = threading.local()  # used again: fresh pages for every frame cost as much as converting it

    def __init__(self, matrix: str, color_range: str, region: Region) -> None:
        """`matrix` and `color_range` as in the manifest: keys of MATRICES and RANGES."""
        self._matrix, self._range, self._region = MATRICES[matrix], RANGES[color_range], region
        self._reformatter: VideoReformatter | None = None
        self._swscale, self._context, self._pixels = load_swscale(), None, ""

    def _begin(self, pixels: str) -> None:
        """The first frame has come."""
        assert self._swscale
        _, _, width, height = self._region
        self._pixels = pixels
        self._context = self._swscale.sws_getContext(
            width, height, PLANAR[pixels], width, height, RGB24, SWSCALE_FLAGS, None, None, None
        )
        if not self._context:
            return
        numbers = self._swscale.sws_getCoefficients(self._matrix)
        full = int(self._range == ColorRange.JPEG or pixels == "yuvj420p")
        self._swscale.sws_setColorspaceDetails(self._context, numbers, full, numbers, 1, 0, UNITY, UNITY)
        line = -(-3 * width // PAD) * PAD + PAD
        size = height * line + PAD
        if getattr(self._memory, "array", np.empty(0)).size < size:
            self._memory.array = np.empty(size, np.uint8)
        self._rows = self._memory.array[: height * line].reshape(height, line)
        self._target, self._line = (ctypes.c_void_p * 4)(self._rows.ctypes.data), (ctypes.c_int * 4)(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._swscale and self._context:
            self._swscale.sws_freeContext(self._context)
            self._context = None

    def rows(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame's region, uint8 (height, line size): RGB from the first byte of a row on, until the next call."""
        x, y, _, height = self._region
        pixels = frame.format.name
        if self._swscale and not self._pixels and pixels in PLANAR and frame.height % 2 == 0:
            self._begin(pixels)
        if not self._swscale or not self._context or pixels != self._pixels:
            return self._whole(frame)[y : y + height, 3 * x :]
        luma, u, v = frame.planes
        across, down = x // 2, y // 2
        source = (ctypes.c_void_p * 4)(
            luma.buffer_ptr + y * luma.line_size + x,
            u.buffer_ptr + down * u.line_size + across,
            v.buffer_ptr + down * v.line_size + across,
        )
        lines = (ctypes.c_int * 4)(luma.line_size, u.line_size, v.line_size)
        converted = self._swscale.sws_scale(self._context, source, lines, 0, height, self._target, self._line)
        assert converted == height, f"swscale converted {converted} of {height} rows"
        return self._rows

    def _whole(self, frame: av.VideoFrame) -> np.ndarray:
        self._reformatter = self._reformatter or VideoReformatter()
        rgb = self._reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            src_color_range=self._range,
            dst_color_range=ColorRange.JPEG,
            interpolation=SWSCALE_FLAGS,
            threads=1,
        )
        plane = rgb.planes[0]
        return np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)


def load_swscale() -> ctypes.CDLL | None:
    """The library that PyAV has loaded; None where it cannot be called, for the reason that `find_swscale` gives."""
    found = find_swscale()
    return None if isinstance(found, str) else found


@functools.cache
def find_swscale() -> ctypes.CDLL | str:
    """PyAV's own swscale among the libraries of this process, of the one version that is known here; or why it is not taken."""
    version = av.library_versions["libswscale"]
    if version[0] != SWSCALE_MAJOR:
        return f"PyAV's libswscale is {version[0]}, and {SWSCALE_MAJOR} is known here"
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
        paths = dict.fromkeys(line.split(maxsplit=5)[-1] for line in mapped if "libswscale" in line)
        libraries = [ctypes.CDLL(path) for path in paths]  # decord, OpenCV and others have one of their own
    except OSError as error:
        return str(error)
    number, pointer = ctypes.c_int, ctypes.c_void_p
    for library in libraries:
        if library.swscale_version() == int.from_bytes(version):
            library.sws_getContext.restype = library.sws_getCoefficients.restype = pointer
            library.sws_getContext.argtypes = [*[number] * 7, *[pointer] * 3]
            library.sws_getCoefficients.argtypes = [number]
            library.sws_setColorspaceDetails.argtypes = [pointer, pointer, number, pointer, *[number] * 4]
            library.sws_scale.argtypes = [pointer, pointer, pointer, number, number, pointer, pointer]
            library.sws_freeContext.argtypes = [pointer]
            return library
    return "PyAV's libswscale is not among the libraries of this process"
