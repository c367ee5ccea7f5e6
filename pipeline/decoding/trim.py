"""What a hardware decoder is sent of a clip: only the packets it needs, in a stream of their own. No DALI is needed for this.

DALI decodes from frame 0 of what it is given, whatever frames are asked for, and begins again for a frame that is asked for
twice. So `trim` copies only the packets from the key frame before the first wanted frame up to the last wanted one into a
Matroska stream in memory, without the pictures that nobody wants and nothing refers to (`nal_units`), and gives them new time
stamps, 0, 1, 2 ... in presentation order: variable rates, edit lists and negative stamps end there. It takes 2.5 ms a clip,
2.0 of them to open it (both twice where frames are not equally spaced); MP4, NUT and IVF take as long, and DALI takes H.264 to
NVDEC from Matroska and MP4 only. Of 300 frames of VP9, 448 x 256, GOP 32, 16 wanted at stride 4 from a random start: 27 % of
the bytes, 146 instead of 194 ms a clip on one core.
"""

import io
import pickle
import time
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from pipeline.decoding.decode import (
    ClipRequest,
    DecodeError,
    Failure,
    droppable_pictures,
    is_hidden,
    open_clip,
    packets_of,
    video_stream,
)
from pipeline.decoding.nal_units import DroppablePictures, FrameNumError
from pipeline.decoding.orientation import stored_size
from pipeline.storage.manifest import Clip

CPU_CODECS = ("vp8", "vp9", "mjpeg")  # of the wheels since 2.1.1
# smallest and largest (width, height) of NVDEC. Not here: MJPEG (out-commented in DALI), MPEG-4 (B-frames without time
# stamps come out in decoding order), AV1 (A100, H100 and H200 have no decoder for it)
GPU_CODECS = {
    "h264": ((48, 16), (4096, 4096)),
    "hevc": ((144, 144), (8192, 8192)),
    "vp8": ((48, 16), (4096, 4096)),
    "vp9": ((128, 128), (8192, 8192)),
}
PIXEL_FORMATS = {  # DALI's conversion is checked for these
    "cpu": ("yuv420p", "yuvj420p", "yuvj422p", "yuvj444p"),
    "cuda": ("yuv420p", "yuvj420p"),
}


class UnsupportedClipError(ValueError):
    """A clip that DALI would not decode exactly; libav does. The message is the reason."""


@dataclass(frozen=True, slots=True)
class TrimmedClip:
    """What the decoder is sent of one clip."""

    clip: Clip
    data: bytes  # Matroska: the packets from a key frame to the last wanted frame
    frames: np.ndarray  # (n,) int32, the distinct wanted frames, ascending, counted from that key frame
    places: np.ndarray  # (R, T) int64, which of the n frames stands where
    boxes: np.ndarray  # (R, 4) int64 (x, y, width, height) in the displayed frame


def can_decode(clip: Clip, device: str) -> str | None:
    """None if DALI decodes such a clip on a "cpu" or "cuda" device, else the reason. Asks the manifest only; `trim` asks the
    stream."""
    if device == "cpu":
        return None if clip.codec in CPU_CODECS else f"DALI decodes {', '.join(CPU_CODECS)} on a CPU, not {clip.codec}"
    if clip.codec not in GPU_CODECS:
        return f"DALI decodes {', '.join(GPU_CODECS)} on a GPU, not {clip.codec}"
    low, high = GPU_CODECS[clip.codec]
    coded = stored_size(clip.width, clip.height, clip.rotation)
    if any(not least <= side <= most for least, side, most in zip(low, coded, high, strict=True)):
        return f"NVDEC decodes {clip.codec} from {low[0]} x {low[1]} to {high[0]} x {high[1]} pixels"
    return None


