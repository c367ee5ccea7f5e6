"""What a video file, or a window of one, is: found by reading its packets and decoding its first frame.

FFmpeg never sees the file's name: it gets an open descriptor, and no protocol that could open another. So a name can
hold anything (`-i`, `concat:`, `%04d`), and a playlist among the videos cannot pull in other files.
"""

import io
import math
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.video

from dataset_builders.media.frame_rate import LONGEST_PAUSES, continued, frame_rate, grid_origin
from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.decoding.colour import matrix_of
from pipeline.decoding.decode import find_video, is_hidden, packets_of
from pipeline.decoding.orientation import rotation_of

SLACK = 0.001  # seconds by which a frame may come before a window's edge: what containers in milliseconds are off by
OFF = 3
BEYOND = 2.0  # seconds to read on after a window, to see the frame that follows it
SEEK_BACK = (0.0, 2.0, 10.0, 60.0, 300.0)  # seconds: how far before a window to look for a place that decoding can start at


@dataclass(frozen=True, slots=True)
class Window:
    """Where the wanted part lies, in seconds on the clock of the file's time stamps (which need not begin at 0)."""

    seek: float  # go here and no frame of the part is lost
    begin: float  # between the last frame before the part and its first one, in the middle
    end: float  # between its last frame and the one after it; infinite where there is none
    edges: tuple[float, float]  # as asked for, the end no later than the file's


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What transcoding needs to know of a source."""

    stream: int  # index in the container
    container: str  # FFmpeg's name of the demuxer: "mov,mp4,m4a,3gp,3g2,mj2"
    codec: str
    width: int  # as coded: before rotation, pixels not necessarily square
    height: int
    pixel_aspect: Fraction  # width of a pixel over its height
    rotation: int  # what shows a decoded frame upright, see pipeline.decoding.orientation
    pixel_format: str
    planar_yuv: bool
    matrix: str  # one of colour.TAGS' values; that of the usual rule where the stream does not say
    rate: Fraction  # frames per second to encode at
    constant_rate: bool  # equally spaced frames: each is kept once; otherwise they are resampled to `rate`
    num_packets: int  # about the number of frames of the wanted part: no header is asked
    first: float | None = 0.0  # on the same clock, seconds: of the first frame; of the middle of all frames' places on a grid
    # of `rate` where they are equally spaced; None where the file knows no time stamps, or they begin anew in the middle
    last: float = 0.0  # the last frame
    clock: float = 0.0  # what the clock shows at the beginning of the file: what a player calls 0
    window: Window | None = None  # None: the whole file
    exact: bool = True  # packets say when their frames are shown; in AVI none does, FFmpeg guesses from their order, and where
    # there are B-frames or repeated ones a window begins and ends up to OFF frames early or late


def open_file(path: bytes) -> int:
    """A read-only descriptor of a regular file; raises RejectedError(unreadable)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe by that name must not block
        if not os.path.isfile(path):
            os.close(descriptor)
            raise RejectedError(Reason.UNREADABLE, "is no regular file")
    except OSError as error:
        raise RejectedError(Reason.UNREADABLE, error.strerror or str(error)) from None
    return descriptor


