"""What DALI delivers, against arithmetic and against libav: the matrix it decodes with, and pixels after the crop.

The bounds are those of test_decoder_parity.py: on filmed clips a mean absolute difference of 1.2 levels, 99 % within 4, no
channel off by more than 0.5 in the mean, and every frame the one that was asked for.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.clips import ClipSet, clips_of, encode, requests, turned
from benchmarks.gpu.nvdec import decode, decoder_of
from benchmarks.parts.clip_replay import clip_of
from pipeline.cuda_context import on_stream
from pipeline.decoding.dali import LUMA, DaliDecoder, colour_transform
from pipeline.decoding.decode import ClipRequest, decode_frames, decode_libav
from pipeline.decoding.trim import can_decode, trim
from pipeline.storage.manifest import Clip
from pipeline.workers.device_decoding import DECODERS

PATCH = 32  # pixels, of one colour
# (codec, matrix, range, rotation, (width, height)) of the parity between the decoders; VP9 is a CPU's, too
PARITY = (
    ("h264-fast", "bt601", "limited", 0, (352, 256)),
    ("h264-fast", "bt709", "full", 90, (340, 254)),
    ("h264-fast", "bt709", "limited", 180, (340, 254)),
    ("hevc", "bt709", "limited", 270, (352, 256)),
    ("vp9", "bt709", "full", 270, (340, 254)),
)


def matrices(bench: Bench) -> None:
    """The colour matrix that the decoder really uses, whatever the tag says, and how far the nearest one is off; and whether
    `colour_transform` makes libav's colours of it."""
    decoder, codec = decoder_of(bench, DECODERS), bench.size("h264-fast", "vp9")
    for matrix in ("bt601", "bt709"):
        for span in ("limited", "full"):
            with bench.attempt(f"matrix/{matrix}-{span}"):
                nearest, errors = matrix_used(decoder, *patches(codec, matrix, span))
                bench.figure(f"matrix/{matrix}-{span}", errors[nearest], "levels", uses=nearest, all=errors)
                if nearest != f"bt601 {span}":
                    bench.remark(f"colour_transform undoes bt601 {span} of clips tagged {matrix}: it should undo {nearest}")
    wanted = ClipSet(codec, 352, 256, 32, *bench.size((4, 96), (1, 12)))
    found, ours = truncation(decoder, clips_of(wanted, bench.work)), colour_transform("bt601", False)[1]
    rounded, now = ([round(float(value), 2) for value in values] for values in (found, ours))
    bench.figure("truncation", float(np.abs(found - ours).max()), "levels", measured=rounded, ours=now)


def patches(codec: str, matrix: str, span: str) -> tuple[Clip, bytes]:
    """Two frames of 40 patches of muted colours, none of which clips with another matrix."""
    colours = np.random.default_rng(0).integers(70, 186, (5, 8, 3)).astype(np.uint8)

    def frames() -> Iterator[np.ndarray]:
        while True:
            yield colours.repeat(PATCH, axis=0).repeat(PATCH, axis=1)

    data = encode(frames(), ClipSet(codec, 256, 160, 8, 1, 2, matrix, span))
    return clip_of(data, key=f"{codec}-{matrix}-{span}"), data


