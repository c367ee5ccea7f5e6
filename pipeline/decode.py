"""Encoded clip -> cropped uint8 views: the decoder contract, and its implementation on libav.

The contract: `(encoded bytes, frame indices, crop boxes) -> uint8 (R, T, size, size, 3)`, RGB, full range. Frame indices and
boxes come from `sampling`, never from a decoder, and a decoder is exact: frame i is the i-th in presentation order, its
rotation, YCbCr matrix and range are those of the manifest, and what cannot be delivered raises `DecodeError`; no frame is
ever guessed, repeated or left black. The R views share one decode.
"""

import io
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import av
import numpy as np

from pipeline.colour import Region, RgbConverter, region_around
from pipeline.manifest import Clip
from pipeline.resize import crop_resizer
from pipeline.stage_meters import ClipMeter


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
    """What to decode: `frames` int64, ascending, with repeats, (T,) if the R views share them, (R, T) if each has its own (the
    union is decoded once); `boxes` (R, 4) int64 (x, y, width, height), in pixels of the displayed (rotated) frame. The decoder
    adds to `meter` what its stages took."""

    clip: Clip
    data: bytes
    frames: np.ndarray
    boxes: np.ndarray
    meter: ClipMeter = field(default_factory=ClipMeter, compare=False, repr=False)


Decoder = Callable[[ClipRequest, np.ndarray], None]
"""Fills a uint8 array (R, T, size, size, 3) or raises DecodeError."""


def decode_libav(request: ClipRequest, views: np.ndarray) -> None:
    """The contract on libav, one thread: seek to the key frame, decode to the last wanted frame, convert what the crops show.

    Crops of a converted frame are resized at once, while it is in the cache, see `resize`.
    """
    clip, meter, clock = request.clip, request.meter, time.perf_counter_ns
    wanted, places = np.unique(request.frames, return_inverse=True)
    began = clock()
    region = None if clip.rotation else region_around(request.boxes, clip.width, clip.height)
    boxes = request.boxes - [*region[:2], 0, 0] if region else request.boxes
    resizer = crop_resizer(len(wanted), places.reshape(request.frames.shape), boxes, views)
    resizing = clock() - began
    try:
        take = _turning(clip, resizer.frame) if clip.rotation else resizer.frame
        decode_each(clip, request.data, wanted, take, meter, region)
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError(Failure.DAMAGED, f"{type(error).__name__}: {error}") from error
    began = clock()
    resizer.finish()
    meter.resize += resizing + clock() - began


def decode_frames(clip: Clip, data: bytes, wanted: np.ndarray) -> np.ndarray:
    """Frame indices (n,), ascending and distinct -> uint8 (n, height, width, 3) RGB, upright. Raises as `decode_each`."""
    frames = np.empty((len(wanted), clip.height, clip.width, 3), np.uint8)

    def keep(number: int, rows: np.ndarray) -> None:
        frames[number] = rows[:, : 3 * clip.width].reshape(frames.shape[1:])

    decode_each(clip, data, wanted, _turning(clip, keep) if clip.rotation else keep)
    return frames


Take = Callable[[int, np.ndarray], None]
"""Is given the place of a frame among the wanted ones, and uint8 (height, line size): RGB from the first byte of a row on. They
are valid until it returns."""


