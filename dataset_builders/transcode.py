"""Presets: from a source file to the bytes of a clip. FFmpeg runs as one process a clip, without a shell.

| preset      | bytes           | decoding                                                     |
|-------------|-----------------|--------------------------------------------------------------|
| `h264-fast` | crf 23, re-made | about three times faster than x264's defaults (design, §3)   |
| `copy`      | as they are     | as they are: long GOPs, B-frames and large frames cost speed |
"""

import ctypes
import os
import platform
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import ffmpeg
import imageio_ffmpeg

from dataset_builders.probe import VideoInfo, open_file
from dataset_builders.rejects import Reason, RejectedError

MULTIPLE = 16  # width and height of an encoded clip: what NVDEC's surfaces are rounded to
# bicubic is swscale's usual choice; the rest makes its result the same on every CPU
SCALER = "bicubic+accurate_rnd+full_chroma_int+bitexact"
# extensions by FFmpeg's demuxer, beside the demuxer's own names; the first is for files that have none of them
EXTENSIONS = {"mov": "mp4 m4v", "matroska": "mkv", "mpegts": "ts mts m2ts", "mpeg": "mpg vob", "asf": "wmv", "ogg": "ogv"}
# x264's output depends on the SIMD level of the CPU, too
ASM = "asm=avx2:" if platform.machine() == "x86_64" else ""
LOGGING = ("-hide_banner", "-nostats", "-loglevel", "level+verbose")  # verbose: it counts packets, frames and errors
# how FFmpeg and x264 put it; the second is what starting a thread fails with, the last what decoding does
OUT_OF_MEMORY = ("Cannot allocate memory", "Resource temporarily unavailable", "malloc of size", "get_buffer() failed")
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What decides a clip's bytes."""

    preset: str = "h264-fast"
    short_side: int = 256
    """pixels; smaller sources keep their size"""
    gop: int = 32
    """frames from one key frame to the next, at most"""
    min_frames: int = 16


def encode(path: bytes, info: VideoInfo, options: EncodeOptions) -> tuple[bytes, str, int | None]:
    """-> (bytes of the clip, extension, number of frames that went in: None if nobody counted). Raises RejectedError."""
    return PRESETS[options.preset](path, info, options)


def copy(path: bytes, info: VideoInfo, options: EncodeOptions) -> tuple[bytes, str, int | None]:
    """The file as it is. What the manifest says of it (rotation, matrix, range) is left to the loader's decoder."""
    with open(open_file(path), "rb") as file:
        data = file.read()
    own = os.path.splitext(path)[1][1:].lower().decode("ascii", "replace")
    demuxers = info.container.split(",")  # "matroska,webm"
    usual = EXTENSIONS.get(demuxers[0], demuxers[0]).split()
    return data, own if own in {*demuxers, *usual} else usual[0], None


def h264_fast(path: bytes, info: VideoInfo, options: EncodeOptions) -> tuple[bytes, str, int | None]:
    """x264, crf 23, without what costs decoding time: B-frames, CABAC, deblocking, weighted prediction.

    Frames: GOPs are closed and at most `gop` long (x264 begins one early at a scene cut); the rate is constant. Equally
    spaced frames of a source go in once each; others are repeated or left out to fit `info.rate`. Pixels: upright, square,
    deinterlaced where a frame is flagged so, short side at most `short_side`, centre crop by up to 15 pixels to multiples
    of 16, 8-bit 4:2:0, BT.601 in limited range and tagged so. Only the matrix is converted: primaries and transfer curve
    stay what they were, so HDR material comes out flat (no tone mapping).
    """
    scaled, cropped = geometry(info, options.short_side)
    source = os.fdopen(open_file(path), "rb", buffering=0)
    target = os.fdopen(os.memfd_create("clip"), "r+b")  # +faststart needs to seek, and no file is left behind by a kill
    with source, target:
        timing = {"r": str(info.rate)} if info.constant_rate else {}
        video = ffmpeg.input("fd:", fd=source.fileno(), protocol_whitelist="fd", threads=1, **timing)[str(info.stream)]
        if info.planar_yuv:
            video = video.filter("bwdif", mode="send_frame", deint="interlaced")
        if not info.constant_rate:
            video = video.filter("setpts", "PTS-STARTPTS")
        colours = {"in_color_matrix": info.matrix, "out_color_matrix": "bt601", "out_range": "limited"}
        video = (
            video.filter("scale", *scaled, flags=SCALER, **colours)
            .filter("format", "yuv420p")
            .filter("crop", *cropped)
            .filter("setsar", 1)
            .filter("setparams", colorspace="smpte170m", color_primaries="smpte170m", color_trc="smpte170m", range="tv")
        )
        encoder = {
            "c:v": "libx264",
            "preset": "medium",
            "crf": 23,
            "tune": "fastdecode",
            "bf": 0,
            "g": options.gop,
            "threads": 1,  # x264's output depends on the number of threads
            "x264-params": f"{ASM}open-gop=0",
            "r": str(info.rate),
            "fps_mode": "cfr",
            "flags:v": "+bitexact",
        }
        container = {"f": "mp4", "movflags": "+faststart", "fflags": "+bitexact", "map_metadata": -1, "map_chapters": -1}
        output = ffmpeg.output(video, f"/proc/self/fd/{target.fileno()}", an=None, **encoder, **container)
        command = ffmpeg.compile(
            output.global_args(*LOGGING, "-nostdin", "-filter_complex_threads", "1"),
            cmd=ffmpeg_path(),
            overwrite_output=True,
        )
        log = _run(command, (source.fileno(), target.fileno()))
        _check(log, info, options)
        target.seek(0)
        return target.read(), "mp4", log.frames_encoded


