"""Encoded clip -> cropped uint8 views: the decoder contract, and its implementation on libav.

The contract: `(encoded bytes, frame indices, crop boxes) -> uint8 (R, T, size, size, 3)`, RGB, full range. Frame indices and
boxes come from `sampling`, never from a decoder, and a decoder is exact: frame i is the i-th in presentation order, its
rotation, YCbCr matrix and range are those of the manifest, and what cannot be delivered raises `DecodeError`; no frame is
ever guessed, repeated or left black. The R views share one decode.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from torch.nn.functional import interpolate

from pipeline.manifest import Clip

# swscale's flags are part of a batch's bytes. Its plain bilinear path converts 256 x 384 in about a quarter of the time of
# ACCURATE_RND (0.1 against 0.4 ms a frame here, decoding itself 0.15) and differs from it by about one level.
SWSCALE_FLAGS = Interpolation.BILINEAR
MATRICES = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709, "bt2020": Colorspace.BT2020}
RANGES = {"limited": ColorRange.MPEG, "full": ColorRange.JPEG}


class Failure(StrEnum):
    """Why a clip could not be delivered; the reasons in a run's ledger and in failures.jsonl."""

    READ = "read"  # its bytes could not be read
    DAMAGED = "damaged"  # the decoder refused them
    MISSING_FRAMES = "missing_frames"  # it decodes, but not to the frames the manifest promises
    TIMEOUT = "timeout"  # decoding took longer than the limit and was killed
    CRASH = "crash"  # decoding killed its process


class DecodeError(Exception):
    """A clip that cannot be delivered, with a reason from the closed list and the detail."""

    def __init__(self, reason: Failure, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """What to decode: `frames` (T,) int64 ascending, with repeats; `boxes` (R, 4) int64 (x, y, width, height), in pixels
    of the displayed (rotated) frame."""

    clip: Clip
    data: bytes
    frames: np.ndarray
    boxes: np.ndarray


Decoder = Callable[[ClipRequest, np.ndarray], None]
"""Fills a uint8 array (R, T, size, size, 3) or raises DecodeError."""


def decode_libav(request: ClipRequest, views: np.ndarray) -> None:
    """The contract on libav, one thread: seek to the key frame, decode to the last wanted frame, convert only wanted ones.

    Resizing is torch's antialiased bilinear on uint8 (what PIL does in the official loader, 0.7 ms a 16 x 224² view).
    """
    wanted, repeats = np.unique(request.frames, return_inverse=True)
    try:
        frames = decode_frames(request.clip, request.data, wanted)
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError(Failure.DAMAGED, f"{type(error).__name__}: {error}") from error
    height, width = frames.shape[1:3]
    if (width, height) != (request.clip.width, request.clip.height):
        raise DecodeError(
            Failure.DAMAGED,
            f"frames are {width} x {height}, the manifest says {request.clip.width} x {request.clip.height}",
        )
    source = torch.from_numpy(frames).permute(0, 3, 1, 2)  # channels last, as torch's fast uint8 kernel wants it
    size = views.shape[2:4]
    for view, (x, y, w, h) in zip(views, request.boxes.tolist(), strict=True):
        crop = source[:, :, y : y + h, x : x + w]
        if (h, w) != size:
            crop = interpolate(crop, size, mode="bilinear", antialias=True)
        np.take(crop.permute(0, 2, 3, 1).numpy(), repeats, axis=0, out=view)


def decode_frames(clip: Clip, data: bytes, wanted: np.ndarray) -> np.ndarray:
    """Frame indices (n,), ascending and distinct -> uint8 (n, height, width, 3) RGB, upright.

    Raises DecodeError if one of them does not come out, and what libav raises on damaged data.
    """
    # a BytesIO, not a path: nothing is written, and one range request fetched all there is
    with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
        if not container.streams.video:
            raise DecodeError(Failure.DAMAGED, "it has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # parallel over clips instead: no thread hand-over for frames of 0.15 ms
        index_of = _frame_numbers(clip, container, stream)
        if start := max((k for k in clip.keyframes if k <= wanted[0]), default=0):
            container.seek(index_of.time_stamp(start), stream=stream, backward=True)
        reformatter = VideoReformatter()
        frames: np.ndarray | None = None
        place = {int(frame): i for i, frame in enumerate(wanted)}
        for packet in container.demux(stream):
            for frame in packet.decode():
                i = place.pop(index_of(frame.pts), None)
                if i is None:
                    continue
                rgb = reformatter.reformat(
                    frame,
                    format="rgb24",
                    src_colorspace=MATRICES[clip.matrix],
                    dst_colorspace=MATRICES[clip.matrix],
                    src_color_range=RANGES[clip.range],
                    dst_color_range=ColorRange.JPEG,
                    interpolation=SWSCALE_FLAGS,
                    threads=1,
                )
                plane = rgb.planes[0]
                if frames is None:
                    frames = np.empty((len(wanted), rgb.height, rgb.width, 3), np.uint8)
                lines = np.frombuffer(memoryview(plane), np.uint8).reshape(rgb.height, plane.line_size)
                frames[i] = lines[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
            if not place:
                break
    if frames is None or place:
        missing = sorted(place)
        raise DecodeError(
            Failure.MISSING_FRAMES,
            f"{len(missing)} of {len(wanted)} frames did not come out, the first is {missing[0]} of {clip.num_frames}",
        )
    return np.ascontiguousarray(np.rot90(frames, clip.rotation // 90, axes=(1, 2))) if clip.rotation else frames


class _FrameNumbers:
    """Time stamp <-> presentation index."""

    def __init__(self, stamps: np.ndarray) -> None:
        self._stamps = stamps

    def __call__(self, pts: int | None) -> int:
        i = int(np.searchsorted(self._stamps, pts)) if pts is not None else len(self._stamps)
        return i if i < len(self._stamps) and self._stamps[i] == pts else -1

    def time_stamp(self, frame: int) -> int:
        if frame >= len(self._stamps):
            raise DecodeError(Failure.MISSING_FRAMES, f"frame {frame} was asked for, there are packets of {len(self._stamps)}")
        return int(self._stamps[frame])


def _frame_numbers(clip: Clip, container: av.container.InputContainer, stream: av.VideoStream) -> _FrameNumbers:
    """From the manifest where time stamps are equally spaced; otherwise from the packets, which costs a pass over them."""
    if clip.pts_step:
        return _FrameNumbers(clip.pts_start + clip.pts_step * np.arange(clip.num_frames))
    stamps = sorted(p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard)
    container.seek(stamps[0] if stamps else 0, stream=stream, backward=True)
    return _FrameNumbers(np.array(stamps))
