"""Frames that a decoder leaves out in silence: packets that show one, against what comes out and what the decoder says.

libav fails at damage, or conceals it and marks the frame corrupt. At times it does neither: an HEVC picture whose references
are missing is not shown, and all there is to see is a line in the log; or not even that, where a unit is of a type or a layer
that it skips. Such lines alone mean little, many sound files cause them; neither does a packet without a frame: two fields of a
frame can be two packets, MPEG-4 in AVI has packets that only hold a place, and what comes before the first key frame, or is
shown before it, cannot be decoded. Both together are damage. So is a line of the demuxer together with a gap: packets that
never came, where the others are equally spaced. So is a packet that
the demuxer calls corrupt, unless it is MPEG-TS that was spliced there, and the decoder says nothing.
"""

import math
import statistics
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO, Self

import av

from dataset_builders.media.probe import BEYOND, VideoInfo, open_container, open_file, video_stream
from dataset_builders.media.transport_stream import is_only_spliced
from pipeline.decoding.decode import is_hidden, packets_of
from pipeline.decoding.nal_units import unit_positions

SILENT = ("av1",)  # decoders that say nothing; of AV1 every packet shows exactly one frame
PLACEHOLDER = 19  # bytes of an MPEG-4 packet that shows the frame before it once more, at most; libav leaves these out
SPLICED = "mpegts"  # the demuxer that calls whole packets corrupt, see transport_stream
GAPS = 2  # that a line of the demuxer can account for: one flip was seen to make two; a recorder's dropped frames make more
CUT_OFF = ("partial file", "File ended prematurely")  # what demuxers say of a file's end; nothing of its middle
# types of HEVC's NAL units (H.265, table 7-1)
RASL = {8, 9}  # pictures that refer to what comes before their key frame
BLA, CRA = {16, 17, 18}, 21  # key frames that such pictures can follow; with the first, what was before is never there
PICTURES = {*range(10), *range(16, 22)}  # those in between are reserved
KEYS = {*range(16, 22)}
NO_PICTURE = 32  # from here on
END = {36, 37}  # of a sequence, of the stream: after it no picture refers to what was before
BESIDE = range(35, 41)  # delimiters, ends, filler, SEI


