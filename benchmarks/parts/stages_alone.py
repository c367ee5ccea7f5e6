"""Each stage of the CPU path alone, in 1, 2, 4 ... processes: what it could do if nothing else were to be done, and whether
more of them help it. Stages that do not grow with them wait for each other: for the storage, the memory, or cores."""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from benchmarks.parts.crew import Crew
from pipeline.decoding.colour import RgbConverter, region_around
from pipeline.decoding.decode import ClipRequest, DecodeError, decode_frames, decode_libav, open_clip, packets_of, video_stream
from pipeline.decoding.resize import crop_resizer
from pipeline.sampling import SamplingRecipe, sample_clips
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import is_url
from pipeline.storage.shards import ShardReader

MOST_CLIPS = 64  # whose decoded frames lie in memory: 8 MB each
COLD = "fetch, cold"
STAGES = (COLD, "fetch", "demux", "decode", "colour", "resize", "all but fetch")
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
    """Clips/s by stage, one figure per number of processes in `concurrencies(cores)`. "fetch, cold" reads local shards past the
    page cache. `seconds` is for all together. Raises ValueError if no clip can be decoded."""
    workers = concurrencies(cores)
    stages = [stage for stage in STAGES if stage != COLD or not is_url(ShardReader(manifest.root).root)]
    share = max(FEWEST_SECONDS, seconds / (len(stages) * len(workers)))
    with closing(
        Crew(max(workers), _serve, manifest.root, manifest.version, recipe, max(4, MOST_CLIPS // max(workers)))
    ) as crew:
        for refused in crew.answers():
            if refused:
                raise ValueError(refused)
        rates: dict[str, list[float]] = {}
        with closing(tqdm(total=len(stages) * len(workers), unit="pass", disable=None, leave=False)) as bar:
            for stage in stages:
                bar.set_description(f"{stage} alone")
                rates[stage] = []
                for number in workers:
                    rates[stage].append(_rate(crew, stage, number, share))
                    bar.update()
    return rates


def _rate(crew: Crew, stage: str, workers: int, seconds: float) -> float:
    members = crew.members[:workers]
    for member in members:
        member.send((stage, seconds))
    return sum(member.recv() for member in members)


def _serve(connection: Connection, root: Path, version: int, recipe: SamplingRecipe, most_clips: int) -> None:
    """A process that is told a stage and a time, and answers with its clips/s."""
    manifest = Manifest(root, version)
    try:
        clips = prepare(manifest, recipe, most_clips)
    except ValueError as error:
        connection.send(str(error))
        return
    connection.send("")
    views = np.zeros((recipe.views_per_clip, recipe.num_frames, recipe.input_size, recipe.input_size, 3), np.uint8)
    with closing(ShardReader(manifest.root)) as reader:
        while True:
            stage, seconds = connection.recv()
            for clip in clips[:2]:  # what is only done once
                do(stage, clip, reader, views)
            spent, done = 0.0, 0
            while not done or spent < seconds:
                clip = clips[done % len(clips)]
                if stage == COLD:
                    forget(manifest, [clip])
                began = time.perf_counter()
                do(stage, clip, reader, views)
                spent, done = spent + time.perf_counter() - began, done + 1
            connection.send(done / spent)


def do(stage: str, clip: Prepared, reader: ShardReader, views: np.ndarray) -> None:
    """One of STAGES, of a clip; crops go into `views` uint8 (R, T, size, size, 3)."""
    if stage in ("fetch", COLD):
        reader.read(clip.request.clip)
    elif stage == "resize":
        resize(clip, views)
    elif stage == "all but fetch":
        decode_libav(clip.request, views)
    else:
        {"demux": demux, "decode": decode, "colour": convert}[stage](clip)


def prepare(manifest: Manifest, recipe: SamplingRecipe, most_clips: int) -> list[Prepared]:
    """The first clips of epoch 0 as they are before each stage; without those that cannot be decoded, and rotated ones."""
    positions = np.arange(min(len(manifest), most_clips))
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
        raise ValueError(f"none of the first {len(positions)} clips of {manifest.place} can be decoded")
    return clips


def _open(clip: Prepared) -> None:
    """Find out which packets the decoder needs, and keep the frames that it makes of them."""
    wanted = np.unique(clip.request.frames)
    with open_clip(clip.request.data) as container:
        stream = video_stream(container)
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
    with open_clip(clip.request.data) as container:
        stream = video_stream(container)
        if clip.start_pts:
            container.seek(clip.start_pts, stream=stream, backward=True)
        for packet in packets_of(container, stream):
            if decoding:
                if any(frame.pts is not None and frame.pts >= clip.last_pts for frame in packet.decode()):
                    break
            elif packet.pts is not None and packet.pts >= clip.last_pts:
                break


def convert(clip: Prepared) -> None:
    """What the crops show of the wanted frames to RGB, as `decode_libav` does it."""
    one = clip.request.clip
    with RgbConverter(one.matrix, one.range, region_around(clip.request.boxes, one.width, one.height)) as converter:
        for frame in clip.yuv:
            converter.rows(frame)


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
