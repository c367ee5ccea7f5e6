#!/usr/bin/env python3
"""How fast the builder encodes, beside plain FFmpeg doing the same transcodes in a loop.

    tubecell build-rate [--videos FOLDER] [--rounds 3] [--ray] [--json FILE]

They take turns, on one process and on one per core: FFmpeg's program in a loop with the builder's own filters and settings; the
builder's shard jobs (probe, encode, decode check, hash, tar), without planning and report; and a local Ray cluster, its start
included. The decode check of every clip is timed alone, too, and counted apart, because plain FFmpeg has none. Without
--videos, generated clips.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from statistics import median
from typing import Annotated

import torch
import tyro

from benchmarks.parts.program import WithFigures, program
from benchmarks.parts.results import Result, describe_machine
from benchmarks.parts.stopwatch import Part, Stopwatch, Work
from dataset_builders import generate_clips
from dataset_builders.building.build import make_plan
from dataset_builders.building.encode import encode
from dataset_builders.building.jobs import Attempt, BuildState
from dataset_builders.building.ray_cluster import encode_on_ray
from dataset_builders.building.request import Build, Limits
from dataset_builders.media.decode_check import verify
from dataset_builders.media.ffmpeg_process import ffmpeg_path
from dataset_builders.media.geometry import geometry
from dataset_builders.media.presets import EncodeOptions, h264_fast
from dataset_builders.media.probe import VideoInfo, probe
from dataset_builders.media.transcode import MUXING, SCALER
from dataset_builders.sources.kinds import Source
from pipeline.machine import usable_cores
from pipeline.storage.manifest import Manifest
from pipeline.storage.manifest_writer import write_manifest
from pipeline.storage.shards import ShardReader

OPTIONS = EncodeOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithFigures):
    """What is measured."""

    videos: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Video files; generated ones without."""
    rounds: int = 3
    """In each of them everybody has a turn."""
    ray: bool = False
    """A local Ray cluster, too."""


@dataclass(slots=True)
class Encoding(Work):
    """All clips, once."""

    clips: int
    encode: Callable[[], None]

    def work(self) -> int:
        self.encode()
        return self.clips


@program(Options)
def main(options: Options) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="tubecell-build-rate-") as scratch:
        videos = options.videos or Path(scratch, "videos")
        if not options.videos:
            generate_clips.main(["--out", str(videos), "--clips", "16"])
        return measure_encoding(videos, Path(scratch), options.rounds, options.ray)


def measure_encoding(videos: Path, scratch: Path, rounds: int, ray: bool) -> list[Result]:
    """Every contestant once a round -> figures, printed, too. Raises ValueError if no file gives a clip."""
    source = Source(name="videos", kind="folder", settings={"folder": str(videos)})
    build = Build(out=scratch / "dataset", sources=(source,), encoding=OPTIONS, clips_per_shard=20)
    clips, files, check = dataset_of(build)
    parts = {}
    for processes in sorted({1, usable_cores()}):
        parts[f"ffmpeg/{processes}"] = partial(ffmpeg_loops, files, processes)
        parts[f"builder/{processes}"] = partial(rebuild, build, processes, scratch)
    if ray:
        parts[f"ray/{usable_cores()}"] = partial(rebuild, build, usable_cores(), scratch, ray="local")
    contestants = {name: Part(name, name, 1, Encoding(clips, encode)) for name, encode in parts.items()}
    # a turn is one piece of work, which takes longer than that
    Stopwatch(0.0, torch.device("cpu")).rounds(list(contestants.values()), rounds)
    others = median(cores for part in contestants.values() for cores in part.neighbours)
    print(f"{clips} clips of {len(files)} files; {describe_machine()}; other programs took {others:.2f} cores\n")
    return report(clips, check, contestants)


