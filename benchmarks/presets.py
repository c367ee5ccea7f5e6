#!/usr/bin/env python3
"""Measure what the builder's presets cost and give on your own videos: bytes, encoding, decoding, likeness to the source.

    tubecell presets --videos FOLDER                       8 of its videos, chosen by seed
    tubecell presets --videos FOLDER --clips 40 --out DIR --json presets.json
    tubecell presets                                       generated ones, to see what comes out

Every video becomes a clip with each preset at each short side, as the builder makes it; `copy` keeps the file and so knows no
short side. Rates are per CPU-second of one core: other programs hardly change them. Decoding is the loader's, on one thread:
16 frames at stride 4 from random starts, to RGB (and how many frames are decoded for them, at stride 2, too); and whole clips
without conversion. PSNR and SSIM compare a clip with the source brought to the same size, over all planes. DIR/presets.png
shows the same as a picture.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import io
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
from tqdm import tqdm

from benchmarks.parts.clip_replay import clip_of
from benchmarks.parts.generated_dataset import draw_video
from benchmarks.parts.original_files import chosen_videos, shuffled_files
from benchmarks.parts.preset_figures import FRAMES, SHORT_SIDES, STARTS, STRIDES, Figures, plot, results, table
from benchmarks.parts.program import WithFigures, program
from benchmarks.parts.results import Neighbours, Result, children_seconds, describe_machine, disturbance
from dataset_builders.media.decode_check import VerifiedClip, verify
from dataset_builders.media.ffmpeg_process import ffmpeg_path
from dataset_builders.media.presets import PRESETS, EncodeOptions
from dataset_builders.media.probe import VideoInfo, probe
from dataset_builders.media.rejects import RejectedError
from dataset_builders.media.transcode import MUXING, Timing, Wanted, copy_file, encode, transcode
from pipeline.decoding.decode import decode_upright, video_stream
from pipeline.sampling.frames import window_frames
from pipeline.stage_meters import ClipMeter
from pipeline.storage.output_folder import refuse_dataset
from pipeline.version import CHECKOUT

LONGEST = 60.0  # seconds; what is longer would be cut by the builder
LOSSLESS = {"c:v": "libx264", "qp": 0, "preset": "ultrafast", "threads": 1}
# moving pictures without any footage: a zoom into a fractal, FFmpeg's test pattern, a turning gradient
GENERATED = (
    "mandelbrot=size=854x480:rate=30",
    "testsrc2=size=640x480:rate=30",
    "gradients=size=640x360:rate=30:speed=0.05:seed=1",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithFigures):
    """What is measured."""

    videos: Path | None = None
    """A folder of videos, at any depth; by default three generated ones."""
    clips: int = 8
    """How many of them to take, at random but always the same; those longer than 60 s are passed over."""
    out: Path = (CHECKOUT or Path()) / "data" / "presets"
    """Folder for presets.png; it is made."""


@program(Options)
def main(options: Options) -> list[Result]:
    if options.clips < 1:
        raise ValueError(f"--clips {options.clips}: it must be at least 1")
    refuse_dataset("--out", options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="tubecell-") as folder:
        if options.videos is None:
            print("generated videos: only to see what comes out; measure on your own with --videos FOLDER", flush=True)
            videos = generated_videos(Path(folder))
        else:
            videos, said = chosen_videos(shuffled_files(options.videos), options.clips, longest=LONGEST)
            print(f"{len(videos)} videos of {options.videos}{said}", flush=True)
        neighbours = Neighbours()
        figures = measure_presets(videos)
    print("\n".join([table(figures), *disturbance(neighbours.cores())]))
    plot(figures, options.out / "presets.png")
    print(f"picture: {options.out / 'presets.png'}")
    return results(figures)


def generated_videos(folder: Path) -> list[tuple[bytes, VideoInfo]]:
    """Five seconds each."""
    encoding = "-c:v libx264 -crf 18 -t 5 -threads 1"
    paths = [draw_video(source, encoding, folder / f"{number}.mp4") for number, source in enumerate(GENERATED)]
    return [(os.fsencode(path), probe(os.fsencode(path))) for path in paths]


def measure_presets(videos: Sequence[tuple[bytes, VideoInfo]]) -> list[Figures]:
    """All presets on all videos; a video that one of them rejects is left out of all, and named."""
    figures = [Figures("copy", None), *(Figures(name, side) for name in PRESETS if name != "copy" for side in SHORT_SIDES)]
    for path, info in tqdm(videos, unit="video", disable=None, leave=False):
        with ExitStack() as stack:
            try:
                references = {side: stack.enter_context(reference(path, info, side)) for side in SHORT_SIDES}
                found = [measure_clip(path, info, each.preset, each.short_side, references) for each in figures]
            except RejectedError as error:
                tqdm.write(f"left out: {os.fsdecode(path)!r}: {error.reason}: {error.detail}")
                continue
        for of_kind, of_clip in zip(figures, found, strict=True):
            of_kind.add(of_clip)
    if not figures[0].clips:
        raise ValueError("none of the videos can be taken with every preset")
    return figures


def measure_clip(path: bytes, info: VideoInfo, preset: str, side: int | None, references: Mapping[int, BinaryIO]) -> Figures:
    """One clip with one preset, beside the lossless one of its side; raises RejectedError."""
    figures = Figures(preset, side, clips=1)
    if side is None:
        data, _ = copy_file(path, info)
    else:
        before = children_seconds(ended=True)
        options = EncodeOptions(preset, short_side=side, max_seconds=2 * LONGEST)
        (piece,) = transcode(path, info, options, Wanted())
        figures.encode_time, data = children_seconds(ended=True) - before, piece.data
    clip = verify(data)
    figures.bytes, figures.frames, figures.seconds = len(data), clip.num_frames, clip.duration
    for place, stride in enumerate(STRIDES):
        seconds, figures.sample_frames[place] = time_samples(data, clip, stride)
        figures.sample_time = figures.sample_time or seconds
    began = time.thread_time()
    with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
        for _ in container.decode(video_stream(container)):
            pass
    figures.decode_time = time.thread_time() - began
    if side is not None:
        psnr, ssim = likeness(data, references[side])
        figures.psnr, figures.ssim = [psnr], [ssim]
    return figures


def time_samples(data: bytes, verified: VerifiedClip, stride: int) -> tuple[float, int]:
    """CPU-seconds of decoding STARTS samples of a clip as the loader does, and frames that were decoded for it."""
    clip, meter = clip_of(data, verified), ClipMeter()
    lengths, steps = np.full(STARTS, clip.num_frames), np.full(STARTS, float(stride))
    starts = np.random.default_rng(0).integers(0, np.maximum(1, lengths - FRAMES * stride + 1))
    rgb = np.empty((FRAMES, clip.height, clip.width, 3), np.uint8)
    began = time.thread_time()
    for frames in window_frames(starts, lengths, FRAMES, steps):
        decode_upright(clip, data, np.unique(frames), rgb.__setitem__, meter)
    return time.thread_time() - began, meter.frames_decoded


def reference(path: bytes, info: VideoInfo, side: int) -> BinaryIO:
    """An unnamed file: the source through the builder's own filters, without loss."""
    options, timing = EncodeOptions(short_side=side), Timing.of(info, Wanted())
    with ExitStack() as opened:
        file = opened.enter_context(tempfile.TemporaryFile(prefix="tubecell-"))
        encode(path, info, options, timing, file, LOSSLESS, MUXING)
        opened.pop_all()  # it went well: the caller closes it
    return file


