"""Decode a finished clip once, whole, see that training gets the same frames of it, and say what the manifest must know.

Training seeks, decodes some frames of some groups of pictures, and opens many clips by another way than a player would. What it
delivers of a few frames, near some of the key frames, is compared with the same frames of the whole; and of H.264 what it
delivers of some frames that others refer to, without those between them that nothing refers to.
"""

import io
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import av
import numpy as np
import xxhash

from dataset_builders.media.changes import difference
from dataset_builders.media.clip import ClipRequest
from dataset_builders.media.frame_rate import LONGEST_PAUSES, continued, frame_rate
from dataset_builders.media.lost_frames import LostFrames, nal_units
from dataset_builders.media.probe import open_container, picture, video_stream
from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.decoding.colour import RgbConverter, range_of
from pipeline.decoding.decode import DecodeError, decoded_frames, droppable_pictures, is_hidden, packets_of
from pipeline.decoding.nal_units import FrameNumError
from pipeline.decoding.orientation import stored_size
from pipeline.decoding.video_file import key_frames
from pipeline.stage_meters import ClipMeter
from pipeline.storage.manifest import Clip, content_hash

INSTEAD = "; use a preset that encodes, such as h264-fast"
REFERENCES = 16  # that are decoded once more; 3 ms of the 38 that verifying a clip of 10 s takes
IDR = {"h264": {5}, "hevc": {16, 17, 18, 19, 20}}  # NAL unit types after which nothing refers back: IDR; BLA and IDR


@dataclass(frozen=True, slots=True)
class VerifiedClip:
    """Columns of the manifest, under the names they have there."""

    num_frames: int
    fps: float
    width: int
    height: int
    codec: str
    duration: float
    rotation: int
    matrix: str
    range: str
    keyframes: list[int]
    pts_start: int
    pts_step: int


def verify(data: bytes) -> VerifiedClip:
    """Decode all frames of an encoded clip, and some of them as training does.

    Key frames are given by their place among the displayed frames; only those
    count where decoding can start without anything before them: frame 0 always (the file's beginning), others if nothing
    shown later comes earlier in the file and, for H.264 and HEVC, the packet holds an IDR (or BLA) picture, so that an
    open GOP's recovery point does not count. Raises RejectedError (damaged, unsupported) if it does not decode cleanly, or
    training would not get its frames.
    """
    try:
        with LostFrames() as lost, open_container(file := io.BytesIO(data)) as container:
            lost.follow(container, video_stream(container), file)
            clip, prints, references = _verify(container, lost)
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise RejectedError(Reason.DAMAGED, f"decoding it stops with: {error.strerror}") from None
    if not _is_delivered(clip, data, prints, references):
        clip = replace(clip, keyframes=[0])  # no place to start at, whatever its packets and its decoder say
        if not _is_delivered(clip, data, prints, references):
            raise RejectedError(Reason.UNSUPPORTED, f"sought, it gives other frames than decoded whole{INSTEAD}")
    return clip


def manifest_row(request: ClipRequest, clip: VerifiedClip, data: bytes, min_frames: int) -> dict[str, Any]:
    """What the manifest says of a clip, but for its shard and place; raises RejectedError (too_short, too_small)."""
    if clip.num_frames < min_frames:
        raise RejectedError(Reason.TOO_SHORT, f"{clip.num_frames} frames decode; --min-frames is {min_frames}")
    if min(clip.width, clip.height) < 16:
        raise RejectedError(Reason.TOO_SMALL, f"{clip.width}x{clip.height} pixels; at least 16x16 are needed")
    names = ("key", "source", "split", "label", "sampling", "path", "source_id", "extra")
    asked = {name: getattr(request, name) for name in names}
    return {**asked, **asdict(clip), "start": None, "end": None, "content_hash": content_hash(data)}


def _verify(container: av.container.InputContainer, lost: LostFrames) -> tuple[VerifiedClip, list[int], list[int]]:
    """-> (what the manifest must know, prints of all frames, numbers of those that are left if all that may be is left out)."""
    stream = video_stream(container)
    codec = stream.codec.canonical_name
    shown: list[int | None] = []  # time stamps of the frames, in the order of display
    prints: list[int] = []
    packets: list[tuple[int | None, bool]] = []  # time stamp and whether decoding can start there, in the file's order
    stamps: list[tuple[int | None, int | None]] = []  # of those that show a frame
    droppable = droppable_pictures(stream)
    dropped: set[int | None] = set()
    failed, corrupt, first = 0, 0, None
    for packet in packets_of(container, stream):
        if packet.size:
            packets.append((packet.pts, packet.is_keyframe and _starts_clean(stream, codec, packet)))
            if not packet.is_discard and not is_hidden(codec, packet):
                stamps.append((packet.pts, packet.dts))
            with suppress(FrameNumError):
                if droppable and droppable.leaves_out(bytes(packet), wanted=False):
                    dropped.add(packet.pts)
        frames = lost.decode(packet)
        failed += frames is None
        for frame in frames or ():
            first = first or frame
            if found := difference(first, frame):
                raise RejectedError(Reason.UNSUPPORTED, f"its {found} in frame {len(shown)}")
            corrupt += frame.is_corrupt
            shown.append(frame.pts)
            prints.append(_print(frame))
    if failed or corrupt or first is None:
        detail = f"{failed} of {len(packets)} packets do not decode, {corrupt} of {len(shown)} frames are corrupt"
        raise RejectedError(Reason.DAMAGED, detail)
    if detail := lost.damage():
        raise RejectedError(Reason.DAMAGED, detail)
    seen = picture(first)
    if seen["matrix"] not in ("bt601", "bt709", "bt2020"):
        detail = f"colour matrix {seen['matrix']}: use a preset that converts, such as h264-fast"
        raise RejectedError(Reason.UNSUPPORTED, detail)
    width, height = stored_size(first.width, first.height, seen["rotation"])
    pts_start, pts_step, fps = _timing(
        shown, stream, *continued(stamps, stream.time_base, LONGEST_PAUSES.get(container.format.name, math.inf))
    )
    clip = VerifiedClip(
        num_frames=len(shown),
        fps=float(fps),
        width=width,
        height=height,
        codec=codec,
        duration=float(len(shown) / fps),
        rotation=seen["rotation"],
        matrix=seen["matrix"],
        range=range_of(first),
        keyframes=key_frames(shown, packets),
        pts_start=pts_start,
        pts_step=pts_step,
    )
    references = [number for number, stamp in enumerate(shown) if stamp not in dropped] if dropped and pts_step else []
    return clip, prints, references


