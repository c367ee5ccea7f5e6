"""Part 2 of the GPU suite: what DALI delivers against what libav delivers, and against arithmetic.

The bounds are those of test_decoder_parity.py: on filmed clips a mean absolute difference of 1.2 levels, 99 %
within 4, no channel off by more than 0.5 in the mean, and every frame the one that was asked for.
"""

import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import torch

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.clips import ClipSet, clips_of, encode, requests, turned
from benchmarks.gpu.decoding_rate import decode, decoder_of, side_of
from benchmarks.gpu.plan import PARITY, TAGS, parity_name
from benchmarks.parts.clip_replay import clip_of
from pipeline.decoding.dali import LUMA, DaliDecoder, colour_transform
from pipeline.decoding.decode import ClipRequest, decode_frames, decode_libav
from pipeline.decoding.trim import can_decode, trim
from pipeline.workers import device_decoding

PATCH = 32  # pixels, of one colour


def decoders(bench: Bench) -> None:
    """Every codec, colour tag, rotation and size: frames, and pixels after the crop."""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    for case in PARITY:
        codec, matrix, span, rotation, (width, height) = case
        with bench.attempt(parity_name(case)):
            number, frames = bench.size((4, 96), (1, 12))
            wanted = ClipSet(codec, width, height, 32, number, frames, matrix, span)
            clips = [(turned(clip, rotation), data) for clip, data in clips_of(wanted, bench.kit, bench.work)]
            if (reason := can_decode(clips[0][0], bench.device.type)) is not None:
                raise AbsentError(reason)
            compare(bench, parity_name(case), decoder, clips)


def compare(bench: Bench, name: str, decoder: DaliDecoder, clips: list[Any]) -> None:
    """Two crops of every clip with both decoders."""
    frames, stride = bench.size((12, 4), (4, 2))
    samples = requests(clips, len(clips), views=2, frames=frames, stride=stride)
    ours = decode(decoder, [trim(sample, bench.device.type) for sample in samples]).cpu().numpy()
    theirs = np.empty(ours.shape, np.uint8)
    for sample, views in zip(samples, theirs, strict=True):
        decode_libav(sample, views)
    difference = ours.astype(np.int16) - theirs
    away = np.abs(difference)
    bias = difference.mean(axis=tuple(range(difference.ndim - 1)))
    detail: dict[str, Any] = {
        "p99": float(np.percentile(away, 99)),
        "bias": [round(float(value), 2) for value in bias],
        "right_frames": right_frames(ours[:, 0], theirs[:, 0]),
        "within_bounds": bool(away.mean() <= 1.2 and np.percentile(away, 99) <= 4 and np.abs(bias).max() <= 0.5),
    }
    bench.figure(name, float(away.mean()), "levels", **detail)


