"""Decode a finished clip once, whole, with the decoder that training uses, and say what the manifest must know of it.

As a program it rechecks a dataset, and says what is wrong with it and how to repair it (see recheck.py):

    python dataset_builders/verify.py DATASET [--sample N] [--no-decode] [--failures failures.jsonl]
"""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT, *(path for path in sys.path if path not in (ROOT, str(Path(__file__).resolve().parent)))]

if __name__ == "__main__":
    from pipeline.console import prepare

    prepare()

import io
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av

from dataset_builders.frame_rate import frame_rate
from dataset_builders.probe import matrix_name, open_container, video_stream
from dataset_builders.rejects import Reason, RejectedError
from pipeline.decode import packets_of

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
    """Decode all frames of an encoded clip.

    Rotation is in degrees counter-clockwise. Key frames are given by their place among the displayed frames; only those
    count where decoding can start without anything before them: frame 0 always (the file's beginning), others if nothing
    shown later comes earlier in the file and, for H.264 and HEVC, the packet holds an IDR (or BLA) picture, so that an
    open GOP's recovery point does not count. Raises RejectedError (damaged, unsupported) if it does not decode cleanly.
    """
    try:
        container = open_container(io.BytesIO(data))
        with container:
            return _verify(container)
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise RejectedError(Reason.DAMAGED, f"decoding it stops with: {error.strerror}") from None


def _verify(container: av.container.InputContainer) -> VerifiedClip:
    stream = video_stream(container)
    codec = stream.codec.canonical_name
    shown: list[int | None] = []  # time stamps of the frames, in the order of display
    packets: list[tuple[int | None, bool]] = []  # time stamp and whether decoding can start there, in the file's order
    failed, corrupt, first = 0, 0, None
    for packet in packets_of(container, stream):
        if packet.size:
            packets.append((packet.pts, packet.is_keyframe and _starts_clean(stream, codec, packet)))
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            failed += 1
            continue
        for frame in frames:
            first = first or frame
            if (frame.width, frame.height) != (first.width, first.height):
                sizes = f"{first.width}x{first.height} to {frame.width}x{frame.height}"
                raise RejectedError(Reason.UNSUPPORTED, f"its size changes from {sizes} in frame {len(shown)}")
            corrupt += frame.is_corrupt
            shown.append(frame.pts)
    if failed or corrupt or first is None:
        detail = f"{failed} of {len(packets)} packets do not decode, {corrupt} of {len(shown)} frames are corrupt"
        raise RejectedError(Reason.DAMAGED, detail)
    rotation = round(first.rotation / 90) % 4 * 90
    width, height = (first.width, first.height) if rotation % 180 == 0 else (first.height, first.width)
    pts_start, pts_step, fps = _timing(shown, stream)
    return VerifiedClip(
        num_frames=len(shown),
        fps=float(fps),
        width=width,
        height=height,
        codec=codec,
        duration=float(len(shown) / fps),
        rotation=rotation,
        matrix=_decoder_matrix(first),
        range="full" if first.color_range == 2 or "yuvj" in first.format.name or first.format.is_rgb else "limited",
        keyframes=_keyframes(shown, packets),
        pts_start=pts_start,
        pts_step=pts_step,
    )


def _timing(shown: list[int | None], stream: av.video.stream.VideoStream) -> tuple[int, int, Fraction]:
    """(time stamp of frame 0, constant step or 0, frames per second)."""
    times = [time for time in shown if time is not None]
    nominal = Fraction(stream.average_rate or stream.guessed_rate or 25)
    if len(times) < len(shown) or not stream.time_base:
        return 0, 0, nominal
    steps = {b - a for a, b in pairwise(times)}
    if len(steps) == 1 and (step := steps.pop()) > 0:
        return times[0], step, 1 / (step * Fraction(stream.time_base))
    rate, constant = frame_rate([float(time * stream.time_base) for time in times], [nominal])
    span = (max(times) - min(times)) * Fraction(stream.time_base)
    return times[0], 0, rate if constant else (len(times) - 1) / span


def _keyframes(shown: list[int | None], packets: list[tuple[int | None, bool]]) -> list[int]:
    """Places, in the order of display, of the frames that decoding can start at."""
    place = {time: number for number, time in enumerate(shown)}
    times = [time for time, _ in packets]
    if None in times or None in place or len(place) < len(shown):
        return [0]  # without distinct time stamps there is no telling which frame a packet becomes
    known = [time for time in times if time is not None]
    latest_before, earliest_after = [known[0] - 1], [known[-1] + 1]
    for time in known[:-1]:
        latest_before.append(max(latest_before[-1], time))
    for time in reversed(known[1:]):
        earliest_after.append(min(earliest_after[-1], time))
    starts = {
        place[time]
        for (time, clean), before, after in zip(packets, latest_before, reversed(earliest_after), strict=True)
        if clean and time in place and before < time < after  # type: ignore[operator]
    }
    return sorted(starts | {0})


def _starts_clean(stream: av.video.stream.VideoStream, codec: str, packet: av.Packet) -> bool:
    if codec not in IDR:
        return True
    extradata = stream.codec_context.extradata or b""
    length_size = 0
    if extradata[:1] == b"\1":  # avcC, hvcC: units preceded by their length; otherwise by a start code (Annex B)
        length_size = (extradata[4 if codec == "h264" else 21] & 3) + 1
    data, position = bytes(packet), 0
    while position < len(data):
        if length_size:
            size = int.from_bytes(data[position : position + length_size], "big")
            position += length_size
        else:
            found = data.find(b"\0\0\1", position)
            if found < 0:
                return False
            position, size = found + 3, 0
        if position >= len(data):
            return False
        kind = data[position] & 31 if codec == "h264" else data[position] >> 1 & 63
        if kind in IDR[codec]:
            return True
        position += size
    return False


def _decoder_matrix(frame: av.VideoFrame) -> str:
    name = matrix_name(frame)
    if name not in ("bt601", "bt709", "bt2020"):
        raise RejectedError(Reason.UNSUPPORTED, f"colour matrix {name}: use a preset that converts, such as h264-fast")
    return name


if __name__ == "__main__":
    from dataset_builders.recheck import main

    sys.exit(main())