PRESETS: dict[str, Callable[[bytes, VideoInfo, EncodeOptions], tuple[bytes, str, int | None]]] = {
    "h264-fast": h264_fast,
    "copy": copy,
}


def geometry(info: VideoInfo, short_side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """-> ((width, height) to scale to, (width, height) to crop to), upright; raises RejectedError(too_small).

    Scaling makes pixels square by changing the width and never enlarges the short side; sizes are rounded down to even
    numbers (4:2:0), then to multiples of 16.
    """
    width, height = info.width * info.pixel_aspect, Fraction(info.height)
    if info.rotation % 180:
        width, height = height, width
    factor = min(Fraction(short_side) / min(width, height), Fraction(1))
    scaled = int(width * factor / 2) * 2, int(height * factor / 2) * 2
    cropped = scaled[0] // MULTIPLE * MULTIPLE, scaled[1] // MULTIPLE * MULTIPLE
    if min(cropped) < MULTIPLE:
        raise RejectedError(Reason.TOO_SMALL, f"{scaled[0]}x{scaled[1]} pixels; at least 16x16 are needed")
    return scaled, cropped


@cache
def ffmpeg_path() -> str:
    """FFmpeg's program: imageio-ffmpeg's own, or what IMAGEIO_FFMPEG_EXE names; raises ValueError without one."""
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ValueError(f"no ffmpeg program: {error}") from None


@dataclass(slots=True)
class FfmpegLog:
    """What FFmpeg said that decides about a clip."""

    status: int = 0
    frames_decoded: int = 0
    frames_encoded: int = 0
    failed_packets: int = 0  # in the demuxer or the decoder
    corrupt_frames: int = 0
    out_of_memory: bool = False
    first_error: str = ""


def _run(command: list[str], descriptors: tuple[int, ...]) -> FfmpegLog:
    log = FfmpegLog()
    # a session of its own: the terminal's ^C reaches the builder, which ends its workers, which take FFmpeg with them
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    ) as process:
        assert process.stderr is not None
        for raw in process.stderr:
            line = raw.decode("utf-8", "replace")
            if found := re.search(r"(\d+) frames decoded; (\d+) decode errors", line):
                log.frames_decoded += int(found[1])
                log.failed_packets += int(found[2])
            elif found := re.search(r"(\d+) frames encoded", line):
                log.frames_encoded += int(found[1])
            elif "corrupt decoded frame" in line:
                log.corrupt_frames += 1
            elif "corrupt input packet" in line:
                log.failed_packets += 1
            log.out_of_memory |= any(sign in line for sign in OUT_OF_MEMORY)
            if not log.first_error and ("[error]" in line or "[fatal]" in line):
                log.first_error = re.sub(r"\[[^]]*\] ?", "", line).strip()
        log.status = process.wait()
    return log


def _check(log: FfmpegLog, info: VideoInfo, options: EncodeOptions) -> None:
    said = f"; FFmpeg: {log.first_error}" if log.first_error else ""
    if log.status == -signal.SIGKILL or log.out_of_memory:
        raise RejectedError(Reason.OUT_OF_MEMORY, f"FFmpeg ran out of memory{said}")
    if log.status < 0:
        raise RejectedError(Reason.CRASH, f"FFmpeg was ended by {signal.Signals(-log.status).name}{said}")
    if log.failed_packets or log.corrupt_frames:
        counts = f"{log.failed_packets} of {info.num_packets} packets fail, {log.corrupt_frames} frames are corrupt"
        raise RejectedError(Reason.DAMAGED, counts + said)
    if log.status:
        raise RejectedError(Reason.ENCODE_FAILED, f"FFmpeg ended with status {log.status}{said}")
    if log.frames_decoded < options.min_frames:
        detail = f"{log.frames_decoded} frames decode; --min-frames is {options.min_frames}"
        raise RejectedError(Reason.TOO_SHORT, detail)
    if info.constant_rate and log.frames_encoded != log.frames_decoded:
        detail = f"{log.frames_decoded} frames decoded, {log.frames_encoded} encoded{said}"
        raise RejectedError(Reason.ENCODE_FAILED, detail)


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
