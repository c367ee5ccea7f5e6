"""A video that no dataset has, as the loader's decoder takes it: any file that FFmpeg reads.

    video = read_video(Path("clip.mp4"))
    frames = segment_frames(video.clip.num_frames, 16, 4, segments=5)                      # (5, 16), the official test
    views = video.views(frames, video.boxes((224, 224), crops=1).repeat(5, axis=0), (224, 224))  # uint8 (5, 16, 224, 224, 3)

The decoder is exact and wants to know what it will find: of a dataset's clips that was seen when it was built, by decoding them
whole; here packets are read, one frame is decoded at either end, and all of them only where packets do not tell what they show.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import av
import numpy as np

from pipeline.decoding.colour import MATRICES, matrix_of, range_of
from pipeline.decoding.decode import (
    ClipRequest,
    DecodeError,
    Failure,
    OpenFile,
    decode_libav,
    decoded_frames,
    is_hidden,
    packets_of,
    video_stream,
)
from pipeline.decoding.orientation import rotation_of, stored_size
from pipeline.sampling.crops import Size, long_side_crops
from pipeline.storage.manifest import Clip

SMALLEST = 16  # pixels of a side


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A file, and what the decoder must know of it."""

    clip: Clip
    data: bytes | Path
    """What is in it, or where it lies, of one that is not held in memory."""
    times: np.ndarray
    """Float64 (F,): seconds from what a player calls 0 at which frames are shown."""
    seconds: float
    """How long it is shown."""
    pixel_aspect: float
    """Width of a displayed pixel over its height."""

    def boxes(self, size: Size, crops: int) -> np.ndarray:
        """The size of a view -> boxes (C, 4) (x, y, width, height): `long_side_crops` of what is shown, with square pixels."""
        width = max(1, round(self.clip.width * self.pixel_aspect))
        (boxes,) = long_side_crops(np.array([width]), np.array([self.clip.height]), size, crops)
        edges = np.stack([boxes[:, 0], boxes[:, 0] + boxes[:, 2]], axis=1) * self.clip.width / width
        left, right = edges.round().astype(np.int64).T
        return np.stack([left, boxes[:, 1], np.maximum(1, right - left), boxes[:, 3]], axis=1)

    def views(self, frames: np.ndarray, boxes: np.ndarray, size: Size) -> np.ndarray:
        """Frames (R, T), ascending, and boxes (R, 4) -> views uint8 (R, T, height, width, 3), of a file that is held in memory.
        Raises DecodeError."""
        assert isinstance(self.data, bytes)
        views = np.empty((*frames.shape, *size, 3), np.uint8)
        decode_libav(ClipRequest(self.clip, self.data, frames, boxes), views)
        return views


def read_video(path: Path) -> VideoFile:
    """Into memory. Raises OSError for a file that cannot be read, and as `understood`."""
    return understood(path.name, path.read_bytes())


def understood(name: str, data: bytes | Path) -> VideoFile:
    """What lies in memory or in a file, which stays there. Raises OSError for one that cannot be read, DecodeError for what is
    no video, is damaged or smaller than 16 x 16."""
    video = _read(name, data, counted=False)
    try:
        for _ in decoded_frames(video.clip, data, np.array([video.clip.num_frames - 1])):
            pass
    except (DecodeError, av.FFmpegError, ValueError, EOFError):
        video = _read(name, data, counted=True)
    return video


def _read(name: str, data: bytes | Path, counted: bool) -> VideoFile:
    """`counted`: decode all frames, where otherwise the first one is enough if packets have time stamps."""
    try:
        with _opened(data) as container:
            return _scan(name, data, container, counted)
    except av.FFmpegError as error:
        raise DecodeError(Failure.DAMAGED, f"reading it stops with: {error.strerror}") from None


def _opened(data: bytes | Path) -> av.container.InputContainer:
    """It can reach no other file, whatever it is."""
    file = OpenFile(data) if isinstance(data, Path) else io.BytesIO(data)
    head = file.read(8)
    file.seek(0)
    if not head:
        raise DecodeError(Failure.DAMAGED, "the file is empty")
    try:
        container = av.open(file, "r", metadata_errors="replace", options={"protocol_whitelist": "none"})
    except av.FFmpegError as error:
        cut_off = "an MP4 file without its index (moov): a cut-off download?"
        raise DecodeError(
            Failure.DAMAGED, cut_off if head[4:8] == b"ftyp" else f"FFmpeg finds no video in it: {error.strerror}"
        ) from None
    if container.format.name.endswith("_pipe"):
        container.close()
        raise DecodeError(Failure.DAMAGED, f"it is a still image ({container.format.name.removesuffix('_pipe')})")
    return container


