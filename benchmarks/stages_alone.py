"""Each stage of the CPU path alone, in 1, 2, 4 ... threads: what it could do if nothing else were to be done, and whether
more threads help it. Stages that do not grow with the threads wait for each other: for a lock, the storage or the memory."""

import os
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, VideoReformatter
from tqdm import tqdm

from pipeline.decode import MATRICES, RANGES, SWSCALE_FLAGS, ClipRequest, DecodeError, decode_frames, decode_libav
from pipeline.manifest import Manifest
from pipeline.remote import is_url
from pipeline.resize import crop_resizer
from pipeline.sampling import SamplingRecipe, sample_clips
from pipeline.storage import ShardReader

MOST_CLIPS = 64  # whose decoded frames lie in memory: 6 MB each
FEWEST_SECONDS = 0.2  # of a pass


@dataclass(slots=True)
class Prepared:
    """One clip before each of its stages."""

    request: ClipRequest
    last_pts: int = 0
    start_pts: int = 0
    yuv: list[av.VideoFrame] = field(default_factory=list)
    rgb: np.ndarray | None = None


def concurrencies(cores: int) -> list[int]:
    """1, 2, 4 ... as far as the cores go, all of them, and one more."""
    doubled = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return sorted({*doubled, cores, cores + 1})


def measure_stages(manifest: Manifest, recipe: SamplingRecipe, cores: int, seconds: float) -> dict[str, list[float]]:
    """Clips/s by stage, one figure per number of threads in `concurrencies(cores)`. "fetch, cold" reads local shards past the
    page cache. `seconds` is for all together. Raises ValueError if no clip can be decoded."""
    clips = prepare(manifest, recipe)
    size, views = recipe.input_size, recipe.views_per_clip
    threads = concurrencies(cores)
    buffers: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
    for _ in range(max(threads)):
        buffers.put(np.zeros((views, recipe.num_frames, size, size, 3), np.uint8))

    def into(work: Callable[[Prepared, np.ndarray], None], clip: Prepared) -> None:
        buffer = buffers.get()
        try:
            work(clip, buffer)
        finally:
            buffers.put(buffer)

    rates: dict[str, list[float]] = {}
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    local = not is_url(ShardReader(manifest.root).root)
    with closing(ShardReader(manifest.root)) as reader:
        stages: dict[str, Callable[[Prepared], object]] = {
            "fetch": lambda clip: reader.read(clip.request.clip),
            "demux": demux,
            "decode": decode,
            "colour": convert,
            "resize": partial(into, resize),
            "all but fetch": partial(into, lambda clip, buffer: decode_libav(clip.request, buffer)),
        }
        if local:
            stages = {"fetch, cold": lambda clip: reader.read(clip.request.clip), **stages}
        share = max(FEWEST_SECONDS, seconds / (len(stages) * len(threads)))
        bar = tqdm(total=len(stages) * len(threads), unit="pass", disable=None, leave=False)
        with closing(bar):
            for name, work in stages.items():
                bar.set_description(f"{name} alone")
                rates[name] = []
                for number in threads:
                    if name == "fetch, cold":
                        rates[name].append(_one_pass(work, clips, number, lambda: forget(manifest, clips)))
                    else:
                        rates[name].append(_rate(work, clips, number, share))
                    bar.update()
    torch.set_num_threads(torch_threads)
    return rates


def prepare(manifest: Manifest, recipe: SamplingRecipe) -> list[Prepared]:
    """The first clips of epoch 0 as they are before each stage; without those that cannot be decoded, and rotated ones."""
    positions = np.arange(min(len(manifest), MOST_CLIPS))
    rows = {"views_per_step": recipe.views_per_clip}  # a step of one clip: every position exists
    recipe = type(recipe)(**{name: getattr(recipe, name) for name in recipe.__dataclass_fields__} | rows)
    samples = sample_clips(manifest, recipe, 0, positions, np.zeros_like(positions))
    clips = []
    with closing(ShardReader(manifest.root)) as reader:
        for row, frames, boxes in zip(samples.rows, samples.frames, samples.boxes, strict=True):
            clip = manifest.clip(int(row))
            try:
                data = reader.read(clip)
                rgb = decode_frames(clip, data, np.unique(frames))
                one = Prepared(ClipRequest(clip, data, frames, boxes), rgb=rgb)
                _open(one)
            except (OSError, DecodeError, av.FFmpegError):
                continue
            if not clip.rotation:
                clips.append(one)
    if not clips:
        raise ValueError(f"none of the first {len(positions)} clips of {manifest.root} can be decoded")
    return clips


