"""From a source to the bytes of its clips: one FFmpeg process decodes it once, whatever it is cut into.

Pixels, in all presets but `copy`: upright, square, deinterlaced where a frame is flagged so, scaled to `short_side` or a
canvas, centre crop to multiples of 16, 8-bit 4:2:0, BT.601 in limited range and tagged so. Only the matrix is converted:
primaries and transfer curve stay what they were, so HDR material comes out flat (no tone mapping). A picture that changes in
mid-stream is not taken, see `changes`. Frames: the rate is constant. Equally spaced frames of a source go in once each; others
are repeated or left out to fit, as they are where another rate is asked for.

A source that is cut is encoded into an unnamed temporary file, with key frames where it will be cut; then its packets are
copied into clips of their own. So frames are exact, nothing is decoded twice, and a kill leaves nothing behind.
"""

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any, BinaryIO

import av
import ffmpeg

from dataset_builders.media.changes import settled
from dataset_builders.media.ffmpeg_process import LOGGING, FfmpegLog, ffmpeg_path, run_ffmpeg
from dataset_builders.media.geometry import geometry
from dataset_builders.media.image_folder import ImageFolder
from dataset_builders.media.lost_frames import SILENT, SPLICED, lost_of_source
from dataset_builders.media.presets import ENCODERS, EncodeOptions
from dataset_builders.media.probe import OFF, VideoInfo, open_file
from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.decoding.decode import packets_of