def _is_delivered(verified: VerifiedClip, data: bytes, prints: list[int], references: list[int]) -> bool:
    """Whether training's decoder gives the frames of these prints; raises RejectedError(unsupported) where it gives none."""
    columns = {name: value for name, value in asdict(verified).items() if name in Clip.__dataclass_fields__}
    columns |= {"keyframes": tuple(verified.keyframes), "size": len(data)}
    clip = Clip(row=0, key="", shard="", offset=0, content_hash="", **columns)
    size = stored_size(clip.width, clip.height, clip.rotation)
    try:
        with RgbConverter(clip.matrix, clip.range, (0, 0, *size)) as converter:
            for wanted in _requests(verified, references):
                meter = ClipMeter()
                for place, frame in decoded_frames(clip, data, np.array(wanted), meter):
                    if _print(frame) != prints[wanted[place]]:
                        return False
                    converter.rows(frame)
                if meter.restarts:
                    break  # it cannot be sought, and was decoded from its beginning once more
    except MemoryError:
        raise
    except (DecodeError, av.error.FFmpegError, ValueError, EOFError) as error:
        raise RejectedError(Reason.UNSUPPORTED, f"training could not decode it: {error}{INSTEAD}") from None
    return True


def _requests(clip: VerifiedClip, references: list[int]) -> list[list[int]]:
    """Frames to ask training's decoder for: single ones, some with groups of pictures between them, and the first references
    of a group. They lie near key frames, where decoding takes little; but for the first group, which is decoded whole."""
    keys, last = clip.keyframes, len(clip.keyframes) - 1
    ends = [*keys[1:], clip.num_frames]
    near = [min(keys[group] + 2, ends[group] - 1) for group in (0, last // 2, last)]
    alone = [number for number in references if keys[last // 2] <= number < ends[last // 2]][:REFERENCES]
    some = [[near[2]], *([[near[1]]] if last > 3 else []), *([[near[0], near[2]]] if last > 1 else [])]
    return [*some, alone] if alone else some


def _print(frame: av.VideoFrame) -> int:
    """Hash of some 32 rows of a frame's first plane, and of its palette: 5 us, where decoding takes 150."""
    planes = frame.planes
    rows = np.frombuffer(planes[0], np.uint8).reshape(planes[0].height, -1)  # type: ignore[call-overload]
    pixels = rows[:: max(1, len(rows) // 32), : frame.width * _bits(frame.format.name) // 8].tobytes()
    return xxhash.xxh3_64_intdigest(pixels + bytes(planes[1]) if frame.format.has_palette else pixels)


@lru_cache
def _bits(pixel_format: str) -> int:
    """Of a pixel in the first plane."""
    known = av.VideoFormat(pixel_format, 16, 16)
    return -(-known.components[0].bits // 8) * 8 if known.is_planar else known.padded_bits_per_pixel


def _timing(
    shown: list[int | None], stream: av.video.stream.VideoStream, joined: list[float], spliced: bool
) -> tuple[int, int, Fraction]:
    """(time stamp of frame 0, constant step or 0, frames per second); `joined` and `spliced` as `continued` gives them."""
    times = [time for time in shown if time is not None]
    nominal = Fraction(stream.average_rate or stream.guessed_rate or 25)
    if len(times) < len(shown) or not stream.time_base:
        return 0, 0, nominal
    if spliced:
        rate, constant = frame_rate(joined, [nominal])
        return times[0], 0, rate if constant else Fraction((len(joined) - 1) / (joined[-1] - joined[0]))
    steps = {b - a for a, b in pairwise(times)}
    if len(steps) == 1 and (step := steps.pop()) > 0:
        return times[0], step, 1 / (step * Fraction(stream.time_base))
    rate, constant = frame_rate([float(time * stream.time_base) for time in times], [nominal])
    span = (max(times) - min(times)) * Fraction(stream.time_base)
    return times[0], 0, rate if constant else (len(times) - 1) / span


def _starts_clean(stream: av.video.stream.VideoStream, codec: str, packet: av.Packet) -> bool:
    return codec not in IDR or any(kind in IDR[codec] and not layer for kind, layer in nal_units(stream, packet))
