"""What a video file is: found by reading all of its packets and decoding its first frame.

FFmpeg never sees the file's name: it gets an open descriptor, and no protocol that could open another. So a name can
hold anything (`-i`, `concat:`, `%04d`), and a playlist among the videos cannot pull in other files.
"""

import io
import os
import re
import statistics
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
import av.video

from dataset_builders.rejects import Reason, RejectedError

# rates that a measured one is snapped to, because containers with time stamps in milliseconds blur them
STANDARD_RATES = [Fraction(n) for n in (5, 6, 8, 10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)] + [
    Fraction(n * 1000, 1001) for n in (24, 30, 60, 120)
]
MAX_RESAMPLED_RATE = 60  # frames per second, for sources whose frames are not equally spaced
MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}  # of AVCOL_SPC_*


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What transcoding needs to know of a source."""

    stream: int  # index in the container
    container: str  # FFmpeg's name of the demuxer: "mov,mp4,m4a,3gp,3g2,mj2"
    codec: str
    width: int  # as coded: before rotation, pixels not necessarily square
    height: int
    pixel_aspect: Fraction  # width of a pixel over its height
    rotation: int  # degrees counter-clockwise that turn a decoded frame upright: 0, 90, 180, 270
    pixel_format: str
    planar_yuv: bool
    matrix: str  # one of MATRICES' values; that of the usual rule where the stream does not say
    rate: Fraction  # frames per second to encode at
    constant_rate: bool  # equally spaced frames: each is kept once; otherwise they are resampled to `rate`
    num_packets: int  # about the number of frames: no header is asked


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
    moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        raise RejectedError(Reason.NO_VIDEO_STREAM, f"{container.format.name} without a moving picture")
    best = container.streams.best("video")
    stream = best if best in moving else moving[0]
    assert isinstance(stream, av.video.stream.VideoStream)
    if stream.codec_context is None:
        raise RejectedError(Reason.UNSUPPORTED, "FFmpeg has no decoder for its codec")
    stream.thread_type = "NONE"
    return stream


def probe(path: bytes) -> VideoInfo:
    """Read all packets of a file, decode its first frame; raises RejectedError."""
    with open(open_file(path), "rb", buffering=0) as file:
        try:
            container = open_container(file)
            with container:
                return _probe(container)
        except MemoryError:
            raise
        except av.error.FFmpegError as error:
            raise RejectedError(Reason.DAMAGED, f"reading it stops with: {error.strerror}") from None
        except OSError as error:
            raise RejectedError(Reason.UNREADABLE, error.strerror or str(error)) from None


def _probe(container: av.container.InputContainer) -> VideoInfo:
    stream = video_stream(container)
    frame: av.VideoFrame | None = None
    times: list[int | None] = []
    last_duration = 0
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard and not _hidden(stream, packet):
            times.append(packet.pts if packet.pts is not None else packet.dts)
            last_duration = packet.duration or 0
        if frame is None:
            try:
                frame = next(iter(packet.decode()), None)
            except MemoryError:
                raise
            except av.error.FFmpegError:
                continue  # a player would go on, too; the packet fails again, and counts, when the file is decoded
    if not times:
        raise RejectedError(Reason.DAMAGED, "its video stream holds no packets")
    if frame is None:
        raise RejectedError(Reason.DAMAGED, f"none of its {len(times)} packets could be decoded")
    if not frame.width or not frame.height:
        raise RejectedError(Reason.DAMAGED, f"its frames are {frame.width}x{frame.height} pixels")
    seconds = _seconds(times, stream.time_base)
    nominal = [Fraction(r) for r in (stream.guessed_rate, stream.average_rate, stream.base_rate) if r]
    rate, constant = frame_rate(seconds, nominal)
    _check_complete(stream, seconds, float(last_duration * (stream.time_base or 0)), rate)
    aspect = stream.sample_aspect_ratio
    return VideoInfo(
        stream=stream.index,
        container=container.format.name,
        codec=stream.codec.canonical_name,
        width=frame.width,
        height=frame.height,
        pixel_aspect=Fraction(aspect) if aspect and Fraction(1, 10) < aspect < 10 else Fraction(1),
        rotation=round(frame.rotation / 90) % 4 * 90,
        pixel_format=frame.format.name,
        planar_yuv=frame.format.is_planar and not frame.format.is_rgb and not frame.format.has_palette,
        matrix=matrix_name(frame),
        rate=rate,
        constant_rate=constant,
        num_packets=len(times),
    )


def matrix_name(frame: av.VideoFrame) -> str:
    """The YCbCr matrix of a frame; where it is not tagged, BT.709 from 720 lines on and BT.601 below, as players do."""
    if frame.format.is_rgb or frame.colorspace == 2:  # AVCOL_SPC_UNSPECIFIED
        return "bt709" if frame.height >= 720 and not frame.format.is_rgb else "bt601"
    if frame.colorspace not in MATRICES:
        raise RejectedError(Reason.UNSUPPORTED, f"colour matrix number {frame.colorspace} (H.273) is not supported")
    return MATRICES[frame.colorspace]


def frame_rate(seconds: list[float], nominal: list[Fraction]) -> tuple[Fraction, bool]:
    """Presentation times (empty if unknown) and the container's opinions -> (rate, whether the frames are equally spaced).

    Equally spaced means: a grid exists whose every cell holds exactly one frame, its time off by less than 0.45 of a
    cell. So jitter and rounded time stamps are put right, but a dropped or a longer frame makes a source variable. Then
    the rate is that of the median interval (what most of it was recorded at), at most 60 and at most four times the mean.
    """
    seconds = sorted(seconds)
    if len(seconds) < 2 or seconds[-1] <= seconds[0]:
        return next((r for r in nominal if 0 < r <= 1000), Fraction(25)), True
    mean = (len(seconds) - 1) / (seconds[-1] - seconds[0])
    near = [rate for rate in [*nominal, *STANDARD_RATES] if 0.98 * mean < rate < 1.02 * mean]
    spreads = {rate: _spread(seconds, rate) for rate in [*near, Fraction(mean).limit_denominator(1001)] if 0 < rate <= 1000}
    if spreads and (best := min(spreads.values())) < 0.9:
        return next(rate for rate, spread in spreads.items() if spread < best + 0.1), True
    gaps = [after - before for before, after in pairwise(seconds) if after > before]
    target = min(1 / statistics.median(gaps), 4 * mean, MAX_RESAMPLED_RATE)
    snapped = [rate for rate in nominal if 0.98 * target < rate < 1.02 * target]
    nearest = min(STANDARD_RATES, key=lambda rate: abs(rate - target))
    exact = Fraction(target).limit_denominator(1001) or Fraction(1, 1001)
    return next(iter(snapped), nearest if 0.98 * target < nearest < 1.02 * target else exact), False


def _spread(seconds: list[float], rate: Fraction) -> float:
    """By how much, in cells of a grid of that rate, sorted times are off it: 0 if they lie on it, 1 if a frame is missing."""
    off = [time * float(rate) - number for number, time in enumerate(seconds)]
    return max(off) - min(off)


def _hidden(stream: av.video.stream.VideoStream, packet: av.Packet) -> bool:
    """VP8's alternate reference frames are packets of their own, are never shown, and would look like a jitter."""
    return stream.codec.canonical_name == "vp8" and not bytes(memoryview(packet)[:1])[0] >> 4 & 1


def _seconds(times: list[int | None], time_base: Fraction | None) -> list[float]:
    known = [time for time in times if time is not None]
    return [float(time * time_base) for time in known] if time_base and len(known) == len(times) else []


def _check_complete(stream: av.video.stream.VideoStream, seconds: list[float], last_duration: float, rate: Fraction) -> None:
    """Compare the stream's declared duration with its packets; 127 of 394 real clips are wrong by one to five frames."""
    if stream.duration and stream.time_base:
        declared = float(stream.duration * stream.time_base)
    elif tag := re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", "")):  # Matroska
        declared = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        declared -= min(seconds, default=0.0)  # the tag holds the time at which the track ends
    else:
        return
    found = max(seconds) - min(seconds) + max(last_duration, float(1 / rate)) if seconds else declared
    if declared - found > max(6 / float(rate), 0.05 * declared):
        detail = f"the header promises {declared:.2f} s, the data end after {found:.2f} s"
        raise RejectedError(Reason.TRUNCATED, detail)
