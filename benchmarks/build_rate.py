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

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from statistics import median

from tqdm import tqdm

from benchmarks.parts.results import Neighbours, Result, check_json, describe_machine, write_json
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


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, write JSON. Returns 0, or 2 for an error."""
    args = arguments().parse_args(argv)
    try:
        check_json(args.json)
        with tempfile.TemporaryDirectory(prefix="tubecell-build-rate-") as scratch:
            videos = args.videos or Path(scratch, "videos")
            if not args.videos:
                generate_clips.main(["--out", str(videos), "--clips", "16"])
            results = measure(videos, Path(scratch), args.rounds, args.ray)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        write_json(args.json, results)
    return 0


def measure(videos: Path, scratch: Path, rounds: int, ray: bool) -> list[Result]:
    """Every contestant once a round -> figures, printed, too. Raises ValueError if no file gives a clip."""
    source = Source(name="videos", kind="folder", settings={"folder": str(videos)})
    build = Build(out=scratch / "dataset", sources=(source,), encoding=OPTIONS, clips_per_shard=20)
    clips, files, check = dataset_of(build)
    machine = f"{clips} clips of {len(files)} files; {describe_machine()}"
    contestants: dict[str, Callable[[], None]] = {}
    for processes in sorted({1, usable_cores()}):
        contestants[f"ffmpeg/{processes}"] = lambda n=processes: ffmpeg_loops(files, n)  # type: ignore[misc]
        contestants[f"builder/{processes}"] = lambda n=processes: rebuild(build, n, scratch)  # type: ignore[misc]
    if ray:
        contestants[f"ray/{usable_cores()}"] = lambda: rebuild(build, usable_cores(), scratch, ray="local")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    others = Neighbours()
    with tqdm(total=rounds * len(contestants), desc="measuring", disable=None) as progress:
        for _ in range(rounds):
            for name, contestant in contestants.items():
                began = time.perf_counter()
                contestant()
                seconds[name].append(time.perf_counter() - began)
                progress.update()
    print(f"{machine}; other programs took {others.cores():.2f} cores\n")
    return report(clips, check, seconds)


def report(clips: int, check: float, seconds: dict[str, list[float]]) -> list[Result]:
    """Seconds a round and contestant -> figures; `check` is what decoding all clips once takes on one core."""
    results = [Result("decode_check", clips / check, "clips/s")]
    print(f"{'':<12} {'clips/s':>8} {'of FFmpeg':>10} {'without the decode check':>25}")
    for name, taken in seconds.items():
        what, processes = name.split("/")
        plain = seconds[f"ffmpeg/{processes}"]
        ratios = [a / b for a, b in zip(plain, taken, strict=True)]
        rate, peer = clips / median(taken), clips / median(plain)
        line = f"{name:<12} {rate:>8.2f}"
        if what == "ffmpeg":
            results.append(Result(name, rate, "clips/s", rounds=tuple(clips / each for each in taken)))
        else:
            apart = [a / (b - check / int(processes)) for a, b in zip(plain, taken, strict=True)]
            results.append(Result(f"{name}/vs_ffmpeg", rate, "clips/s", peer, tuple(ratios)))
            results.append(Result(f"{name}/vs_ffmpeg_without_check", rate, "clips/s", peer, tuple(apart)))
            line += f" {median(ratios):>10.2f} {median(apart):>25.2f}"
        print(f"{line}   rounds {min(taken):.1f} to {max(taken):.1f} s")
    print(f"{'check':<12} {clips / check:>8.2f}   decoding every clip once, on one core")
    return results


def dataset_of(build: Build) -> tuple[int, list[tuple[bytes, VideoInfo]], float]:
    """Build once -> (clips, the files that gave exactly one each, seconds to decode all clips once)."""
    plan = make_plan(build)
    with BuildState(build.out) as state:
        state.extend(plan, build.options(), build.clips_per_shard)
        encode(state, [Attempt(job) for job in state.jobs], build)
        write_manifest(build.out, state.parts(state.jobs))
        taken = {path for rows, _ in state.parts(state.jobs) for path in rows["path"].to_pylist()}
    manifest, reader = Manifest(build.out), ShardReader(build.out)
    if not len(manifest):
        raise ValueError(f"none of the files in {build.sources[0].settings['folder']} gives a clip")
    folder = build.sources[0].roots()["videos"]
    paths = [os.path.join(folder, path) for path in sorted(taken)]
    files = [(path, probe(path)) for path in tqdm(paths, desc="probing", disable=None)]
    data = [reader.read(manifest.clip(row)) for row in range(len(manifest))]
    began = time.perf_counter()
    for clip in data:
        verify(clip)
    return len(manifest), files, time.perf_counter() - began


def rebuild(build: Build, processes: int, scratch: Path, ray: str | None = None) -> None:
    """All shards once more, in a new folder."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        again = replace(build, out=Path(folder, "dataset"), limits=Limits(workers=processes))
        plan = make_plan(again)
        with BuildState(again.out) as state:
            state.extend(plan, again.options(), again.clips_per_shard)
            todo = [Attempt(job) for job in state.jobs]
            if ray:
                encode_on_ray(ray, state, todo, again)
            else:
                encode(state, todo, again)


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


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="video files; generated ones without")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="in each of them everybody has a turn (%(default)s)")
    parser.add_argument("--ray", action="store_true", help="a local Ray cluster, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
