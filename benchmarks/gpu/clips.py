"""Clips for the GPU suite, encoded with PyAV as the builder would, of moving textures, which decode like grainy footage; and a
dataset of them."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from av.video.reformatter import ColorRange, Colorspace

from benchmarks.parts.clip_replay import clip_of
from dataset_builders.media.presets import ENCODERS
from dataset_builders.tars.writer import tar_members
from pipeline.decoding.decode import ClipRequest
from pipeline.machine import usable_cores
from pipeline.storage.manifest import Clip, content_hash
from pipeline.storage.manifest_writer import REJECT_SCHEMA, SCHEMA, write_manifest

FPS = 30
# no preset of the builder; of the same kind: closed GOPs, quick to encode
HEVC = {"c:v": "libx265", "preset": "veryfast", "crf": 26, "x265-params": "log-level=none:open-gop=0:bframes=0"}
SPACES = {"bt601": (Colorspace.ITU601, 5), "bt709": (Colorspace.ITU709, 1)}  # swscale's number, and H.273's


@dataclass(frozen=True, slots=True)
class ClipSet:
    """Clips that differ in their content only."""

    codec: str  # a preset of the builder, or hevc
    width: int
    height: int
    gop: int
    clips: int
    frames: int
    matrix: str = "bt601"
    range: str = "limited"

    @property
    def name(self) -> str:
        """`vp9-352x256-gop32-bt601-limited-40`, a folder's."""
        return f"{self.codec}-{self.width}x{self.height}-gop{self.gop}-{self.matrix}-{self.range}-{self.frames}"


@cache
def clips_of(wanted: ClipSet, cache: Path) -> list[tuple[Clip, bytes]]:
    """Encoded into a folder of `cache`, once, on all cores."""
    folder = cache / "clips" / wanted.name
    folder.mkdir(parents=True, exist_ok=True)

    def make(number: int) -> tuple[Clip, bytes]:
        file = folder / f"{number:03d}.mp4"
        if not file.exists():
            temporary = file.with_suffix(".tmp")
            temporary.write_bytes(encode(texture(number, wanted), wanted))
            temporary.rename(file)
        data = file.read_bytes()
        return clip_of(data, key=file.stem), data

    with ThreadPoolExecutor(usable_cores()) as pool:  # PyAV lets go of the GIL
        return list(pool.map(make, range(wanted.clips)))


def encode(frames: Iterator[np.ndarray], wanted: ClipSet) -> bytes:
    """RGB frames -> MP4, with the builder's options."""
    options: dict[str, Any] = {**HEVC, "g": wanted.gop} if wanted.codec == "hevc" else ENCODERS[wanted.codec](wanted.gop)
    encoder = options.pop("c:v")
    options.pop("threads", None)
    space, number = SPACES[wanted.matrix]
    full = ColorRange.JPEG if wanted.range == "full" else ColorRange.MPEG
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream(encoder, rate=FPS, options={name: str(value) for name, value in options.items()})
        stream.width, stream.height = wanted.width, wanted.height
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.time_base = Fraction(1, FPS)
        stream.codec_context.colorspace, stream.codec_context.color_range = number, full
        for index, pixels in enumerate(frames):
            if index == wanted.frames:
                break
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=stream.pix_fmt, dst_colorspace=space, dst_color_range=full, src_color_range=ColorRange.JPEG
            )
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def texture(seed: int, wanted: ClipSet) -> Iterator[np.ndarray]:
    """Two layers of coloured clouds that drift across each other, with grain: uint8 (height, width, 3) without end."""
    random = np.random.default_rng(seed)
    height, width = wanted.height, wanted.width
    layers = [_clouds(random, height + 256, width + 256, size) for size in (48, 9)]
    grain = [random.normal(0, 3, (height, width, 1)).astype(np.float32) for _ in range(4)]
    phase = random.uniform(0, 2 * np.pi, 4)
    number = 0
    while True:
        frame = np.zeros((height, width, 3), np.float32)
        for layer, (p, q) in zip(layers, phase.reshape(2, 2), strict=True):
            y, x = (int(128 + 120 * np.sin(0.03 * number * turn + angle)) for angle, turn in ((p, 1.0), (q, 0.7)))
            frame += layer[y : y + height, x : x + width]
        yield np.clip(frame + grain[number % 4], 0, 255).astype(np.uint8)
        number += 1


def _clouds(random: np.random.Generator, height: int, width: int, size: int) -> np.ndarray:
    """float32 (height, width, 3) in 0..128: values a `size` of pixels apart, bilinear between them."""
    coarse = random.uniform(0, 128, (height // size + 2, width // size + 2, 3)).astype(np.float32)
    y, x = np.arange(height) / size, np.arange(width) / size
    top, left = y.astype(int), x.astype(int)
    v, u = (y - top).astype(np.float32)[:, None, None], (x - left).astype(np.float32)[None, :, None]
    upper = coarse[top][:, left] * (1 - u) + coarse[top][:, left + 1] * u
    lower = coarse[top + 1][:, left] * (1 - u) + coarse[top + 1][:, left + 1] * u
    return upper * (1 - v) + lower * v


def turned(clip: Clip, rotation: int) -> Clip:
    """The same stream, to be shown turned counter-clockwise by so many degrees."""
    width, height = (clip.height, clip.width) if rotation % 180 else (clip.width, clip.height)
    return replace(clip, rotation=rotation, width=width, height=height)


def requests(clips: Sequence[tuple[Clip, bytes]], number: int, *, views: int, frames: int, stride: int) -> list[ClipRequest]:
    """`number` samples of the clips in turn: frames from random starts, and a crop for each of the views."""
    random = np.random.default_rng(0)
    found = []
    for index in range(number):
        clip, data = clips[index % len(clips)]
        span = min(stride * (frames - 1), clip.num_frames - 1)
        first = int(random.integers(clip.num_frames - span))
        wanted = np.minimum(first + stride * np.arange(frames), clip.num_frames - 1)
        short = min(clip.width, clip.height)
        sides = random.integers(short * 2 // 3, short + 1, (views, 2))  # about those of MultiScaleCrop
        corners = [[random.integers(clip.width - w + 1), random.integers(clip.height - h + 1)] for w, h in sides]
        found.append(ClipRequest(clip, data, wanted, np.concatenate([corners, sides], axis=1)))
    return found


def write_dataset(folder: Path, clips: Sequence[tuple[Clip, bytes]], rows: int) -> Path:
    """A dataset of `rows` clips, these ones again and again: few bytes, but an epoch as long as is wanted."""
    (folder / "shards").mkdir(parents=True)
    shard = folder / "shards" / "suite-000000.tar"
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (_, data) in enumerate(clips):
            member = tarfile.TarInfo(f"clip-{number:04d}.mp4")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    offsets, table = [offset for _, offset, _ in tar_members(shard)], []
    for number in range(rows):
        (clip, data), offset = clips[number % len(clips)], offsets[number % len(clips)]
        place = {"shard": "shards/suite-000000.tar", "offset": offset, "size": len(data), "content_hash": content_hash(data)}
        origin = {"source": "suite", "split": "train", "root": "suite", "path": f"{clip.key}.mp4".encode()}
        timing = {"fps": float(FPS), "duration": clip.num_frames / FPS, "sampling": "stride:4"}
        table.append({**asdict(clip), **place, **origin, **timing, "key": f"{number:06d}-{clip.key}"})
    write_manifest(folder, [(pa.Table.from_pylist(table, schema=SCHEMA), REJECT_SCHEMA.empty_table())])
    return folder