def report(clips: int, check: float, parts: Mapping[str, Part]) -> list[Result]:
    """The figures; `check` is what decoding all clips once takes on one core, in seconds."""
    results = [Result("decode_check", clips / check, "clips/s")]
    print(f"{'':<12} {'clips/s':>8} {'of FFmpeg':>10} {'without the decode check':>25}")
    for name, part in parts.items():
        what, processes = name.split("/")
        plain, said = parts[f"ffmpeg/{processes}"], ""
        if what == "ffmpeg":
            results.append(part.result("clips/s"))
        else:
            whole = part.result("clips/s", f"{name}/vs_ffmpeg", plain)
            checking = [check / int(processes) * rate / clips for rate in part.rates]  # share of the time
            apart = [ratio / (1 - share) for ratio, share in zip(whole.rounds, checking, strict=True)]
            results += [whole, replace(whole, name=f"{name}/vs_ffmpeg_without_check", rounds=apart)]
            said = f" {whole.ratio:>10.2f} {median(apart):>25.2f}"
        print(f"{name:<12} {part.clips:>8.2f}{said}   rounds {clips / max(part.rates):.1f} to {clips / min(part.rates):.1f} s")
    print(f"{'check':<12} {clips / check:>8.2f}   decoding every clip once, on one core")
    return results


def dataset_of(build: Build) -> tuple[int, list[tuple[bytes, VideoInfo]], float]:
    """Build once -> (clips, the files that gave exactly one each, seconds to decode all clips once)."""
    with encoded(build) as state:
        write_manifest(build.out, state.parts(state.jobs))
        taken = {path for rows, _ in state.parts(state.jobs) for path in rows["path"].to_pylist()}
    manifest, reader = Manifest(build.out), ShardReader(build.out)
    if not len(manifest):
        raise ValueError(f"none of the files in {build.sources[0].settings['folder']} gives a clip")
    paths = [os.path.join(build.sources[0].roots()["videos"], path) for path in sorted(taken)]
    data = [reader.read(manifest.clip(row)) for row in range(len(manifest))]
    began = time.perf_counter()
    for clip in data:
        verify(clip)
    seconds = time.perf_counter() - began
    return len(manifest), [(path, probe(path)) for path in paths], seconds


@contextmanager
def encoded(build: Build, ray: str | None = None) -> Iterator[BuildState]:
    """All shards."""
    plan = make_plan(build)
    with BuildState(build.out) as state:
        state.extend(plan, build.options(), build.clips_per_shard)
        todo = [Attempt(job) for job in state.jobs]
        if ray:
            encode_on_ray(ray, state, todo, build)
        else:
            encode(state, todo, build)
        yield state


def rebuild(build: Build, processes: int, scratch: Path, ray: str | None = None) -> None:
    """All shards once more, in a new folder."""
    again = replace(build, limits=Limits(workers=processes))
    with tempfile.TemporaryDirectory(dir=scratch) as folder, encoded(replace(again, out=Path(folder, "dataset")), ray):
        pass


def ffmpeg_loops(files: Sequence[tuple[bytes, VideoInfo]], processes: int) -> None:
    """FFmpeg's program for one file after the other, so many loops at a time."""
    with ThreadPoolExecutor(processes) as pool, tempfile.TemporaryDirectory() as folder:
        commands = [ffmpeg_command(*file, os.path.join(folder, f"{number}.mp4")) for number, file in enumerate(files)]
        for _ in pool.map(lambda command: subprocess.run(command, check=True), commands):
            pass


def ffmpeg_command(path: bytes, info: VideoInfo, target: str) -> list[bytes | str]:
    """What the builder asks of FFmpeg, for a user's own shell script."""
    (width, height), (kept_width, kept_height) = geometry(info, OPTIONS)
    filters = ["bwdif=mode=send_frame:deint=interlaced"] if info.planar_yuv else []
    colours = f"in_color_matrix={info.matrix}:out_color_matrix=bt601:out_range=limited"
    filters += [f"scale={width}:{height}:flags={SCALER}:{colours}", "format=yuv420p", f"crop={kept_width}:{kept_height}"]
    settings = {**h264_fast(OPTIONS.gop), "r": str(Fraction(info.rate)), "fps_mode": "cfr", "f": "mp4", **MUXING}
    options = [text for name, value in settings.items() for text in (f"-{name}", str(value))]
    return [ffmpeg_path(), "-v", "error", "-nostdin", "-threads", "1", "-i", b"file:" + path, "-an", "-map", f"0:{info.stream}",
            "-filter_threads", "1", "-vf", ",".join(filters), *options, "-y", target]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