def trim(request: ClipRequest, device: str = "cpu") -> TrimmedClip:
    """Copy the needed packets of a clip, without decoding, into a stream of their own, for a "cpu" or "cuda" device.

    Raises DecodeError for damage that shows without decoding (a missing packet, which DALI would deliver as a black frame; a
    packet that is no frame), UnsupportedClipError where DALI would not give the same frames as libav.
    """
    clip, began = request.clip, time.perf_counter_ns()
    if (reason := can_decode(clip, device)) is not None:
        raise UnsupportedClipError(reason)
    frames = np.broadcast_to(request.frames, (len(request.boxes), request.frames.shape[-1]))
    wanted, places = np.unique(frames, return_inverse=True)
    try:
        stamps = _time_stamps(clip, request.data, device)
        if wanted[-1] >= len(stamps):
            raise DecodeError(Failure.MISSING_FRAMES, f"frame {wanted[-1]} was asked for, there are packets of {len(stamps)}")
        try:
            data, shown = _trimmed(request, stamps, wanted, device)
        except FrameNumError:
            request.meter.restarts += 1
            data, shown = _trimmed(request, stamps, wanted, device, whole=True)
    except (av.FFmpegError, EOFError) as error:
        raise DecodeError(Failure.DAMAGED, f"{type(error).__name__}: {error}") from error
    numbers = np.searchsorted(shown, stamps[wanted]).astype(np.int32)
    meter = request.meter
    meter.demux += time.perf_counter_ns() - began
    meter.bytes_used, meter.frames_decoded = meter.bytes_used + len(data), meter.frames_decoded + int(numbers[-1]) + 1
    meter.frames_kept, meter.frames_spanned = len(wanted), int(wanted[-1] - wanted[0]) + 1
    return TrimmedClip(clip, data, numbers, places.reshape(frames.shape), request.boxes)


def _trimmed(
    request: ClipRequest, stamps: np.ndarray, wanted: np.ndarray, device: str, whole: bool = False
) -> tuple[bytes, np.ndarray]:
    """-> as `_remux`; `whole`: also what nobody wants and nothing refers to. Raises FrameNumError if something does."""
    clip = request.clip
    for start in sorted({0, *(k for k in clip.keyframes if k <= wanted[0])}, reverse=True):
        # anew for a second try: not every container seeks to its beginning
        with open_clip(request.data, careful=True) as container:
            stream = _video_stream(container, device)
            droppable = None if whole or not clip.pts_step else droppable_pictures(stream)
            packets = _packets(clip, container, stream, stamps, wanted, start, droppable)
            if packets:
                for packet in packets:
                    _check_packet(clip.codec, packet, device)
                return _remux(clip.codec, packets, stream)
    raise AssertionError("from frame 0 on there is something or an error")


def pack(trimmed: TrimmedClip, memory: np.ndarray) -> int:
    """Put a trimmed clip into memory of any kind and shape -> the bytes it takes there, for `unpack`.

    Raises UnsupportedClipError if there is no room for it.
    """
    data = np.frombuffer(pickle.dumps(trimmed, pickle.HIGHEST_PROTOCOL), np.uint8)
    if len(data) > memory.nbytes:
        raise UnsupportedClipError(f"trimmed, it still takes {len(data)} bytes, more than the {memory.nbytes} of its views")
    memory.reshape(-1).view(np.uint8)[: len(data)] = data
    return len(data)


def unpack(memory: np.ndarray, size: int) -> TrimmedClip:
    """What `pack` put there."""
    return pickle.loads(memory.reshape(-1).view(np.uint8)[:size].data)


def _video_stream(container: av.container.InputContainer, kind: str) -> av.VideoStream:
    stream = video_stream(container)
    context = stream.codec_context
    if context.pix_fmt is None:
        raise DecodeError(Failure.DAMAGED, "its beginning does not say what its frames are")
    if context.pix_fmt not in PIXEL_FORMATS[kind]:
        raise UnsupportedClipError(f"its pixel format is {context.pix_fmt}")
    if container.format.name == "avi" and context.has_b_frames:
        raise UnsupportedClipError("AVI does not say in which order its B-frames are shown")
    if kind == "cuda" and context.field_order > 1:  # 0 is unknown, 1 progressive
        raise UnsupportedClipError("it is interlaced: DALI would count its fields")
    return stream


def _time_stamps(clip: Clip, data: bytes, kind: str) -> np.ndarray:
    """Of all frames in presentation order; where they are not equally spaced that takes a pass over the packets."""
    if clip.pts_step:
        return clip.pts_start + clip.pts_step * np.arange(clip.num_frames)
    with open_clip(data, careful=True) as container:
        stream = _video_stream(container, kind)
        packets = packets_of(container, stream)
        shown = [(p.pts, p.dts) for p in packets if p.size and not p.is_discard and not is_hidden(clip.codec, p)]
    stamps = sorted(pts for pts, _ in shown if pts is not None)
    if not stamps or len(stamps) < len(shown):
        raise UnsupportedClipError("its packets have no presentation time stamps")
    if len(stamps) > clip.num_frames:
        raise UnsupportedClipError("not every packet of it is a frame")
    if stream.codec_context.has_b_frames and all(pts == dts for pts, dts in shown):
        raise UnsupportedClipError("its time stamps are in the order of decoding")
    return np.array(stamps)


