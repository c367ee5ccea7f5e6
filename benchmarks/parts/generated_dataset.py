"""A dataset to measure on where the user names none."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from dataset_builders import build_unlabeled_hybrid, generate_clips
from dataset_builders.media.ffmpeg_process import ffmpeg_path
from pipeline.children import command, environment
from pipeline.storage.manifest import Manifest
from pipeline.version import CHECKOUT

GENERATED = 64  # clips
ENCODINGS = (
    "-c:v libx264 -preset veryfast",  # B-frames, groups of pictures of 250
    "-c:v libx264 -preset veryfast -tune fastdecode -bf 0 -g 32",  # as `h264-plain`
    "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -crf 30 -b:v 0 -g 64",
    "-c:v mpeg4 -q:v 4 -bf 2",
)


def generated_dataset() -> Path:
    """64 generated clips of 160 x 128, made into a dataset by the builder: 25 s on two cores the first time, then kept.

    Raises RuntimeError if they cannot be made.
    """

    def draw(videos: Path) -> None:
        run_builder(generate_clips.main, "--out", videos, "--clips", str(GENERATED))

    return _dataset((CHECKOUT or Path()) / "data" / "throughput", draw, "h264-fast")


def varied_dataset() -> Path:
    """48 moving test pictures, no two alike in size, length, rate and encoding, made into a dataset as they are: 30 s the first
    time, then kept. Raises RuntimeError if they cannot be made."""

    def draw(videos: Path) -> None:
        videos.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        for number in range(48):
            width, height = (2 * random.integers(32, 128, 2)).tolist()
            rate, frames = random.choice([10, 12, 25, 30, 60]), random.integers(20, 120)
            encoding = ENCODINGS[number % len(ENCODINGS)]
            target = videos / f"{number:02d}.{'webm' if 'libvpx-vp9' in encoding else 'mp4'}"
            draw_video(f"testsrc2=size={width}x{height}:rate={rate}", f"{encoding} -frames:v {frames}", target)

    return _dataset((CHECKOUT or Path()) / "data" / "soak", draw, "copy")


def long_clips() -> Path:
    """12 moving test pictures with noise, as Kinetics has its clips: 10 s of 340 x 256 at 30 frames/s, H.264 of 0.5 MB with
    x264's own settings, made into a dataset as they are: 30 s the first time, then kept. Raises RuntimeError if they cannot be
    made."""

    def draw(videos: Path) -> None:
        videos.mkdir(parents=True, exist_ok=True)
        for number in range(12):
            picture = f"testsrc2=size=340x256:rate=30,noise=alls=6:allf=t:all_seed={number}"
            draw_video(picture, "-c:v libx264 -frames:v 300", videos / f"{number:02d}.mp4")

    return _dataset((CHECKOUT or Path()) / "data" / "evaluation", draw, "copy")


def _dataset(folder: Path, draw: Callable[[Path], None], preset: str) -> Path:
    """The dataset in a folder, made of the videos that `draw` makes if there is none."""
    dataset = folder / "dataset"
    with suppress(ValueError):  # there is none, its build was interrupted, or another version of tubecell made it
        Manifest(dataset)
        return dataset
    shutil.rmtree(dataset, ignore_errors=True)
    print(f"making clips and a dataset of them in {folder}, once", flush=True)
    videos = folder / "videos"
    draw(videos)
    run_builder(build_unlabeled_hybrid.main, "--folder", f"generated={videos}", "--out", dataset, "--preset", preset)
    return dataset


def draw_video(source: str, encoding: str, target: Path) -> Path:
    """A moving picture of FFmpeg's, encoded as its options say. Raises RuntimeError if it fails."""
    command = [ffmpeg_path(), "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p"]
    if status := subprocess.run([*command, *encoding.split(), str(target)]).returncode:
        raise RuntimeError(f"FFmpeg ended with status {status} for {target}")
    return target


def run_builder(program: Callable[..., int], *arguments: str | Path) -> None:
    """A builder's program, in a process of its own, without torch. Raises RuntimeError if it fails."""
    if status := subprocess.run(command(program, *arguments), env=environment(), stdout=subprocess.DEVNULL).returncode:
        raise RuntimeError(f"{program.__module__} {' '.join(map(str, arguments))} ended with status {status}")
