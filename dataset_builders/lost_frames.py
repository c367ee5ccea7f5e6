"""Frames that a decoder leaves out in silence: packets that show one, against what comes out and what the decoder says.

libav fails at damage, or conceals it and marks the frame corrupt. At times it does neither: an HEVC picture whose references
are missing is not shown, and all there is to see is a line in the log. Such lines alone mean little, many sound files cause
them; neither does a packet without a frame: two fields of a frame can be two packets, MPEG-4 in AVI has packets that only hold
a place, and what comes before the first key frame, or is shown before it, cannot be decoded. Both together are damage.
"""

import math
from collections.abc import Iterator
from typing import Self

import av

from dataset_builders.probe import BEYOND, VideoInfo, open_container, open_file, video_stream
from pipeline.decode import is_hidden, packets_of

SILENT = ("av1",)  # decoders that say nothing; of AV1 every packet shows exactly one frame
PLACEHOLDER = 19  # bytes of an MPEG-4 packet that shows the frame before it once more, at most; libav leaves these out
RASL = {8, 9}  # HEVC NAL unit types of pictures that refer to what comes before their key frame


class LostFrames:
    """Decodes packets of a stream, from some place on to its end, and keeps count. A context manager, of one thread."""

    def __init__(self, stream: av.VideoStream) -> None:
        self._stream, self._codec = stream, stream.codec.canonical_name
        self._begun = False  # a key frame's packet has come
        self._said = ""  # the decoder's first line at error level from then on
        self._packets: list[tuple[int | None, bool]] = []  # from then on: time stamp, and whether a frame must come of it
        self._frames: dict[int | None, bool] = {}  # time stamp: whether it is interlaced
        self._num_frames = self._num_interlaced = 0

    def __enter__(self) -> Self:
        self._before = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)
        self._capture = av.logging.Capture(local=False)  # decoders have threads of their own
        self._lines = self._capture.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.__exit__(None, None, None)
        level, skip_repeated = self._before
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip_repeated)

    def decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        """The frames that come out; raises what libav raises."""
        if packet.size:
            self._begun |= packet.is_keyframe
            if self._begun and not packet.is_discard and not is_hidden(self._codec, packet):
                holds_place = self._codec == "mpeg4" and packet.size <= PLACEHOLDER
                leading = self._codec == "hevc" and packet.pts is None and bool(RASL & {*nal_types(self._stream, packet)})
                self._packets.append((packet.pts, not holds_place and not leading))
        self._lines.clear()  # the demuxer's
        try:
            frames = packet.decode()
        finally:
            if self._lines and self._begun and not self._said:
                self._said = self._lines[0][2].strip()
        for frame in frames:
            interlaced = frame.interlaced_frame
            self._frames[frame.pts] = interlaced
            self._num_frames += 1
            self._num_interlaced += interlaced
        return frames

    def damage(self, begin: float = -math.inf, end: float = math.inf) -> str:
        """What is lost of the frames that are shown from `begin` until before `end`, in units of time stamps; empty if nothing
        is. Where frames cannot be told by their stamps, of all frames."""
        if not self._said and self._codec not in SILENT:
            return ""
        stamps = {stamp for stamp, _ in self._packets}
        distinct = len(stamps) == len(self._packets) and len(self._frames) == self._num_frames
        if distinct and not {None} & (stamps | self._frames.keys()):
            lost = self._without_frame(begin, end) - sum(not shows for _, shows in self._packets)
        else:
            lost = sum(shows for _, shows in self._packets) - self._num_frames - self._num_interlaced
        if lost <= 0:
            return ""
        said = f"; {self._codec}: {self._said}" if self._said else ""
        return f"{lost} of {len(self._packets)} packets give no frame{said}"

    def _without_frame(self, begin: float, end: float) -> int:
        """Packets that give no frame, but for second fields, and for what is shown before the first key frame."""
        number, pair = 0, False
        for stamp, _ in self._packets:
            assert stamp is not None
            if stamp in self._frames:
                pair = self._frames[stamp]
            elif pair:
                pair = False
            else:
                number += max(begin, self._packets[0][0] or 0) <= stamp < end
        return number


def lost_of_source(path: bytes, info: VideoInfo) -> str:
    """Decode the wanted part of a video that FFmpeg complained of once more -> what is lost of it, as `damage` says."""
    with open(open_file(path), "rb", buffering=0) as file, open_container(file) as container:
        stream, window = video_stream(container), info.window
        if window and math.isfinite(window.seek):
            container.seek(round(window.seek * av.time_base))
        base = float(stream.time_base or 1)
        begin, end = (window.begin / base, window.end / base) if window else (-math.inf, math.inf)
        with LostFrames(stream) as lost:
            for packet in packets_of(container, stream):
                try:
                    lost.decode(packet)
                except MemoryError:
                    raise
                except av.error.FFmpegError:
                    continue  # a frame fewer
                if packet.dts is not None and packet.dts > end + BEYOND / base:
                    break
    return lost.damage(begin, end)


def nal_types(stream: av.VideoStream, packet: av.Packet) -> Iterator[int]:
    """Types of the NAL units in a packet of H.264 or HEVC."""
    h264 = stream.codec.canonical_name == "h264"
    extradata = stream.codec_context.extradata or b""
    length_size = 0
    if extradata[:1] == b"\1":  # avcC, hvcC: units preceded by their length; otherwise by a start code (Annex B)
        length_size = (extradata[4 if h264 else 21] & 3) + 1
    data, position = bytes(packet), 0
    while position < len(data):
        if length_size:
            size = int.from_bytes(data[position : position + length_size], "big")
            position += length_size
        else:
            found = data.find(b"\0\0\1", position)
            if found < 0:
                return
            position, size = found + 3, 0
        if position >= len(data):
            return
        yield data[position] & 31 if h264 else data[position] >> 1 & 63
        position += size
