"""Each stage of the CPU path alone, in processes side by side: what it could do if nothing else were to be done.

In 1, 2, 4 ... of them one sees whether more help a stage. Those that do not grow wait for each other: for the storage, the
memory, or cores.
"""

import io
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

from benchmarks.parts.crew import Crew
from pipeline.decoding.colour import RgbConverter, region_around
from pipeline.decoding.decode import (
    ClipRequest,
    DecodeError,
    decode_frames,
    decode_libav,
    decoded_frames,
    open_clip,
    packets_of,
    video_stream,
)
from pipeline.decoding.resize import crop_resizer
from pipeline.sampling import ClipSamples, SamplingRecipe, sample_clips
from pipeline.sampling.splits import count_clips
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import is_url
from pipeline.storage.shards import ShardReader

MOST_CLIPS = 64  # whose decoded frames lie in memory: 8 MB each
COLD, DECODE_ONLY = "fetch, cold", "decode only"
STAGES = (COLD, "fetch", "demux", "decode", "colour", "resize", "all but fetch")
FEWEST_SECONDS = 0.2  # of a pass


class Prepared:
    """One clip, and what it is before each of its stages."""

    def __init__(self, request: ClipRequest) -> None:
        self.request, self.clip, self.data = request, request.clip, request.data
        self.wanted, self.places = np.unique(request.frames, return_inverse=True)

    @cached_property
    def rgb(self) -> np.ndarray:
        """The wanted frames."""
        return decode_frames(self.clip, self.data, self.wanted)

    @cached_property
    def opened(self) -> tuple[int, int, list[av.VideoFrame]]:
        """The time stamps of the key frame before the wanted frames and of the last of them; they, as the decoder has them."""
        with open_clip(self.data) as container:
            stream = video_stream(container)
            frames = [frame for packet in container.demux(stream) for frame in packet.decode()]
        first = max((key for key in self.clip.keyframes if key <= self.wanted[0]), default=0)
        return frames[first].pts or 0, frames[self.wanted[-1]].pts or 0, [frames[i] for i in self.wanted]

    def walk(self) -> None:
        """Open, search, and take out the packets up to the last wanted frame."""
        start, last, _ = self.opened
        with open_clip(self.data) as container:
            stream = video_stream(container)
            if start:
                container.seek(start, stream=stream, backward=True)
            for packet in packets_of(container, stream):
                if (packet.pts or 0) >= last:
                    break

    def decode(self) -> None:
        """The same, and decode those that the wanted frames need, as `decode_libav` does it."""
        for _ in decoded_frames(self.clip, self.data, self.wanted):
            pass

    def convert(self) -> None:
        """What the crops show of the wanted frames to RGB, as `decode_libav` does it."""
        region = region_around(self.request.boxes, self.clip.width, self.clip.height)
        with RgbConverter(self.clip.matrix, self.clip.range, region) as converter:
            for frame in self.opened[2]:
                converter.rows(frame)

    def resize(self, views: np.ndarray) -> None:
        """Crops of the RGB frames into `views` uint8 (R, T, size, size, 3), as `decode_libav` does it."""
        resizer = crop_resizer(len(self.wanted), self.places.reshape(self.request.frames.shape), self.request.boxes, views)
        for number, frame in enumerate(self.rgb):
            resizer.frame(number, frame.reshape(len(frame), -1))
        resizer.finish()

    def decode_only(self) -> None:
        """What the loader is measured against, libav as PyAV has it: seek to the key frame, decode, convert the wanted frames
        to RGB arrays, forget them. Raises RuntimeError if a frame does not come out.

        One thread, and one reformatter a clip. `frame.to_ndarray(format="rgb24")` alone, which makes a reformatter and a pool
        of threads for every frame, would do 0.7 times as much per CPU-second, with threads=1 0.9 times.
        """
        clip, last, start = self.clip, int(self.wanted[-1]), 0
        wanted = set(self.wanted.tolist())
        with av.open(io.BytesIO(self.data), "r", metadata_errors="replace") as container:
            stream = video_stream(container)
            if clip.pts_step:
                start = max((key for key in clip.keyframes if key <= self.wanted[0]), default=0)
            if start:
                container.seek(clip.pts_start + start * clip.pts_step, stream=stream)
            reformatter = VideoReformatter()
            for counted, frame in enumerate(container.decode(stream)):
                number = ((frame.pts or 0) - clip.pts_start) // clip.pts_step if clip.pts_step else counted
                if number in wanted:
                    reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if number >= last:
                    return
        raise RuntimeError(f"{clip.key}: frame {last} does not come out, though the loader delivered it")

    def forget(self, manifest: Manifest) -> None:
        """Ask the kernel to drop the clip's bytes from its cache; others' pages stay."""
        descriptor = os.open(os.path.join(manifest.root, self.clip.shard), os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(descriptor, self.clip.offset, self.clip.size, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def do(self, stage: str, reader: ShardReader, views: np.ndarray) -> None:
        """One of STAGES, or DECODE_ONLY; crops go into `views` uint8 (R, T, size, size, 3)."""
        match stage:
            case "fetch" | "fetch, cold":
                reader.read(self.clip)
            case "demux":
                self.walk()
            case "decode":
                self.decode()
            case "colour":
                self.convert()
            case "resize":
                self.resize(views)
            case "all but fetch":
                decode_libav(self.request, views)
            case _:
                self.decode_only()


class StagesAlone(Crew):
    """Processes that do one stage over and over."""

    def __init__(self, manifest: Manifest, recipe: SamplingRecipe, processes: int) -> None:
        super().__init__(processes, _serve, manifest.root, manifest.version, recipe)

    def share(self, samples: Sequence[ClipSamples], each: bool = False) -> None:
        """Give them clips: some to each, or all of them to `each`, who then keeps those that every stage can take.

        Raises ValueError if there is none.
        """
        for number, member in enumerate(self.members):
            member.send((list(samples) if each else list(samples[number :: len(self.members)]), each))
        self.answers()

    def run(self, stage: str, seconds: float, processes: int | None = None) -> list[tuple[int, float]]:
        """(clips, seconds) of every process, or of so many of them. Raises RuntimeError if a clip cannot be decoded."""
        for member in self.members[:processes]:
            member.send((stage, seconds))
        return self.answers(processes)


def _serve(connection: Connection, root: Path, version: int, recipe: SamplingRecipe) -> None:
    """A process that is told clips, or a stage and a time: then it answers with its clips and seconds."""
    manifest, clips = Manifest(root, version), list[Prepared]()
    views = np.zeros((recipe.views_per_clip, recipe.num_frames, *recipe.view_size, 3), np.uint8)
    with closing(ShardReader(manifest.root)) as reader:
        while True:
            what, how = connection.recv()
            try:
                if isinstance(what, str):
                    connection.send(_repeat(what, how, clips, manifest, reader, views))
                    continue
                clips = prepare(manifest, what, every_stage=how)
                connection.send(None)
            except ValueError as error:
                connection.send(error)
            except (RuntimeError, OSError, DecodeError, av.FFmpegError) as error:
                connection.send(RuntimeError(str(error)))


def _repeat(
    stage: str, seconds: float, clips: list[Prepared], manifest: Manifest, reader: ShardReader, views: np.ndarray
) -> tuple[int, float]:
    spent, done = 0.0, 0
    if stage != DECODE_ONLY:
        for clip in clips[:2]:  # what is only done once
            clip.do(stage, reader, views)
    while clips and (not done or spent < seconds):
        clip = clips[done % len(clips)]
        if stage == COLD:
            clip.forget(manifest)
        began = time.perf_counter()
        clip.do(stage, reader, views)
        spent, done = spent + time.perf_counter() - began, done + 1
    return done, spent


def prepare(manifest: Manifest, samples: Sequence[ClipSamples], every_stage: bool) -> list[Prepared]:
    """Clips with their bytes; if they are for every stage, without those that cannot be decoded, and rotated ones. Raises
    ValueError if none is left of them."""
    clips = []
    with closing(ShardReader(manifest.root)) as reader:
        for one in samples:
            clip = manifest.clip(int(one.rows[0]))
            try:
                prepared = Prepared(ClipRequest(clip, bytes(reader.read(clip)), one.frames[0], one.boxes[0]))
                if every_stage:
                    _ = prepared.rgb, prepared.opened
            except (OSError, DecodeError, av.FFmpegError):
                if every_stage:
                    continue
                raise
            if not (every_stage and clip.rotation):
                clips.append(prepared)
    if every_stage and not clips:
        raise ValueError(f"none of the first {len(samples)} clips of {manifest.place} can be decoded")
    return clips


def first_clips(manifest: Manifest, recipe: SamplingRecipe, most: int) -> list[ClipSamples]:
    """Of epoch 0."""
    positions = np.arange(min(count_clips(manifest, recipe.split), most))
    recipe = replace(recipe, views_per_step=recipe.views_per_clip)  # a step of one clip: every position exists
    samples = sample_clips(manifest, recipe, 0, positions, np.zeros_like(positions))
    return [samples.one(i) for i in range(len(positions))]


def concurrencies(cores: int) -> list[int]:
    """1, 2, 4 ... as far as the cores go, all of them, and one more."""
    doubled = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return sorted({*doubled, cores, cores + 1})


def measure_stages(manifest: Manifest, recipe: SamplingRecipe, cores: int, seconds: float) -> dict[str, list[float]]:
    """Clips/s by stage, one figure per number of processes in `concurrencies(cores)`. "fetch, cold" reads local shards past the
    page cache. `seconds` is for all together. Raises ValueError if no clip can be decoded."""
    workers = concurrencies(cores)
    stages = [stage for stage in STAGES if stage != COLD or not is_url(ShardReader(manifest.root).root)]
    passes = [(stage, number) for stage in stages for number in workers]
    rates: dict[str, list[float]] = {stage: [] for stage in stages}
    with (
        closing(StagesAlone(manifest, recipe, max(workers))) as alone,
        tqdm(passes, unit="pass", disable=None, leave=False) as bar,
    ):
        alone.share(first_clips(manifest, recipe, max(4, MOST_CLIPS // max(workers))), each=True)
        for stage, number in bar:
            bar.set_description(f"{stage} alone")
            ran = alone.run(stage, max(FEWEST_SECONDS, seconds / len(passes)), number)
            rates[stage].append(sum(clips / spent for clips, spent in ran))
    return rates