def right_frames(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of the frames (B, T, ...) that are more like libav's frame of the same place than like any other of the clip."""
    right = [
        np.abs(other - frame).mean(axis=(1, 2, 3)).argmin() == place
        for one, other in zip(ours.astype(np.int16), theirs.astype(np.int16), strict=True)
        for place, frame in enumerate(one)
    ]
    return float(np.mean(right))


def matrices(bench: Bench) -> None:
    """The colour matrix that the decoder really uses, whatever the tag says: solved from patches of known YCbCr values, which
    libav tells, and DALI's RGB before our correction. The figure is how far the nearest matrix is off, in levels."""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    for tag in TAGS:
        codec, matrix, span = tag.rsplit("-", 2)
        with bench.attempt(f"matrix/{tag}"):
            data = encode(_patches(), ClipSet(codec, 256, 160, 8, 1, 2, matrix, span))
            clip = clip_of(data, key=tag)
            if (reason := can_decode(clip, bench.device.type)) is not None:
                raise AbsentError(reason)
            solve(bench, f"matrix/{tag}", decoder, clip, data)


def solve(bench: Bench, name: str, decoder: DaliDecoder, clip: Any, data: bytes) -> None:
    """Compare the RGB of every patch with what each matrix makes of its YCbCr."""
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0))  # its own planes, before any conversion
        planes = [np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in frame.planes[:3]]
    y, x = np.mgrid[PATCH // 2 : clip.height : PATCH, PATCH // 2 : clip.width : PATCH].reshape(2, -1)
    ycc = np.stack([planes[0][y, x], planes[1][y // 2, x // 2], planes[2][y // 2, x // 2]], axis=1).astype(float)
    request = ClipRequest(clip, data, np.array([0, 1]), np.array([[0, 0, clip.width, clip.height]]))
    rgb = raw_frames(decoder, trim(request, bench.device.type))[0][y, x].astype(float)
    inside = ((rgb > 2) & (rgb < 253)).all(axis=1)  # others were clipped
    errors = {}
    for matrix in LUMA:
        for span in ("limited", "full"):
            expected = to_rgb(ycc, matrix, span == "full")
            errors[f"{matrix} {span}"] = float(np.abs(expected - rgb)[inside].mean())
    nearest = min(errors, key=lambda found: errors[found])
    bench.figure(name, errors[nearest], "levels", uses=nearest, patches=int(inside.sum()), all=errors)
    if nearest != f"bt601 {clip.range}":
        why = f"the RGB of {clip.key} is {errors[nearest]:.2f} levels from {nearest}"
        bench.recommend("pipeline/decoding/dali.py colour_transform, the matrix it undoes", nearest, f"bt601 {clip.range}", why)


def raw_frames(decoder: DaliDecoder, clip: Any) -> np.ndarray:
    """DALI's RGB as it comes: uint8 (n, height, width, 3)."""
    dali = decoder._dali
    with torch.cuda.stream(decoder.stream), decoder._context:
        frames = dali.decoders.video(
            dali.batch([np.frombuffer(clip.data, np.uint8)]),
            device="gpu" if decoder.stream is not None else "cpu",
            frames=dali.batch([clip.frames]),
            pad_mode="none",
        )
        return frames.cpu().evaluate().torch()[0].numpy()


def to_rgb(ycc: np.ndarray, matrix: str, full: bool) -> np.ndarray:
    """8-bit YCbCr (n, 3) -> RGB (n, 3) in 0..255, by H.273."""
    red, blue = LUMA[matrix]
    luma, chroma = (ycc[:, 0], (ycc[:, 1:] - 128)) if full else ((ycc[:, 0] - 16) * 255 / 219, (ycc[:, 1:] - 128) * 255 / 224)
    r, b = luma + 2 * (1 - red) * chroma[:, 1], luma + 2 * (1 - blue) * chroma[:, 0]
    return np.stack([r, (luma - red * r - blue * b) / (1 - red - blue), b], axis=1)


def _patches() -> Iterator[np.ndarray]:
    """uint8 (160, 256, 3): 40 patches of muted colours, none of which clips with another matrix."""
    colours = np.random.default_rng(0).integers(70, 186, (5, 8, 3)).astype(np.uint8)
    while True:
        yield colours.repeat(PATCH, axis=0).repeat(PATCH, axis=1)


def resizing(bench: Bench) -> None:
    """Crop and resize alone: the same RGB frames through DALI on the device and torch on the CPU, and what it takes there."""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    side, count = side_of(bench), bench.size(16, 4)
    wanted = ClipSet("h264-fast", 352, 256, 32, *bench.size((1, 96), (1, 12)))
    ((clip, data), *_) = clips_of(wanted, bench.kit, bench.work)
    frames = decode_frames(clip, data, np.arange(count) * bench.size(4, 2))
    ((_, _, width, height), *_) = (requests([(clip, data)], 1, views=1)[0].boxes).tolist()
    x, y = (clip.width - width) // 2, (clip.height - height) // 2
    crop = torch.from_numpy(frames).permute(0, 3, 1, 2)[:, :, y : y + height, x : x + width]
    cpu = torch.nn.functional.interpolate(crop, (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
    dali = decoder._dali
    with torch.cuda.stream(decoder.stream), decoder._context:
        on_device = dali.as_batch([dali.as_tensor(torch.from_numpy(frames).to(bench.device), layout="FHWC")])
        low, high = (np.array(ends, np.float32) for ends in ((y, x), (y + height, x + width)))
        out = dali.resize(
            on_device,
            size=(side, side),
            roi_start=dali.batch([low]),
            roi_end=dali.batch([high]),
            interp_type=decoder._linear,
            antialias=True,
            dtype=dali.uint8,
        )
        ours = out.cpu().evaluate().torch()[0].numpy()
    difference = ours.astype(np.int16) - cpu
    away = np.abs(difference)
    detail = {"p99": float(np.percentile(away, 99)), "max": int(away.max()), "bias": float(difference.mean())}
    bench.figure("resize", float(away.mean()), "levels", crop=f"{width}x{height}", to=f"{side}x{side}", **detail)


def corrections(bench: Bench) -> None:
    """Whether `colour_transform` suits this device: what libav makes of filmed pixels less what DALI makes of them."""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    wanted = ClipSet(bench.size("h264-fast", "vp9"), 352, 256, 32, *bench.size((4, 96), (1, 12)))
    means = []
    for clip, data in clips_of(wanted, bench.kit, bench.work):
        frames = np.arange(0, clip.num_frames, 3)
        raw = raw_frames(decoder, trim(ClipRequest(clip, data, frames, np.array([[0, 0, 16, 16]])), bench.device.type))
        means.append((decode_frames(clip, data, frames).astype(np.int16) - raw).mean(axis=(0, 1, 2)))
    ours, found = colour_transform("bt601", False)[1], np.mean(means, axis=0)
    rounded, now = ([round(float(value), 2) for value in values] for values in (found, ours))
    bench.figure("truncation", float(np.abs(found - ours).max()), "levels", measured=rounded, ours=now)
    if np.abs(found - ours).max() > 0.3:
        why = "libav less DALI, means of red, green, blue"
        bench.recommend("pipeline/decoding/dali.py TRUNCATION['limited']", rounded, now, why)
