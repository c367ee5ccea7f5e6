"""Encoded clip -> cropped views: the decoder contract, and its implementation on libav.

The contract: `(encoded bytes, frame indices, crop boxes) -> uint8 (R, T, H, W, 3)`, RGB, full range; or int16, see `resize`,
and with RandAugment before the crop, where a recipe wants that. Frame indices, operations and boxes come from `sampling`,
never from a decoder, and a decoder is exact: frame i is the i-th in presentation order, its rotation, YCbCr matrix and range
are those of the manifest, and what cannot be delivered raises `DecodeError`; no frame is ever guessed, repeated or left black.
The R views share one decode.
"""

import io
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from itertools import chain
from pathlib import Path

import av
import numpy as np

from pipeline.decoding.augment import AugmentedResizer
from pipeline.decoding.colour import Region, RgbConverter, region_around
from pipeline.decoding.nal_units import DroppablePictures, FrameNumError, read_sequence
from pipeline.decoding.orientation import stored_size, upright
from pipeline.decoding.resize import CropResizer, TorchResizer, crop_resizer
from pipeline.stage_meters import ClipMeter
from pipeline.storage.manifest import Clip


class Failure(StrEnum):
    """Why a clip could not be delivered; the reasons in a run's ledger and in failures.jsonl."""

    READ = "read"  # its bytes could not be read
    DAMAGED = "damaged"  # the decoder refused them
    MISSING_FRAMES = "missing_frames"  # it decodes, but not to the frames the manifest promises
    TIMEOUT = "timeout"  # decoding took longer than the limit and was killed
    CRASH = "crash"  # decoding killed its process
    REMOVED = "removed"  # its bytes were taken out of the dataset, see dataset_builders/remove_clips.py