def _turning(clip: Clip, take: Take) -> Take:
    """The same for a clip whose frames lie on their side, or upside down."""
    width = clip.height if clip.rotation % 180 else clip.width  # as stored

    def turn(number: int, rows: np.ndarray) -> None:
        upright = np.rot90(rows[:, : 3 * width].reshape(len(rows), width, 3), clip.rotation // 90)
        take(number, np.ascontiguousarray(upright).reshape(clip.height, -1))

    return turn


def open_clip(data: bytes, careful: bool = False) -> av.container.InputContainer:
    """The container of an encoded clip. Raises what libav raises on damaged data.

    From memory: nothing is written, and one range request fetched all there is. libav decodes the first frames to learn how far
    behind its packets a stream's frames come out; where they are in order that is for nothing, and there is no other way to
    tell it so: 0.14 ms, and 0.63 with that. `careful` has it look in any case.
    """
    if not careful and _is_in_order(data):
        options = {"codec_whitelist": "none"}
        return av.open(io.BytesIO(data), "r", format="mov", metadata_errors="replace", container_options=options)
    return av.open(io.BytesIO(data), "r", metadata_errors="replace")


def packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream, then an empty one, for any reader that may leave before the end.

    PyAV's own generator (18.1) does not clean up when it is dropped, only when it is closed, which `yield from` does. What it
    reads into, 144 bytes, would stay behind; and with such a crumb in each of the heap's holes, a process that decodes grew by
    3.8 kB a clip.
    """
    yield from container.demux(stream)


def _is_in_order(data: bytes) -> bool:
    """Whether it is an mp4 as `h264-fast` makes them: its index first, H.264, no offsets between decoding and display."""
    if data[4:8] != b"ftyp":
        return False
    begin = int.from_bytes(data[:4], "big")
    index = data[begin : begin + int.from_bytes(data[begin : begin + 4], "big")]
    return index[4:8] == b"moov" and b"avcC" in index and b"ctts" not in index


def decode_each(
    clip: Clip,
    data: bytes,
    wanted: np.ndarray,
    take: Take,
    meter: ClipMeter | None = None,
    region: Region | None = None,
    careful: bool = False,
) -> None:
    """Hand the frames with the indices (n,), ascending and distinct, to `take` as they are stored, not turned; of each a region
    if one is given. `careful`: from the clip's beginning, and after a look at how its frames come out.

    Raises DecodeError if a frame does not come out or has another size than the manifest says, and what libav raises on
    damaged data.
    """
    clock = time.perf_counter_ns
    decoding = converting = taking = bytes_used = frames_decoded = 0  # ns, and counts
    began = clock()
    width, height = (clip.height, clip.width) if clip.rotation % 180 else (clip.width, clip.height)
    region = region or (0, 0, width, height)
    with open_clip(data, careful) as container, RgbConverter(clip.matrix, clip.range, region) as converter:
        if not container.streams.video:
            raise DecodeError(Failure.DAMAGED, "it has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # parallel over clips instead: no thread hand-over for frames of 0.15 ms
        stamps = _time_stamps(clip, container, stream)
        if wanted[-1] >= len(stamps):
            raise DecodeError(Failure.MISSING_FRAMES, f"frame {wanted[-1]} was asked for, there are packets of {len(stamps)}")
        # AVI numbers frames in the order of decoding, also those that only hold a place: what comes out is counted
        counting = not clip.pts_step and (len(stamps) != clip.num_frames or _is_misnumbered(container, stream))
        if counting:
            stamps = range(clip.num_frames)
        careful = careful or counting
        if start := 0 if careful else max((k for k in clip.keyframes if k <= wanted[0]), default=0):
            container.seek(stamps[start], stream=stream, backward=True)
        place = {stamps[frame]: i for i, frame in enumerate(wanted.tolist())}  # by time stamp
        # groups of pictures without a wanted frame are not decoded: of mjpeg, 16 frames instead of 61. The manifest only counts
        # key frames that nothing is shown before and decoded after, so a packet's time stamp tells its group.
        needed = {bisect_right(clip.keyframes, frame) for frame in wanted.tolist() if not careful}
        starts = (
            [stamps[k] for k in clip.keyframes if k < len(stamps)]
            if needed and len(needed) <= max(needed) - min(needed)
            else []
        )
        lap = opened = clock()
        for packet in packets_of(container, stream):
            if starts and packet.pts is not None and bisect_right(starts, packet.pts) not in needed:
                continue
            decoded = packet.decode()
            bytes_used += packet.size
            for number, frame in enumerate(decoded, frames_decoded):
                if (i := place.pop(number if counting else frame.pts, None)) is None:
                    continue
                if (frame.width, frame.height) != (width, height):
                    sizes = f"frames are {frame.width} x {frame.height}, the manifest says {width} x {height}"
                    raise DecodeError(Failure.DAMAGED, sizes + (" before rotation" if clip.rotation else ""))
                decoding += (now := clock()) - lap
                rows = converter.rows(frame)
                converting += (converted := clock()) - now
                take(i, rows)
                taking += (lap := clock()) - converted
            frames_decoded += len(decoded)
            if not place:
                break
    if meter:
        meter.demux += opened - began + clock() - lap  # opening and closing
        meter.decode, meter.colour, meter.resize = meter.decode + decoding, meter.colour + converting, meter.resize + taking
        meter.bytes_used, meter.frames_decoded = meter.bytes_used + bytes_used, meter.frames_decoded + frames_decoded
        meter.frames_kept, meter.frames_spanned = len(wanted), int(wanted[-1] - wanted[0]) + 1
    if place:
        if not careful:  # some containers (MPEG-TS) cannot seek to the very packet; and an index can be wrong
            decode_each(clip, data, wanted, take, meter, region, careful=True)
            return
        first = wanted[min(place.values())]
        raise DecodeError(
            Failure.MISSING_FRAMES,
            f"{len(place)} of {len(wanted)} frames did not come out, the first is {first} of {clip.num_frames}",
        )


def _time_stamps(clip: Clip, container: av.container.InputContainer, stream: av.VideoStream) -> Sequence[int]:
    """Of the frames, in the order of display: from the manifest where they are equally spaced; otherwise from the packets,
    which costs a pass over them."""
    if clip.pts_step:
        return range(clip.pts_start, clip.pts_start + clip.pts_step * clip.num_frames, clip.pts_step)
    codec = stream.codec_context.name
    stamps = sorted(
        packet.pts
        for packet in packets_of(container, stream)
        if packet.pts is not None and not packet.is_discard and not is_hidden(codec, packet)
    )
    container.seek(stamps[0] if stamps else 0, stream=stream, backward=True)
    return stamps


def _is_misnumbered(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    return container.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def is_hidden(codec: str, packet: av.Packet) -> bool:
    """VP8's alternate reference frames are packets of their own that show nothing (RFC 6386, section 9.1: show_frame)."""
    return codec == "vp8" and packet.size > 0 and not memoryview(packet)[0] >> 4 & 1