def open_container(file: io.IOBase) -> av.container.InputContainer:
    """An open binary file -> PyAV container that can reach no other file; raises RejectedError(not_video, truncated)."""
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    if not head:
        raise RejectedError(Reason.NOT_VIDEO, "the file is empty")
    try:
        container = av.open(file, metadata_errors="replace", options={"protocol_whitelist": "none"})
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        if head[4:8] == b"ftyp":
            raise RejectedError(Reason.TRUNCATED, "an MP4 file without its index (moov): a cut-off download?") from None
        raise RejectedError(Reason.NOT_VIDEO, f"FFmpeg finds no video in it: {error.strerror}") from None
    assert isinstance(container, av.container.InputContainer)
    if container.format.name.endswith("_pipe"):
        raise RejectedError(Reason.NOT_VIDEO, f"a still image ({container.format.name.removesuffix('_pipe')})")
    return container


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The stream a player would show; raises RejectedError(no_video_stream, unsupported)."""
    stream = find_video(container)
    if stream is None:
        raise RejectedError(Reason.NO_VIDEO_STREAM, f"{container.format.name} without a moving picture")
    if stream.codec_context is None:
        raise RejectedError(Reason.UNSUPPORTED, "FFmpeg has no decoder for its codec")
    stream.thread_type = "NONE"
    return stream


def probe(path: bytes, start: float | None = None, end: float | None = None) -> VideoInfo:
    """Read all packets of a file, or those of a window, and decode its first frame; raises RejectedError.

    `start` and `end` are seconds from what a player calls 0 (the beginning of the earliest stream, sound included); frames
    are wanted that are shown from `start` (up to a millisecond before) until before `end`. None: the file's own beginning
    and end. Of a window only its packets and those since the key frame before it are read: 0.1 s for a minute of a film of two
    hours, 1 s for 15 minutes, where the whole film takes 8 s.
    """
    with open(open_file(path), "rb", buffering=0) as file:
        try:
            seek = -math.inf
            if start is not None:
                with open_container(file) as container:
                    seek = _seek_target(container, start)
            with open_container(file) as container:  # anew, as FFmpeg will: MPEG-TS does not find its first packets again
                return _probe(container, start, end, seek)
        except MemoryError:
            raise
        except av.error.FFmpegError as error:
            raise RejectedError(Reason.DAMAGED, f"reading it stops with: {error.strerror}") from None
        except OSError as error:
            raise RejectedError(Reason.UNREADABLE, error.strerror or str(error)) from None


def _probe(container: av.container.InputContainer, start: float | None, end: float | None, seek: float) -> VideoInfo:
    stream = video_stream(container)
    whole = start is None and end is None
    clock = (container.start_time or 0) / av.time_base
    edges = (-math.inf if start is None else clock + start, math.inf if end is None else clock + end)
    if math.isfinite(seek):
        container.seek(round(seek * av.time_base))
    frame: av.VideoFrame | None = None
    times: list[int | None] = []
    stamps: list[tuple[int | None, int | None]] = []
    last_duration, exact = 0, container.format.name != "avi"
    for packet in packets_of(container, stream):
        if packet.size and not packet.is_discard and not is_hidden(stream.codec.canonical_name, packet):
            times.append(packet.pts if packet.pts is not None else packet.dts)
            stamps.append((times[-1], packet.dts))
            last_duration, exact = packet.duration or 0, exact and packet.pts is not None
        if frame is None:
            try:
                frame = next(iter(packet.decode()), None)
            except MemoryError:
                raise
            except av.error.FFmpegError:
                continue  # a player would go on, too; the packet fails again, and counts, when the file is decoded
        if packet.dts is not None and stream.time_base and packet.dts * stream.time_base > edges[1] + BEYOND:
            break  # no frame is shown before it is decoded: all that the window holds have come
    if not times:
        raise RejectedError(Reason.DAMAGED, "its video stream holds no packets")
    if frame is None:
        raise RejectedError(Reason.DAMAGED, f"none of its {len(times)} packets could be decoded")
    if not frame.width or not frame.height:
        raise RejectedError(Reason.DAMAGED, f"its frames are {frame.width}x{frame.height} pixels")
    every = _seconds(times, stream.time_base)
    if not every and not whole:
        raise RejectedError(Reason.UNSUPPORTED, f"{container.format.name} without time stamps: no part can be cut from it")
    seconds = [time for time in every if edges[0] - SLACK <= time < edges[1] - SLACK]
    if every and not seconds:
        detail = (
            f"no frame is shown from {start or 0:g} s to {end or math.inf:g} s; the video ends at {every[-1] - clock:.2f} s"
        )
        raise RejectedError(Reason.TOO_SHORT, detail)
    nominal = [Fraction(r) for r in (stream.guessed_rate, stream.average_rate, stream.base_rate) if r]
    longest_pause = LONGEST_PAUSES.get(container.format.name, math.inf) if whole else math.inf
    joined, spliced = continued(stamps, stream.time_base, longest_pause)
    rate, constant = frame_rate(joined if spliced and whole else seconds, nominal)
    if spliced and not (whole and constant):
        detail = "its time stamps begin anew in the middle"
        detail += ", and its frames are not equally spaced" if whole else ": no part can be cut from it"
        raise RejectedError(Reason.UNSUPPORTED, detail)
    _check_complete(stream, every, edges, float(last_duration * (stream.time_base or 0)), rate)
    window = None
    if not whole:
        before = [time for time in every if time < seconds[0]]
        after = [time for time in every if time > seconds[-1]]
        begin = (before[-1] + seconds[0]) / 2 if before else -math.inf
        until = (after[0] + seconds[-1]) / 2 if after else math.inf
        shown = (max(edges[0], clock), min(edges[1], seconds[-1] + float(1 / rate)) if not after else edges[1])
        window = Window(seek, begin, until, shown)
    return VideoInfo(
        stream=stream.index,
        container=container.format.name,
        codec=stream.codec.canonical_name,
        planar_yuv=frame.format.is_planar and not frame.format.is_rgb and not frame.format.has_palette,
        **picture(frame, stream.sample_aspect_ratio),
        rate=rate,
        constant_rate=constant,
        num_packets=len(seconds) if seconds else len(times),
        first=(grid_origin(seconds, rate) if constant else seconds[0]) if seconds and not spliced else None,
        last=seconds[-1] if seconds else 0.0,
        clock=clock,
        window=window,
        exact=exact,
    )


def _seek_target(container: av.container.InputContainer, start: float) -> float:
    """A time to seek to that leads to a key frame before `start`, for FFmpeg's program, too (-inf: read from the beginning).

    It goes 3/23 s further back by itself where frames may be reordered. Some demuxers (MPEG-TS) end between key frames.
    """
    stream = video_stream(container)
    clock = (container.start_time or 0) / av.time_base
    for back in SEEK_BACK:
        target = clock + start - back - 0.2
        if target <= clock:
            break
        try:
            container.seek(round(target * av.time_base))
            packet = next(p for p in packets_of(container, stream) if p.size)
        except (av.error.FFmpegError, StopIteration):
            continue
        time = packet.pts if packet.pts is not None else packet.dts
        if packet.is_keyframe and time is not None and stream.time_base and time * stream.time_base <= clock + start:
            return target
    return -math.inf


def picture(frame: av.VideoFrame, aspect: Fraction | None = None) -> dict[str, Any]:
    """What a frame says: VideoInfo's width, height, pixel_aspect, rotation, pixel_format and matrix; raises RejectedError."""
    try:
        matrix = matrix_of(frame)
    except ValueError as error:
        raise RejectedError(Reason.UNSUPPORTED, str(error)) from None
    return {
        "width": frame.width,
        "height": frame.height,
        "pixel_aspect": Fraction(aspect) if aspect and Fraction(1, 10) < aspect < 10 else Fraction(1),
        "rotation": rotation_of(frame),
        "pixel_format": frame.format.name,
        "matrix": matrix,
    }