def matrix_used(decoder: DaliDecoder, clip: Clip, data: bytes) -> tuple[str, dict[str, float]]:
    """Solved from `patches` of known YCbCr values, which libav tells, and DALI's RGB before our correction -> (the matrix and
    range that fit best, mean error in levels of each)."""
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0))  # its own planes, before any conversion
        planes = [np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in frame.planes[:3]]
    y, x = np.mgrid[PATCH // 2 : clip.height : PATCH, PATCH // 2 : clip.width : PATCH].reshape(2, -1)
    ycc = np.stack([planes[0][y, x], planes[1][y // 2, x // 2], planes[2][y // 2, x // 2]], axis=1).astype(float)
    rgb = raw_frames(decoder, clip, data, np.array([0, 1]))[0][y, x].astype(float)
    inside = ((rgb > 2) & (rgb < 253)).all(axis=1)  # others were clipped
    errors = {
        f"{matrix} {span}": float(np.abs(to_rgb(ycc, matrix, span == "full") - rgb)[inside].mean())
        for matrix in LUMA
        for span in ("limited", "full")
    }
    return min(errors, key=lambda found: errors[found]), errors


def raw_frames(decoder: DaliDecoder, clip: Clip, data: bytes, frames: np.ndarray) -> np.ndarray:
    """DALI's RGB as it comes: uint8 (n, height, width, 3). Raises AbsentError if it does not decode such clips here."""
    if (reason := can_decode(clip, decoder.device.type)) is not None:
        raise AbsentError(reason)
    trimmed = trim(ClipRequest(clip, data, frames, np.array([[0, 0, 16, 16]])), decoder.device.type)
    dali = decoder._dali
    with on_stream(decoder.stream), decoder._context, dali.EvalMode.sync_cpu:  # as `DaliDecoder` itself
        out = dali.decoders.video(
            dali.batch([np.frombuffer(trimmed.data, np.uint8)]),
            device="gpu" if decoder.stream is not None else "cpu",
            frames=dali.batch([trimmed.frames]),
            pad_mode="none",
            affine=False,
        )
        return out.cpu().evaluate().torch()[0].numpy()


def to_rgb(ycc: np.ndarray, matrix: str, full: bool) -> np.ndarray:
    """8-bit YCbCr (n, 3) -> RGB (n, 3) in 0..255, by H.273."""
    red, blue = LUMA[matrix]
    luma, chroma = (ycc[:, 0], (ycc[:, 1:] - 128)) if full else ((ycc[:, 0] - 16) * 255 / 219, (ycc[:, 1:] - 128) * 255 / 224)
    r, b = luma + 2 * (1 - red) * chroma[:, 1], luma + 2 * (1 - blue) * chroma[:, 0]
    return np.stack([r, (luma - red * r - blue * b) / (1 - red - blue), b], axis=1)


def truncation(decoder: DaliDecoder, clips: Sequence[tuple[Clip, bytes]]) -> np.ndarray:
    """What libav makes of the pixels of BT.601 clips less what DALI makes of them: means of red, green, blue."""
    means = []
    for clip, data in clips:
        frames = np.arange(0, clip.num_frames, 3)
        raw = raw_frames(decoder, clip, data, frames)
        means.append((decode_frames(clip, data, frames).astype(np.int16) - raw).mean(axis=(0, 1, 2)))
    return np.mean(means, axis=0)


def decoders(bench: Bench) -> None:
    """Codecs, colour tags, rotations and sizes: frames, and pixels after the crop."""
    decoder = decoder_of(bench, DECODERS)
    for codec, matrix, span, rotation, (width, height) in PARITY:
        name = f"{codec}-{matrix}-{span}-{rotation}-{width}x{height}"
        with bench.attempt(name):
            number, length = bench.size((4, 96), (1, 12))
            wanted = ClipSet(codec, width, height, 32, number, length, matrix, span)
            clips = [(turned(clip, rotation), data) for clip, data in clips_of(wanted, bench.work)]
            away = difference(decoder, clips, *bench.size((12, 4), (4, 2)))
            within = away["mean"] <= 1.2 and away["p99"] <= 4 and max(map(abs, away["bias"])) <= 0.5
            bench.figure(name, away.pop("mean"), "levels", **away, within_bounds=within)


def difference(decoder: DaliDecoder, clips: Sequence[tuple[Clip, bytes]], frames: int, stride: int) -> dict[str, Any]:
    """Two crops of every clip with both decoders -> mean, p99 and bias (of red, green, blue) in levels, and the share of frames
    that are more like libav's of the same place than like any other. Raises AbsentError if DALI does not decode such clips."""
    kind = decoder.device.type
    if (reason := can_decode(clips[0][0], kind)) is not None:
        raise AbsentError(reason)
    samples = requests(clips, len(clips), views=2, frames=frames, stride=stride)
    ours = decode(decoder, [trim(sample, kind) for sample in samples]).cpu().numpy().astype(np.int16)
    theirs = np.empty(ours.shape, np.uint8)
    for sample, views in zip(samples, theirs, strict=True):
        decode_libav(sample, views)
    away = np.abs(ours - theirs)
    right = [
        np.abs(libav - frame).mean(axis=(1, 2, 3)).argmin() == place
        for dali, libav in zip(ours[:, 0], theirs[:, 0].astype(np.int16), strict=True)
        for place, frame in enumerate(dali)
    ]
    return {
        "mean": float(away.mean()),
        "p99": float(np.percentile(away, 99)),
        "bias": [round(float(value), 2) for value in (ours - theirs).mean(axis=tuple(range(ours.ndim - 1)))],
        "right_frames": float(np.mean(right)),
    }
