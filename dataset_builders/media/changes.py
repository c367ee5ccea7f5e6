"""A picture that becomes another one in mid-stream: spliced recordings, calls that adapt to the line, photographs in a row.

A clip has one size, one orientation and one colour matrix, and it would be the first frame's: what comes after another size
would be squeezed or enlarged, after another matrix of wrong colours. So where one of them changes within what is wanted, no
preset takes it. Another pixel format is no other picture; but FFmpeg builds its filters anew for it, and what deinterlacing had
held back is lost.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import av

from dataset_builders.media.probe import BEYOND, VideoInfo, open_container, open_file, picture, video_stream
from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.decoding.colour import matrix_of, range_of
from pipeline.decoding.decode import packets_of
from pipeline.decoding.orientation import rotation_of


def difference(first: av.VideoFrame, frame: av.VideoFrame) -> str:
    """What of a frame is not as in the first one, empty if it is the same picture: "size changes from 96x64 to 64x64"."""
    looked_at: dict[str, Callable[[av.VideoFrame], Any]] = {"size": _size, "orientation": rotation_of, "colour matrix": _matrix}
    if frame.format.name == first.format.name:
        looked_at["range"] = range_of
    for what, of in looked_at.items():
        if (before := of(first)) != (after := of(frame)):
            return f"{what} changes from {before} to {after}"
    return ""


def _size(frame: av.VideoFrame) -> str:
    return f"{frame.width}x{frame.height}"


def _matrix(frame: av.VideoFrame) -> str:
    try:
        return matrix_of(frame)
    except ValueError:
        return f"number {frame.colorspace}"


def settled(path: bytes, info: VideoInfo) -> VideoInfo:
    """Decode the wanted part of a video for which FFmpeg built its filters anew on the way -> what it is: from its own first
    frame, not one before it, and without deinterlacing where no frame asks for it.

    Raises RejectedError(unsupported) if it is not one picture from its first frame to its last.
    """
    first: av.VideoFrame | None = None
    number, interlaced, another_format = 0, False, ""
    with open(open_file(path), "rb", buffering=0) as file, open_container(file) as container:
        stream, window = video_stream(container), info.window
        if window and math.isfinite(window.seek):
            container.seek(round(window.seek * av.time_base))
        base = float(stream.time_base or 1)
        begin, end = (window.begin, window.end) if window else (-math.inf, math.inf)
        for packet in packets_of(container, stream):
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.error.FFmpegError:
                continue  # FFmpeg counts it
            for frame in frames:
                if window and (frame.pts is None or not begin <= frame.pts * base < end):
                    continue
                first = first or frame
                if found := difference(first, frame):
                    raise RejectedError(Reason.UNSUPPORTED, f"its {found} in frame {number}")
                interlaced |= frame.interlaced_frame
                if not another_format and frame.format.name != first.format.name:
                    another_format = f"{first.format.name} to {frame.format.name} in frame {number}"
                number += 1
            if packet.dts is not None and packet.dts * base > end + BEYOND:
                break
    if first is None:
        return info
    if interlaced and another_format and info.planar_yuv:
        detail = f"it is interlaced, and its pixel format changes from {another_format}"
        raise RejectedError(Reason.UNSUPPORTED, detail)
    return replace(info, **picture(first, info.pixel_aspect), planar_yuv=info.planar_yuv and interlaced)