def _packets(
    clip: Clip,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    stamps: np.ndarray,
    wanted: np.ndarray,
    start: int,
    droppable: DroppablePictures | None,
) -> list[av.Packet]:
    """From the packet of frame `start` on, in decoding order, all that hold the frames up to the last `wanted` one, but for
    those that are droppable and not wanted.

    Empty if decoding cannot begin there, but at an earlier key frame.
    """
    first, last, missing = int(stamps[start]), int(stamps[wanted[-1]]), set(stamps[start : wanted[-1] + 1].tolist())
    known, shown = missing.copy(), set(stamps[wanted].tolist())
    if start:
        container.seek(first, stream=stream, backward=True)
    packets: list[av.Packet] = []
    stamped: list[int] = []  # of those that show a frame
    for packet in packets_of(container, stream):
        if not packet.size:
            continue
        if packet.pts is None:
            raise UnsupportedClipError("its packets have no presentation time stamps")
        if start and packet.pts < first and packets:
            return []  # an open GOP: a frame that is shown before its key frame needs the GOP before
        # from frame 0 on everything is taken: an edit list may have hidden what comes before it
        if packets or (packet.is_keyframe and (packet.pts == first or not start)):
            key = stamped[0] if stamped else packet.pts
            if packet.pts < key or (packet.pts < first and not packet.is_discard):  # it may not come out
                raise UnsupportedClipError("it begins with frames that refer to what is not there")
            missing.discard(packet.pts)
            if not droppable or not droppable.leaves_out(bytes(packet), packet.is_discard or packet.pts in shown):
                packets.append(packet)
                if not is_hidden(clip.codec, packet):
                    stamped.append(packet.pts)
            if not missing:
                if any(first < stamp < last and stamp not in known for stamp in stamped):
                    raise UnsupportedClipError("not every packet of it is a frame")
                return packets
    if start and not packets:
        return []
    number = int(np.searchsorted(stamps, min(missing)))
    raise DecodeError(Failure.MISSING_FRAMES, f"the packet of frame {number} of {clip.num_frames} is missing")


def _remux(codec: str, packets: list[av.Packet], stream: av.VideoStream) -> tuple[bytes, np.ndarray]:
    """-> (Matroska with stamps 0, 1, 2 ... in presentation order, the old stamps of its visible frames, ascending)."""
    old = np.array([packet.pts for packet in packets])
    order = np.sort(old)
    if (np.diff(order) == 0).any():
        raise UnsupportedClipError("its time stamps are not unique")
    shown = np.sort(old[[not is_hidden(codec, packet) for packet in packets]])
    new = np.searchsorted(order, old)
    delay = int((np.arange(len(new)) - new).max())
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        target = output.add_stream_from_template(stream)
        for number, packet in enumerate(packets):
            packet.stream = target
            packet.time_base = Fraction(1, 25)
            packet.pts, packet.dts = int(new[number]), number - delay
            output.mux(packet)
    return buffer.getvalue(), shown


def _check_packet(codec: str, packet: av.Packet, kind: str) -> None:
    """What a packet's first and last byte say: whether it is a frame at all, and one that NVDEC delivers as one frame."""
    data = memoryview(packet)
    first, last = data[0], data[-1]
    if packet.is_corrupt or (codec == "vp9" and first >> 6 != 2) or (codec == "mjpeg" and bytes(data[:2]) != b"\xff\xd8"):
        raise DecodeError(Failure.DAMAGED, f"the packet at time stamp {packet.pts} is no {codec} frame")
    if codec == "vp9" and kind == "cuda" and (last & 0xE0 == 0xC0 or first >> 3 & 1):
        # DALI counts what NVDEC decodes: a superframe as two frames, a frame shown again as none
        raise UnsupportedClipError("its VP9 stream has hidden frames")