# bicubic is swscale's usual choice; the rest makes its result the same on every CPU
SCALER = "bicubic+accurate_rnd+full_chroma_int+bitexact"
# libavcodec's PNG decoder gives these, and 1-bit grey, which swscale enlarges, reduces and converts as if it were of limited
# range, with white at 255; as grey it does not. Frames of one film may differ
NO_BITS = "gray|gray16be|ya8|ya16be|pal8|rgb24|rgba|rgb48be|rgba64be"
MUXING = {"movflags": "+faststart", "fflags": "+bitexact"}
# extensions by FFmpeg's demuxer, beside the demuxer's own names; the first is for files that have none of them
EXTENSIONS = {"mov": "mp4 m4v", "matroska": "mkv", "mpegts": "ts mts m2ts", "mpeg": "mpg vob", "asf": "wmv", "ogg": "ogv"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for beside the source: a rate to re-time it to, and the frames of a clip (None: see max_seconds)."""

    rate: Fraction | None = None
    clip_frames: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of one clip, and which of the encoded frames they hold."""

    data: bytes
    first: int
    num_frames: int
    number: int  # of the clip among those of the source
    count: int  # all clips of the source
    info: VideoInfo  # of what is in it, if something else came before the wanted part


@dataclass(frozen=True, slots=True)
class Timing:
    """The frames that will come out of FFmpeg."""

    rate: Fraction
    resampled: bool
    num_frames: int  # as far as the time stamps tell
    limit: int | None  # leave out what comes after so many: a re-timed window is as long as was asked for

    @classmethod
    def of(cls, info: VideoInfo, wanted: Wanted) -> "Timing":
        rate = wanted.rate or info.rate
        resampled = not info.constant_rate or rate != info.rate
        if not resampled:
            return cls(rate, False, info.num_packets, None)
        if info.first is None:  # a file without time stamps is taken for equally spaced frames of info.rate
            return cls(rate, True, max(1, round(info.num_packets / info.rate * rate)), None)
        if wanted.rate and info.window and math.isfinite(info.window.edges[0]):
            limit = max(1, round((info.window.edges[1] - info.window.edges[0]) * rate))
            return cls(rate, True, limit, limit)
        return cls(rate, True, round((info.last - info.first + 1 / float(info.rate)) * rate), None)


def copy_file(path: bytes, info: VideoInfo) -> tuple[bytes, str]:
    """-> (the file as it is, its extension). Rotation, matrix and range of the manifest are then the loader's to honour."""
    with open(open_file(path), "rb") as file:
        data = file.read()
    own = os.path.splitext(path)[1][1:].lower().decode("ascii", "replace")
    demuxers = info.container.split(",")  # "matroska,webm"
    usual = EXTENSIONS.get(demuxers[0], demuxers[0]).split()
    return data, own if own in {*demuxers, *usual} else usual[0]


def transcode(
    source: bytes | ImageFolder, info: VideoInfo, options: EncodeOptions, wanted: Wanted, scratch: str | None = None
) -> Iterator[Piece]:
    """The path of a file, or a folder of images -> its clips, one after the other; raises RejectedError before the first.

    `scratch` is a folder for the temporary file of a source that is cut (None: the system's); it holds all clips, encoded.
    """
    timing = Timing.of(info, wanted)
    cuts = cut_points(timing, options, wanted)
    encoder = ENCODERS[options.preset](options.gop)
    if cuts is None:
        with os.fdopen(os.memfd_create("clip"), "r+b") as target:  # +faststart needs to seek
            log, info = encode(source, info, options, timing, target, encoder, MUXING)
            target.seek(0)
            yield Piece(target.read(), 0, log.frames_encoded, 0, 1, info)
        return
    with tempfile.TemporaryFile(prefix="tubecell-", dir=scratch) as target:  # without a name where the file system can
        log, info = encode(source, info, options, timing, target, encoder, {"fflags": "+bitexact"}, cuts)
        places = cuts.places(log.frames_encoded)
        if len(places) < 2:
            detail = f"{log.frames_encoded} frames at {float(timing.rate):g} per second; a clip is {wanted.clip_frames}"
            raise RejectedError(Reason.TOO_SHORT, detail)
        yield from cut(target, places, info)


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where clips begin: frame f belongs to clip floor(f * numerator / denominator)."""

    numerator: int
    denominator: int
    exact_length: bool  # clips of exactly denominator / numerator frames, the remainder is left out

    def expression(self) -> str:
        """For FFmpeg: whether a clip begins with frame n."""
        place = "floor({}*" + f"{self.numerator}/{self.denominator})"
        return f"expr:gt({place.format('n')},{place.format('(n-1)')})"

    def places(self, num_frames: int) -> list[int]:
        """First frames of the clips and the end of the last one, [0, 300, 600], for the number of frames that were encoded.

        If that is not what was expected, the last of equal clips is longer or shorter than the others.
        """
        if self.exact_length:
            return list(range(0, num_frames + 1, self.denominator))
        starts = [-(-clip * self.denominator // self.numerator) for clip in range(self.numerator)]
        return [*(start for start in starts if start < num_frames), num_frames]


def cut_points(timing: Timing, options: EncodeOptions, wanted: Wanted) -> Cuts | None:
    """None where the source is one clip."""
    if wanted.clip_frames:
        return Cuts(1, wanted.clip_frames, True)
    num_clips = math.ceil(Fraction(timing.num_frames) / timing.rate / Fraction(options.max_seconds))
    return Cuts(num_clips, timing.num_frames, False) if num_clips > 1 else None


def encode(
    source: bytes | ImageFolder,
    info: VideoInfo,
    options: EncodeOptions,
    timing: Timing,
    target: BinaryIO,
    encoder: dict[str, Any],
    muxing: dict[str, Any],
    cuts: Cuts | None = None,
) -> tuple[FfmpegLog, VideoInfo]:
    """Run FFmpeg with an encoder's settings into an open file and check what it says; raises RejectedError. What it is the
    first time may be a frame's before the wanted part: that of the part comes back."""
    log = _run(source, info, options, timing, target, encoder, muxing, cuts)
    if log.reconfigured and isinstance(source, bytes) and (again := settled(source, info)) != info:
        info = again
        target.seek(0)
        target.truncate()
        log = _run(source, info, options, timing, target, encoder, muxing, cuts)
    log.check(info.num_packets, joined=info.container == SPLICED)
    # how many of a window's frames came nobody knows: the others that it was decoded from count, too, and gaps are filled
    gaps = bool(info.window) or log.frames_decoded < info.num_packets
    suspect = bool(log.marked_packets) or (gaps and info.codec in (*SILENT, "hevc"))
    suspect = suspect or (bool(log.first_error) and (gaps or not info.constant_rate))
    if suspect and isinstance(source, bytes) and (lost := lost_of_source(source, info)):
        raise RejectedError(Reason.DAMAGED, lost)
    if log.frames_encoded < options.min_frames:
        detail = f"{log.frames_encoded} frames decode; --min-frames is {options.min_frames}"
        raise RejectedError(Reason.TOO_SHORT, detail)
    expected = info.num_packets if info.window else log.frames_decoded
    if not timing.resampled and abs(log.frames_encoded - expected) > (0 if info.exact or not info.window else OFF):
        detail = f"{expected} frames decoded, {log.frames_encoded} encoded{log.said}"
        raise RejectedError(Reason.ENCODE_FAILED, detail)
    return log, info


def _run(
    source: bytes | ImageFolder,
    info: VideoInfo,
    options: EncodeOptions,
    timing: Timing,
    target: BinaryIO,
    encoder: dict[str, Any],
    muxing: dict[str, Any],
    cuts: Cuts | None,
) -> FfmpegLog:
    """One run of FFmpeg; raises RejectedError for what cannot be read."""
    with source.opened() if isinstance(source, ImageFolder) else os.fdopen(open_file(source), "rb", buffering=0) as file:
        reading = source.reading if isinstance(source, ImageFolder) else _reading(info, timing)
        video = ffmpeg.input("fd:", fd=file.fileno(), protocol_whitelist="fd", threads=1, **reading)[str(info.stream)]
        video = _filters(video, info, options, timing)
        encoder = encoder | {"r": str(timing.rate), "fps_mode": "cfr", "flags:v": "+bitexact"}
        if timing.limit:
            encoder["frames:v"] = timing.limit
        if cuts:
            encoder["force_key_frames"] = cuts.expression()
        container = {"f": "mp4", "map_metadata": -1, "map_chapters": -1, **muxing}
        output = ffmpeg.output(video, f"/proc/self/fd/{target.fileno()}", an=None, **encoder, **container)
        command = ffmpeg.compile(
            output.global_args(*LOGGING, "-nostdin", "-copyts", "-filter_complex_threads", "1"),
            cmd=ffmpeg_path(),
            overwrite_output=True,
        )
        log = run_ffmpeg(command, (file.fileno(), target.fileno()))
        if log.reading_failed and not isinstance(source, ImageFolder):
            check_readable(file)
    if isinstance(source, ImageFolder):
        source.check(log)
    return log


def check_readable(file: BinaryIO) -> None:
    """Read a file to its end: FFmpeg takes what comes before an I/O error for all of it. Raises RejectedError(unreadable)."""
    try:
        file.seek(0)
        while file.read(1 << 20):
            pass
    except OSError as error:
        raise RejectedError(Reason.UNREADABLE, error.strerror or str(error)) from None


def _reading(info: VideoInfo, timing: Timing) -> dict[str, Any]:
    if info.window:
        back = {"ss": f"{info.window.seek:.6f}", "seek_timestamp": 1, "noaccurate_seek": None}
        return back if math.isfinite(info.window.seek) else {}
    return {"r": str(info.rate)} if info.first is None or not timing.resampled else {}


def _filters(video: Any, info: VideoInfo, options: EncodeOptions, timing: Timing) -> Any:
    scaled, cropped = geometry(info, options)
    if info.window:
        end = info.window.end if timing.limit is None else info.window.edges[1] + 2 / float(timing.rate)
        edges = {"start": info.window.begin, "end": end}
        video = video.filter("trim", **{name: f"{time:.6f}" for name, time in edges.items() if math.isfinite(time)})
    if info.codec in ("png", "apng") or info.pixel_format.startswith("mono"):
        video = video.filter("format", NO_BITS)
    if info.planar_yuv:
        video = video.filter("bwdif", mode="send_frame", deint="interlaced")
    if timing.resampled:
        # not STARTPTS, which begins anew where the picture's size changes
        zero = info.window.edges[0] if timing.limit and info.window else info.first
        video = video.filter("setpts", f"PTS-({zero or 0:.6f})/TB")
        video = video.filter("fps", str(timing.rate), start_time=0, round="near")
    elif info.window:
        place = f"round((T-({info.first:.9f}))*{info.rate})" if info.exact else "N"
        video = video.filter("setpts", f"{place}/({info.rate}*TB)")
    return (
        video.filter("scale", *scaled, flags=SCALER, in_color_matrix=info.matrix, out_color_matrix="bt601", out_range="limited")
        .filter("format", "yuv420p")
        .filter("crop", *cropped)
        .filter("setsar", 1)
        .filter("setparams", colorspace="smpte170m", color_primaries="smpte170m", color_trc="smpte170m", range="tv")
    )


def cut(file: BinaryIO, places: Sequence[int], info: VideoInfo) -> Iterator[Piece]:
    """Copy the packets of an MP4 file, each a frame, into MP4 files that begin at `places`: key frames that nothing shown later
    comes before."""
    with av.open(f"/proc/self/fd/{file.fileno()}", metadata_errors="replace") as whole:
        stream = whole.streams.video[0]
        packets = (packet for packet in packets_of(whole, stream) if packet.size)
        for number, (first, end) in enumerate(pairwise(places)):
            with os.fdopen(os.memfd_create("clip"), "r+b") as target:
                with av.open(f"/proc/self/fd/{target.fileno()}", "w", format="mp4", options=MUXING) as container:
                    copied = container.add_stream_from_template(stream)
                    copied.time_base = stream.time_base
                    zero: int | None = None
                    for packet in islice(packets, end - first):
                        assert packet.pts is not None and packet.dts is not None
                        if zero is None:
                            assert packet.is_keyframe, f"the frame to cut at, {first}, is no key frame"
                            zero = packet.pts
                        assert packet.pts >= zero, "presets have closed groups of pictures"
                        packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
                        packet.stream = copied
                        container.mux(packet)
                target.seek(0)
                yield Piece(target.read(), first, end - first, number, len(places) - 1, info)