def likeness(data: bytes, source: BinaryIO) -> tuple[float, float]:
    """-> (PSNR in dB, at most 100, and SSIM of all planes), frame by frame in their order."""
    with os.fdopen(os.memfd_create("clip"), "wb", buffering=0) as clip:
        clip.write(data)
        both = (clip.fileno(), source.fileno())
        for descriptor in both:
            os.lseek(descriptor, 0, os.SEEK_SET)
        inputs = [part for descriptor in both for part in ("-threads", "1", "-fd", str(descriptor), "-i", "fd:")]
        tags = "settb=1/25,setpts=N,setparams=colorspace=smpte170m:color_primaries=smpte170m:color_trc=smpte170m:range=tv"
        graph = f"[0:v]{tags},split[a][c];[1:v]{tags},split[b][d];[a][b]psnr;[c][d]ssim"
        command = [ffmpeg_path(), "-hide_banner", "-nostdin", *inputs, "-lavfi", graph, "-f", "null", "-"]
        said = subprocess.run(command, capture_output=True, pass_fds=both).stderr.decode("utf-8", "replace")
    psnr, ssim = re.search(r"PSNR .*average:(\S+)", said), re.search(r"SSIM .*All:(\S+)", said)
    if not psnr or not ssim:
        raise ValueError(f"FFmpeg does not compare the clip with its source: {said[-500:]}")
    return min(float(psnr[1]), 100.0), float(ssim[1])


if __name__ == "__main__":
    sys.exit(main())