def _seconds(times: list[int | None], time_base: Fraction | None) -> list[float]:
    """In the order of display; empty if they are not known."""
    known = sorted(time for time in times if time is not None)
    return [float(time * time_base) for time in known] if time_base and len(known) == len(times) else []


def _check_complete(
    stream: av.video.stream.VideoStream, seconds: list[float], edges: tuple[float, float], last_duration: float, rate: Fraction
) -> None:
    """Compare the stream's declared duration with its packets; 127 of 394 real clips are wrong by one to five frames."""
    begin = min(seconds, default=0.0)
    if edges[0] > -math.inf:  # its first packets were not read
        begin = float((stream.start_time or 0) * (stream.time_base or 0))
    if stream.duration and stream.time_base:
        declared = float(stream.duration * stream.time_base)
    elif tag := re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", "")):  # Matroska
        declared = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        declared -= begin  # the tag holds the time at which the track ends
    else:
        return
    wanted = min(declared, edges[1] - begin)
    found = max(seconds) - begin + max(last_duration, float(1 / rate)) if seconds else declared
    span = wanted - max(0.0, edges[0] - begin)
    if wanted - found > max(6 / float(rate), 0.05 * span):
        detail = f"the header promises {declared:.2f} s, the data end after {found:.2f} s"
        raise RejectedError(Reason.TRUNCATED, detail)