class DecodeError(Exception):
    """A clip that cannot be delivered, with a reason from the closed list and the detail."""

    def __init__(self, reason: Failure, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """What to decode: `frames` int64, ascending, with repeats, (T,) if the R views share them, (R, T) if each has its own (the
    union is decoded once); `boxes` (R, 4) int64 (x, y, width, height), in pixels of the displayed (rotated) frame; `operations`
    (R, L, 2) float64, see `randaugment.plans`, or None. The decoder adds to `meter` what its stages took."""

    clip: Clip
    data: bytes
    frames: np.ndarray
    boxes: np.ndarray
    meter: ClipMeter = field(default_factory=ClipMeter, compare=False, repr=False)
    operations: np.ndarray | None = None


Decoder = Callable[[ClipRequest, np.ndarray], None]
"""Fills an array (R, T, H, W, 3), uint8 or int16 as the recipe's `crop_resize` wants it, or raises DecodeError."""


def decode_libav(request: ClipRequest, views: np.ndarray) -> None:
    """The contract on libav, one thread: seek to the key frame, decode to the last wanted frame, convert what the crops show.

    Crops of a converted frame are resized at once, while it is in the cache, see `resize`.
    """
    clip, meter, clock = request.clip, request.meter, time.perf_counter_ns
    wanted, places = np.unique(request.frames, return_inverse=True)
    began = clock()
    places, boxes = places.reshape(request.frames.shape), request.boxes
    resizer: AugmentedResizer | CropResizer | TorchResizer
    if request.operations is None:
        region = None if clip.rotation else region_around(boxes, clip.width, clip.height)
        resizer = crop_resizer(len(wanted), places, boxes - [*region[:2], 0, 0] if region else boxes, views)
    else:
        resizer = AugmentedResizer(request.operations, (clip.width, clip.height), places, boxes, views)
        region = None if clip.rotation else region_around(resizer.looked_at, clip.width, clip.height)
        resizer.begin(region)
    resizing = clock() - began
    try:
        take = _turning(clip, resizer.frame) if clip.rotation else resizer.frame
        decode_each(clip, request.data, wanted, take, meter, region)
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DecodeError(Failure.DAMAGED, f"{type(error).__name__}: {error}") from error
    began = clock()
    resizer.finish()
    meter.resize += resizing + clock() - began
    if isinstance(resizer, AugmentedResizer):
        meter.augment += resizer.augmenting
        meter.resize -= resizer.augmenting


def decode_frames(clip: Clip, data: bytes, wanted: np.ndarray) -> np.ndarray:
    """Frame indices (n,), ascending and distinct -> uint8 (n, height, width, 3) RGB, upright. Raises as `decode_each`."""
    frames = np.empty((len(wanted), clip.height, clip.width, 3), np.uint8)
    decode_upright(clip, data, wanted, frames.__setitem__)
    return frames


def decode_upright(
    clip: Clip, data: bytes | Path, wanted: np.ndarray, take: Callable[[int, np.ndarray], None], meter: ClipMeter | None = None
) -> None:
    """Hand each frame with one of the indices (n,), ascending and distinct, to `take`, upright: its place among them, and uint8
    (height, width, 3), valid until it returns. Raises as `decode_each`."""

    def pixels(number: int, rows: np.ndarray) -> None:
        take(number, rows[:, : 3 * clip.width].reshape(clip.height, clip.width, 3))

    decode_each(clip, data, wanted, _turning(clip, pixels) if clip.rotation else pixels, meter)


Take = Callable[[int, np.ndarray], None]
"""Is given the place of a frame among the wanted ones, and uint8 (height, line size): RGB from the first byte of a row on. They
are valid until it returns."""


def _turning(clip: Clip, take: Take) -> Take:
    """The same for a clip whose frames lie on their side, are upside down or mirrored."""
    width, _ = stored_size(clip.width, clip.height, clip.rotation)

    def turn(number: int, rows: np.ndarray) -> None:
        shown = upright(rows[:, : 3 * width].reshape(len(rows), width, 3), clip.rotation)
        take(number, np.ascontiguousarray(shown).reshape(clip.height, -1))

    return turn


def open_clip(data: bytes | Path, careful: bool = False) -> av.container.InputContainer:
    """The container of an encoded clip, or of a file that need not fit into memory. Raises what libav raises on damaged data.

    A clip is in memory: nothing is written, and one range request fetched all there is. libav decodes the first frames to learn
    how far behind its packets a stream's frames come out; of H.264 an MP4 file's index says it, and there is no other way to
    tell libav that this will do: 0.21 ms, and 1.4 with the look. `careful` has it look in any case.
    """
    if isinstance(data, Path):
        return av.open(OpenFile(data), "r", metadata_errors="replace")
    if not careful and _is_indexed(data):
        options = {"codec_whitelist": "none"}
        container = av.open(io.BytesIO(data), "r", format="mov", metadata_errors="replace", container_options=options)
        if len(container.streams.video) == 1:
            return container
        container.close()  # which of several is the best is known after a look only
    return av.open(io.BytesIO(data), "r", metadata_errors="replace")


class OpenFile:
    """What libav reads a file with, by itself: it can reach no other one. It is closed when the container is gone."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end. Raises OSError."""
        return os.read(self._descriptor, size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """-> the place in the file, as `tell`."""
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self.seek(0, os.SEEK_CUR)


def packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream, then an empty one, for any reader that may leave before the end.

    PyAV's own generator (18.1) does not clean up when it is dropped, only when it is closed, which `yield from` does. What it
    reads into, 144 bytes, would stay behind; and with such a crumb in each of the heap's holes, a process that decodes grew by
    3.8 kB a clip.
    """
    yield from container.demux(stream)


def _is_indexed(data: bytes) -> bool:
    """Whether it is an mp4 as the builder makes them: H.264, with its index first."""
    if data[4:8] != b"ftyp":
        return False
    begin = int.from_bytes(data[:4], "big")
    index = data[begin : begin + int.from_bytes(data[begin : begin + 4], "big")]
    return index[4:8] == b"moov" and b"avcC" in index


def find_video(container: av.container.InputContainer) -> av.VideoStream | None:
    """The stream a player would show: libav's best one, never a cover picture. The one choice for whoever opens a video."""
    moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if len(moving) < 2:
        return moving[0] if moving else None
    best = container.streams.best("video")
    return best if best in moving else moving[0]


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The same, set to decode on one thread; raises DecodeError if there is none."""
    stream = find_video(container)
    if stream is None:
        raise DecodeError(Failure.DAMAGED, "it has no video stream")
    if stream.codec_context is None:
        raise DecodeError(Failure.DAMAGED, "FFmpeg has no decoder for its codec")
    stream.thread_type = "NONE"  # parallel over clips instead: no thread hand-over for frames of 0.15 ms
    return stream


def decode_each(
    clip: Clip, data: bytes | Path, wanted: np.ndarray, take: Take, meter: ClipMeter | None = None, region: Region | None = None
) -> None:
    """Hand the frames with the indices (n,), ascending and distinct, to `take` as they are stored, not turned; of each a region
    if one is given.

    Raises DecodeError if a frame does not come out or has another size than the manifest says, and what libav raises on
    damaged data.
    """
    clock = time.perf_counter_ns
    converting = taking = 0  # ns
    width, height = stored_size(clip.width, clip.height, clip.rotation)
    with RgbConverter(clip.matrix, clip.range, region or (0, 0, width, height)) as converter:
        for i, frame in decoded_frames(clip, data, wanted, meter):
            if (frame.width, frame.height) != (width, height):
                sizes = f"frames are {frame.width} x {frame.height}, the manifest says {width} x {height}"
                raise DecodeError(Failure.DAMAGED, sizes + (" before rotation" if clip.rotation else ""))
            began = clock()
            rows = converter.rows(frame)
            converting += (converted := clock()) - began
            take(i, rows)
            taking += clock() - converted
    if meter:
        meter.colour, meter.resize = meter.colour + converting, meter.resize + taking
        meter.frames_kept, meter.frames_spanned = len(wanted), int(wanted[-1] - wanted[0]) + 1


class Manner(Enum):
    """How a clip is walked through. Each asks less of the file than the one before, and takes longer."""

    SEEK = 0  # to the key frame before the first wanted frame; groups of pictures without a wanted one are left out, and frames
    # that nobody wants and nothing refers to
    TIME = 1  # from the beginning, as the builder did; frames are known by their time stamps
    COUNT = 2  # from the beginning; frames are counted, whatever stamps they carry
    COUNT_ALL = 3  # the same to the end, to see that there are as many as the manifest says: that none was lost on the way


class _TryNextError(Exception):
    """This manner does not do for the clip, the one it is raised with may."""


def decoded_frames(
    clip: Clip, data: bytes | Path, wanted: np.ndarray, meter: ClipMeter | None = None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames with the indices (n,), ascending and distinct, as libav has them: each with its place among the wanted ones.

    They are what decoding from the beginning gives, or there is an error. Where seeking gives anything unexpected (an error,
    stamps that are not those of the frames, a key frame that is none, a picture that misses one that was left out), the clip is
    walked through from its beginning, which `meter` counts, and frames that were given come once more. Raises as
    `decode_each`, but does not look at sizes.
    """
    manner, meter = Manner.SEEK, meter or ClipMeter()
    while True:
        try:
            yield from _walk(clip, data, wanted, manner, meter)
            return
        except _TryNextError as error:
            manner = error.args[0]
        except av.FFmpegError:
            if manner is not Manner.SEEK:
                raise
            manner = _slower(clip)
        meter.restarts += 1


def _slower(clip: Clip) -> Manner:
    """The manner for a clip in which seeking fails. The builder saw that the stamps are those of the frames where there is a
    step; without one that is as doubtful as that no frame is lost."""
    return Manner.TIME if clip.pts_step else Manner.COUNT_ALL


def _walk(
    clip: Clip, data: bytes | Path, wanted: np.ndarray, manner: Manner, meter: ClipMeter
) -> Iterator[tuple[int, av.VideoFrame]]:
    clock = time.perf_counter_ns
    decoding = bytes_used = frames_decoded = 0  # ns, and counts
    began = clock()
    place = {number: i for i, number in enumerate(wanted.tolist())}
    with open_clip(data, careful=manner is not Manner.SEEK) as container:
        stream = video_stream(container)
        sought = _Sought(clip, container, stream, wanted) if manner is Manner.SEEK else None
        stamps = _equal_steps(clip)
        lap = opened = clock()
        for packet in packets_of(container, stream):
            if sought and sought.is_needless(packet):
                continue
            decoded = packet.decode()
            if sought and sought.is_complete:
                decoded += stream.codec_context.decode(None)  # it holds some back, to put them in order
            bytes_used += packet.size
            for counted, frame in enumerate(decoded, frames_decoded):
                if sought:
                    number = sought.number(frame)
                elif manner is Manner.TIME:
                    number = stamps.index(frame.pts) if frame.pts is not None and frame.pts in stamps else -1
                else:
                    number = counted
                if (i := place.pop(number, None)) is not None:
                    decoding += clock() - lap
                    yield i, frame
                    lap = clock()
            frames_decoded += len(decoded)
            if not place and manner is not Manner.COUNT_ALL:
                break
    meter.demux += opened - began + clock() - lap  # opening and closing
    meter.decode += decoding
    meter.bytes_used, meter.frames_decoded = meter.bytes_used + bytes_used, meter.frames_decoded + frames_decoded
    if place and sought:
        raise _TryNextError(_slower(clip))
    if place:
        raise DecodeError(
            Failure.MISSING_FRAMES,
            f"{len(place)} of {len(wanted)} frames did not come out, the first is {min(place)} of {clip.num_frames}",
        )
    if manner is Manner.COUNT_ALL and frames_decoded != clip.num_frames:
        raise DecodeError(Failure.MISSING_FRAMES, f"{frames_decoded} of {clip.num_frames} frames came out")


class _Sought:
    """A container at the key frame before the first wanted frame: which packets to pass over, and which frame is which.

    All groups of pictures that are needed are decoded whole, but for what is known to be left out, so it is known which frame
    comes next; its time stamp must agree.
    """

    def __init__(self, clip: Clip, container: av.container.InputContainer, stream: av.VideoStream, wanted: np.ndarray) -> None:
        self._slower = _slower(clip)
        self._stamps = stamps = _time_stamps(clip, container, stream, int(wanted[-1]))
        edges = [0, *(k for k in clip.keyframes if 0 < k < len(stamps)), len(stamps)]  # of the groups of pictures
        groups = sorted({bisect_right(edges, number) - 1 for number in wanted.tolist()})
        start = edges[groups[0]]
        self._first, self._begun = stamps[start], False
        self._waiting = bool(start or not clip.pts_step)  # for the key packet of that frame, or of one before it
        if self._waiting:
            container.seek(self._first, stream=stream, backward=True)
        # groups without a wanted frame are not decoded: of mjpeg, 16 frames instead of 61. The manifest only counts key frames
        # that nothing is shown before and decoded after, so a packet's time stamp tells its group.
        self._order: Iterator[int]
        if len(groups) <= groups[-1] - groups[0]:
            self._starts = [stamps[k] for k in edges[1:-1]]
            self._needed = set(groups)
            self._order = chain.from_iterable(range(edges[group], edges[group + 1]) for group in groups)
            self._entries = {edges[group] for group in groups if group - 1 not in self._needed} - {0}
        else:
            self._starts, self._needed = [], {0}
            self._order, self._entries = iter(range(start, len(stamps))), {start} - {0}
        # where frames are not equally spaced, their stamps may be those of others, which shows only if all are decoded
        self._droppable = droppable_pictures(stream) if clip.pts_step else None
        self._unsent: set[int | None] = {stamps[number] for number in wanted.tolist()}
        self._sent: set[int | None] = set()  # time stamps, as these
        self._left_out: set[int | None] = set()

    @property
    def is_complete(self) -> bool:
        """Whether the decoder was given all that is wanted, and can be asked for it."""
        return self._droppable is not None and not self._unsent

    def is_needless(self, packet: av.Packet) -> bool:
        """Whether a packet need not be decoded."""
        if self._waiting and packet.size:
            if not packet.is_keyframe:  # MPEG-TS is sought to the middle of a group
                return True
            if packet.pts is None or packet.pts > self._first:
                raise _TryNextError(self._slower)
            self._waiting = False
        # what an edit list hides may be needed for what it shows, and its time stamps lie elsewhere
        stamp = None if packet.is_discard else packet.pts
        if stamp is not None and self._starts and bisect_right(self._starts, stamp) not in self._needed:
            if self._droppable:
                self._droppable.restart()
            return True
        if self._droppable and packet.size:
            try:
                if self._droppable.leaves_out(bytes(packet), stamp is None or stamp in self._unsent):
                    self._left_out.add(stamp)
                    return True
            except FrameNumError:
                raise _TryNextError(self._slower) from None
            self._unsent.discard(stamp)
            self._sent.add(stamp)
        return False

    def number(self, frame: av.VideoFrame) -> int:
        """Which frame it is; -1 for one before the key frame."""
        if not self._begun and frame.pts is not None and frame.pts < self._first:
            return -1
        self._begun = True
        for number in self._order:
            if frame.pts == (stamp := self._stamps[number]):
                break
            if stamp not in self._left_out and (stamp in self._sent or not self.is_complete):
                raise _TryNextError(self._slower)
        else:
            raise _TryNextError(self._slower)
        # some containers call every packet a key frame; a palette may have come with the first packet only
        if number in self._entries and (not frame.key_frame or frame.format.has_palette):
            raise _TryNextError(self._slower)
        return number


def _equal_steps(clip: Clip) -> range:
    """Time stamps of the frames of a clip where they are equally spaced; empty elsewhere."""
    return range(clip.pts_start, clip.pts_start + clip.pts_step * clip.num_frames, clip.pts_step or 1)


def _time_stamps(clip: Clip, container: av.container.InputContainer, stream: av.VideoStream, last: int) -> Sequence[int]:
    """Of the frames, in the order of display, that of the `last` wanted among them: from the manifest where they are equally
    spaced; otherwise from the packets, which costs a pass over them."""
    if clip.pts_step:
        stamps: Sequence[int] = _equal_steps(clip)
        num_packets = clip.num_frames
    else:
        codec = stream.codec_context.name
        packets = (p for p in packets_of(container, stream) if p.size and not p.is_discard and not is_hidden(codec, p))
        known = [packet.pts for packet in packets]
        stamps, num_packets = sorted(stamp for stamp in known if stamp is not None), len(known)
    if last >= num_packets:
        raise DecodeError(Failure.MISSING_FRAMES, f"frame {last} was asked for, there are packets of {num_packets}")
    # AVI numbers frames in the order of decoding, also those that only hold a place
    misnumbered = not clip.pts_step and container.format.name == "avi" and stream.codec_context.has_b_frames
    if len(stamps) != clip.num_frames or misnumbered:
        raise _TryNextError(Manner.COUNT)
    return stamps


def droppable_pictures(stream: av.VideoStream) -> DroppablePictures | None:
    """To go along with the packets of a stream that are decoded; None if none of them is known to be droppable: without
    B-frames nearly always none is, and to look for them took 1 % of the time."""
    context = stream.codec_context
    if context.name != "h264" or not context.has_b_frames:
        return None
    sequence = read_sequence(context.extradata or b"")
    return DroppablePictures(sequence) if sequence else None


def is_hidden(codec: str, packet: av.Packet) -> bool:
    """VP8's alternate reference frames are packets of their own that show nothing (RFC 6386, section 9.1: show_frame)."""
    return codec == "vp8" and packet.size > 0 and not memoryview(packet)[0] >> 4 & 1
