"""Presets: what decides a clip's bytes, and FFmpeg's encoder settings. Every one but `copy` makes an MP4 file.

24 real clips (actions, gestures, surveillance; 108 s, 300 pixels wide and more), short side 256, benchmarks/presets.py; rates
are per CPU-second of one core, a sample is 16 frames at stride 4 from a random start, as RGB, and for it so many frames are
decoded:

| preset       | kB/s | encoding | decoding    | for one | all frames | PSNR    | SSIM  |                                      |
|--------------|------|----------|-------------|---------|------------|---------|-------|--------------------------------------|
| `h264-fast`  |   27 | 234 fr/s |  84 samples | 31.5    | 5500 fr/s  | 44.4 dB | 0.981 | for libav and NVDEC                  |
| `h264-plain` |   29 | 226 fr/s |  60 samples | 72.3    | 5900 fr/s  | 44.3 dB | 0.980 | the same without B-frames            |
| `vp9`        |   21 | 249 fr/s |  31 samples | 72.3    | 2700 fr/s  | 44.7 dB | 0.981 | what DALI decodes on CPU and GPU     |
| `mjpeg`      |  145 | 576 fr/s | 119 samples | 16.0    | 3800 fr/s  | 44.1 dB | 0.976 | for DALI on a CPU; doubtful on a GPU |
| `copy`       |   70 | -        |  45 samples | 83.6    | 5500 fr/s  | -       | -     | as it is: long GOPs, large frames    |

At stride 2 they are 24.4, 42.3, 42.3, 16.0 and 64.5.

The container is MP4 for all: DALI 2.4 (on a CPU) and PyAV read VP9 and MJPEG in it, and its time stamps are exact, where
Matroska's are in milliseconds and leave the manifest without `pts_step`. DALI shows both as PyAV does, but for the level by
which it is brighter everywhere; it honours that the JPEGs are in limited range.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# x264's output depends on the SIMD level of the CPU, too
ASM = "asm=avx2:" if platform.machine() == "x86_64" else ""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What decides a clip's bytes."""

    preset: str = "h264-fast"
    short_side: int = 256
    """pixels; smaller sources keep their size"""
    gop: int = 32
    """frames from one key frame to the next, at most"""
    min_frames: int = 16
    max_seconds: float = 60.0
    """a longer part is cut into equal clips"""
    canvas: str = ""
    """coded sizes to snap clips to, such as "352x256,256x352"; empty: every clip has a size of its own"""


def h264_fast(gop: int) -> dict[str, Any]:
    """x264, crf 23, without what costs decoding time (CABAC, deblocking, weighted prediction), and with what saves it: of four
    frames three are B-frames that nothing refers to, which a decoder need not be given where nobody wants them. GOPs are
    closed and at most `gop` long (x264 begins one early at a scene cut).

    Twelve real clips of 100 frames, beside h264-plain, with the frames decoded for a sample at stride 4: this one 0.93 of the
    bytes, -0.02 dB, 23.5 instead of 59.3 frames; two B-frames 0.94, +0.04 dB, 31.4; seven 0.95, -0.26 dB, 20.5; as many as x264
    finds good (b-adapt=1) 0.95, +0.09 dB, 33.3. Three reference frames change no byte in a thousand and take 1.13 times as
    long. GOPs of 48 are 0.88, -0.08 dB, 23.6 frames; of 33 and 49, into which four go with one left, larger than of 32 and 48.
    """
    return _x264(gop, 3, ":ref=1:b-adapt=0:b-pyramid=none")


def h264_plain(gop: int) -> dict[str, Any]:
    """The same without B-frames: what `h264-fast` was before 29 November 2026."""
    return _x264(gop, 0)


def _x264(gop: int, b_frames: int, more: str = "") -> dict[str, Any]:
    same = {"threads": 1, "x264-params": f"{ASM}open-gop=0{more}"}  # x264's output depends on the number of threads
    return {"c:v": "libx264", "preset": "medium", "crf": 23, "tune": "fastdecode", "bf": b_frames, "g": gop, **same}


def vp9(gop: int) -> dict[str, Any]:
    """libvpx at constant quality. Without alternate reference frames every packet is one frame that is shown.

    On four real clips, crf 33: realtime 5 encodes 123 frames/CPU-s (674 kB, 42.4 dB), good 4 49 (608 kB, 42.2 dB), good 2
    30 (596 kB, 42.5 dB); h264-plain 117 (695 kB, 41.8 dB). Lag changes nothing where there are no alternate reference frames.
    """
    off = dict.fromkeys(("auto-alt-ref", "lag-in-frames", "row-mt", "tile-columns", "frame-parallel"), 0)
    return {"c:v": "libvpx-vp9", "deadline": "realtime", "cpu-used": 5, "crf": 33, "b:v": 0, "g": gop, **off, "threads": 1}


def mjpeg(gop: int) -> dict[str, Any]:
    """Every frame a JPEG, whatever the GOP. Limited range is not in JFIF: FFmpeg writes it where "unofficial" formats are
    allowed and marks it in a comment, "CS=ITU601", which libavcodec's decoder (in PyAV and DALI, too) reads.

    Quality 5 is 43.0 dB on the four clips of `vp9`, with 3.8 times the bytes of h264-plain; 4 is 44.1 dB and 4.3 times.
    """
    # the integer transform is the same on every CPU
    return {"c:v": "mjpeg", "q:v": 5, "huffman": "optimal", "dct": "int", "strict": "unofficial", "threads": 1}


ENCODERS: dict[str, Callable[[int], dict[str, Any]]] = {
    "h264-fast": h264_fast,
    "h264-plain": h264_plain,
    "vp9": vp9,
    "mjpeg": mjpeg,
}
PRESETS = (*ENCODERS, "copy")


def arguments(preset: str, gop: int) -> str:
    """FFmpeg's arguments for the encoder, as a build keeps them: they are a part of what it is, its preset is a name for them.
    Empty for `copy`. Without the SIMD level, which is the machine's."""
    encoder = ENCODERS[preset](gop) if preset in ENCODERS else {}
    return " ".join(f"-{name} {value}" for name, value in encoder.items()).replace(ASM, "")


def called_now(options: Mapping[str, Any]) -> Any:
    """Today's name of the preset in a build's options, as options.json and dataset.json have them. Code before `encoder` was
    among them called h264-fast what is h264-plain."""
    preset = options.get("preset")
    return "h264-plain" if preset == "h264-fast" and "encoder" not in options else preset


def begun_with(options: Mapping[str, Any]) -> str:
    """The preset that has the arguments which a build was begun with, whatever it was called then. Raises ValueError if none
    has."""
    preset = called_now(options)
    wanted = options.get("encoder", arguments(preset, options["gop"]))
    for name in (preset, *PRESETS):
        if name in PRESETS and arguments(name, options["gop"]) == wanted:
            return name
    raise ValueError(
        f"the build was begun with preset {preset}, which was {wanted} then, and no preset of this tubecell is: go on with the "
        "tubecell that began it, or take another --out"
    )