def _open(clip: Prepared) -> None:
    """Find out which packets the decoder needs, and keep the frames that it makes of them."""
    wanted = np.unique(clip.request.frames)
    with av.open(BytesIO(clip.request.data), "r", metadata_errors="replace") as container:
        stream = container.streams.video[0]
        frames = [frame for packet in container.demux(stream) for frame in packet.decode()]
    stamps = [frame.pts or 0 for frame in frames]
    first = max((k for k in clip.request.clip.keyframes if k <= wanted[0]), default=0)
    clip.start_pts, clip.last_pts = stamps[first], stamps[wanted[-1]]
    clip.yuv = [frames[i] for i in wanted]


def demux(clip: Prepared) -> None:
    """Open, search, and take out the packets up to the last wanted frame."""
    _walk(clip, decoding=False)


def decode(clip: Prepared) -> None:
    """The same, and decode them."""
    _walk(clip, decoding=True)


def _walk(clip: Prepared, decoding: bool) -> None:
    with av.open(BytesIO(clip.request.data), "r", metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        if clip.start_pts:
            container.seek(clip.start_pts, stream=stream, backward=True)
        for packet in container.demux(stream):
            if decoding:
                if any(frame.pts is not None and frame.pts >= clip.last_pts for frame in packet.decode()):
                    break
            elif packet.pts is not None and packet.pts >= clip.last_pts:
                break


def convert(clip: Prepared) -> list[np.ndarray]:
    """The wanted frames to RGB, whole, by the same call of swscale as the decoder's."""
    one, reformatter = clip.request.clip, VideoReformatter()
    matrix, source = MATRICES[one.matrix], RANGES[one.range]
    images = []
    for frame in clip.yuv:
        rgb = reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=source,
            dst_color_range=ColorRange.JPEG,
            interpolation=SWSCALE_FLAGS,
            threads=1,
        )
        plane = rgb.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(rgb.height, plane.line_size)
        images.append(lines[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3))
    return images


def resize(clip: Prepared, views: np.ndarray) -> None:
    """Crops of the RGB frames into `views` uint8 (R, T, size, size, 3), as `decode_libav` does it."""
    assert clip.rgb is not None
    wanted, places = np.unique(clip.request.frames, return_inverse=True)
    resizer = crop_resizer(len(wanted), places.reshape(clip.request.frames.shape), clip.request.boxes, views)
    for number, frame in enumerate(clip.rgb):
        resizer.frame(number, frame.reshape(len(frame), -1))
    resizer.finish()


def forget(manifest: Manifest, clips: Sequence[Prepared]) -> None:
    """Ask the kernel to drop the clips' bytes from its cache; others' pages stay."""
    for shard in {clip.request.clip.shard for clip in clips}:
        descriptor = os.open(os.path.join(manifest.root, shard), os.O_RDONLY | os.O_CLOEXEC)
        for clip in clips:
            if clip.request.clip.shard == shard:
                os.posix_fadvise(descriptor, clip.request.clip.offset, clip.request.clip.size, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _rate(work: Callable[[Prepared], object], clips: Sequence[Prepared], threads: int, seconds: float) -> float:
    """Clips/s of whole passes, after one clip in each thread."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, clips[:threads]))
        done, began = 0, time.perf_counter()
        while not done or time.perf_counter() - began < seconds:
            # clip by clip, so that a slow machine is not held up for a whole pass
            done += sum(1 for _ in pool.map(work, [clips[(done + i) % len(clips)] for i in range(4 * threads)]))
        return done / (time.perf_counter() - began)


def _one_pass(work: Callable[[Prepared], object], clips: Sequence[Prepared], threads: int, before: Callable[[], None]) -> float:
    before()
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(work, clips))
        return len(clips) / (time.perf_counter() - began)