def _scan(name: str, data: bytes | Path, container: av.container.InputContainer, counted: bool) -> VideoFile:
    stream = video_stream(container)
    codec = stream.codec.canonical_name
    counted = counted or container.format.name == "avi"  # which numbers frames in the order of decoding
    packets: list[tuple[int | None, bool]] = []
    shown: list[int | None] = []
    first: av.VideoFrame | None = None
    decoded: list[int | None] = []
    failed = 0
    for packet in packets_of(container, stream):
        if packet.size:
            packets.append((packet.pts, packet.is_keyframe))
            if not packet.is_discard and not is_hidden(codec, packet):
                shown.append(packet.pts)
        if counted or first is None:
            try:
                frames = packet.decode()
            except av.FFmpegError:
                failed += 1
                continue
            first = first or next(iter(frames), None)
            failed += sum(frame.is_corrupt for frame in frames)
            decoded += [frame.pts for frame in frames]
    if first is None:
        raise DecodeError(Failure.DAMAGED, f"none of its {len(packets)} packets could be decoded")
    if not counted and (None in shown or len(set(shown)) < len(shown)):
        return _read(name, data, counted=True)
    if counted and failed:
        raise DecodeError(Failure.DAMAGED, f"{failed} of its {len(packets)} packets do not decode")
    return _described(name, data, container, stream, first, packets, decoded if counted else sorted(shown))  # type: ignore[type-var]


def _described(
    name: str,
    data: bytes | Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    first: av.VideoFrame,
    packets: Sequence[tuple[int | None, bool]],
    shown: list[int | None],
) -> VideoFile:
    try:
        matrix = {"fcc": "bt601", "smpte240m": "bt709"}.get(found := matrix_of(first), found)  # within three grey levels
    except ValueError as error:
        raise DecodeError(Failure.DAMAGED, str(error)) from None
    assert matrix in MATRICES
    rotation = rotation_of(first)
    width, height = stored_size(first.width, first.height, rotation)
    if min(width, height) < SMALLEST:
        raise DecodeError(
            Failure.DAMAGED, f"its frames are {width} x {height} pixels; at least {SMALLEST} x {SMALLEST} are needed"
        )
    aspect = float(stream.sample_aspect_ratio or 1)
    aspect = aspect if 0.1 < aspect < 10 else 1.0
    known = [stamp for stamp in shown if stamp is not None]
    steps = {after - before for before, after in pairwise(known)} if len(known) == len(shown) else set()
    step = steps.pop() if len(steps) == 1 else 0
    clip = Clip(
        row=0,
        key=name,
        shard="",
        offset=0,
        size=data.stat().st_size if isinstance(data, Path) else len(data),
        num_frames=len(shown),
        width=width,
        height=height,
        codec=stream.codec.canonical_name,
        rotation=rotation,
        matrix=matrix,
        range=range_of(first),
        pts_start=known[0] if known else 0,
        pts_step=max(0, step),
        keyframes=tuple(key_frames(shown, packets)),
        content_hash="",
    )
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    base, clock = float(stream.time_base or 0), (container.start_time or 0) / av.time_base
    ascending = len(known) == len(shown) and all(before < after for before, after in pairwise(known))
    times = np.array(known) * base - clock if base and ascending else np.arange(len(shown)) / rate
    last = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / rate
    return VideoFile(clip, data, times, float(times[-1] + last), 1 / aspect if rotation % 180 else aspect)


def key_frames(shown: Sequence[int | None], packets: Sequence[tuple[int | None, bool]]) -> list[int]:
    """Time stamps of frames in the order of display, and those of packets in the file's, with whether decoding can start there
    -> places of the frames that it can start at: 0, and others if nothing shown later comes earlier in the file."""
    place = {time: number for number, time in enumerate(shown)}
    times = [time for time, _ in packets]
    if None in times or None in place or len(place) < len(shown):
        return [0]  # without distinct time stamps there is no telling which frame a packet becomes
    known = [time for time in times if time is not None]
    latest_before = accumulate(known[:-1], max, initial=known[0] - 1)
    earliest_after = [*accumulate(reversed(known[1:]), min, initial=known[-1] + 1)]
    starts = {
        place[time]
        for (time, clean), before, after in zip(packets, latest_before, reversed(earliest_after), strict=True)
        if clean and time in place and before < time < after  # type: ignore[operator]
    }
    return sorted(starts | {0})