class LostFrames:
    """Decodes packets of a stream, from some place on to its end, and keeps count. A context manager, of one thread, to be
    entered before the container is opened: libav reads some seconds of it then."""

    def __init__(self) -> None:
        self._begun = False  # a key frame's packet has come
        self._said = ""  # the decoder's first line at error level from then on
        self._read: list[str] = []  # the demuxer's lines at error level
        self._packets: list[tuple[int | None, bool]] = []  # from then on: time stamp, and whether a frame must come of it
        self._held: list[tuple[int | None, bool]] = []  # HEVC: packets without a picture, until one with a picture comes
        self._marked: list[int | None] = []  # time stamps of packets that the demuxer calls corrupt
        self._places: list[tuple[int | None, int]] = []  # time stamp, and place in the file
        self._skips = False  # HEVC: units were skipped in silence
        self._ended, self._key = True, min(BLA)  # HEVC: no picture can refer back; type of the last key frame
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

    def follow(self, container: av.container.InputContainer, stream: av.VideoStream, file: BinaryIO) -> None:
        """To be called once, before `decode`; the container reads the file."""
        self._file = file
        self._demuxer, self._stream, self._codec = container.format.name, stream, stream.codec.canonical_name

    def decode(self, packet: av.Packet) -> list[av.VideoFrame] | None:
        """The frames that come out; None if libav fails."""
        if packet.size:
            self._begun |= packet.is_keyframe
            if self._begun and packet.is_corrupt:
                self._marked.append(packet.pts)
            if packet.pos is not None and packet.pos >= 0:
                self._places.append((packet.pts, packet.pos))
            if self._begun and not packet.is_discard and not is_hidden(self._codec, packet):
                holds_place = self._codec == "mpeg4" and packet.size <= PLACEHOLDER
                if self._codec == "hevc":
                    self._add_hevc(packet)
                else:
                    self._packets.append((packet.pts, not holds_place))
        said = (line.strip() for _, name, line in self._lines if name == self._demuxer)
        self._read += [line for line in said if not any(sign in line for sign in CUT_OFF)]
        self._lines.clear()
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            return None
        finally:
            if self._lines and self._begun and not self._said:
                self._said = self._lines[0][2].strip()
            self._lines.clear()
        for frame in frames:
            interlaced = frame.interlaced_frame and self._codec != "hevc"  # whose fields are frames of their own
            self._frames[frame.pts] = interlaced
            self._num_frames += 1
            self._num_interlaced += interlaced
        return frames

    def _add_hevc(self, packet: av.Packet) -> None:
        """Count a packet, if a frame must come of it, and take note of what it means for those that follow."""
        picture = None
        units = list(nal_units(self._stream, packet))
        for kind, layer in units:
            if kind in END and not layer:
                self._ended = True
            elif kind in PICTURES and not layer and picture is None:
                picture = kind
                if kind in KEYS:
                    self._key = min(BLA) if kind == CRA and self._ended else kind
                    self._ended = False
        if picture in RASL and self._key in BLA:
            return
        if all(kind >= NO_PICTURE for kind, _ in units):  # at the end of a file that is sound
            self._held += [(packet.pts, True)] * any(kind not in BESIDE for kind, _ in units)
            return
        self._skips |= bool(self._held) or picture is None or (picture in RASL and self._key != CRA)
        self._packets += [*self._held, (packet.pts, True)]
        self._held.clear()

    def damage(self, begin: float = -math.inf, end: float = math.inf) -> str:
        """What is lost of the frames that are shown from `begin` until before `end`, in units of time stamps; empty if nothing
        is. Where frames cannot be told by their stamps, of all frames."""
        if gap := self._gap(begin, end):
            return f"{gap} packets are missing; {self._demuxer}: {self._read[0]}"
        marked = sum(stamp is None or stamp < end for stamp in self._marked)
        if marked and (self._said or not self._is_only_spliced(end)):
            said = f"; {self._codec}: {self._said}" if self._said else ""
            return f"{marked} of {len(self._packets)} packets are incomplete{said}"
        if not self._said and not self._skips and self._codec not in SILENT:
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

    def _is_only_spliced(self, end: float) -> bool:
        """Whether that is why packets are called corrupt which are shown before `end`."""
        if self._demuxer != SPLICED or not self._places:
            return False
        last = max((place for stamp, place in self._places if stamp is None or stamp < end), default=0)
        following = min((place for _, place in self._places if place > last), default=None)
        return is_only_spliced(self._file, self._places[0][1], following, self._stream.id)

    def _gap(self, begin: float, end: float) -> int:
        """Packets that never came, by what the demuxer says and a gap among equally spaced ones."""
        known = [stamp for stamp, _ in self._packets if stamp is not None]
        if not self._read or len(known) < max(2, len(self._packets)):
            return 0
        begin = max(begin, known[0])
        steps = [after - before for before, after in pairwise(sorted({*known})) if begin <= before and after < end]
        step = statistics.median(steps or [1])
        cells = [round(between / step) for between in steps]
        even = all(abs(between - number * step) <= number for between, number in zip(steps, cells, strict=True))
        return sum(cells) - len(cells) if even and sum(number > 1 for number in cells) <= GAPS * len(self._read) else 0

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
    with open(open_file(path), "rb", buffering=0) as file, LostFrames() as lost, open_container(file) as container:
        stream, window = video_stream(container), info.window
        lost.follow(container, stream, file)
        if window and math.isfinite(window.seek):
            container.seek(round(window.seek * av.time_base))
        base = float(stream.time_base or 1)
        begin, end = (window.begin / base, window.end / base) if window else (-math.inf, math.inf)
        for packet in packets_of(container, stream):
            frames = lost.decode(packet)  # None: a frame fewer
            if frames is not None and packet.dts is not None and packet.dts > end + BEYOND / base:
                break
        return lost.damage(begin, end)


def nal_units(stream: av.VideoStream, packet: av.Packet) -> Iterator[tuple[int, int]]:
    """Types of the NAL units in a packet of H.264 or HEVC, and their layers: libav shows 0, -1 is a header that no unit
    can have."""
    h264 = stream.codec.canonical_name == "h264"
    extradata = stream.codec_context.extradata or b""
    length_size = 0
    if extradata[:1] == b"\1":  # avcC, hvcC: units preceded by their length; otherwise by a start code (Annex B)
        length_size = (extradata[4 if h264 else 21] & 3) + 1
    data = bytes(packet)
    for position in unit_positions(data, length_size):
        if position + 1 >= len(data):
            return
        first, second = data[position : position + 2]
        valid = first < 128 and second & 7
        yield (first & 31, 0) if h264 else (first >> 1 & 63, (first & 1) << 5 | second >> 3 if valid else -1)
