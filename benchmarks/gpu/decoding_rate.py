"""Batches of clips for `DaliDecoder`, and its rate on them: what the parts of the GPU suite share that decode with DALI."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import torch

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.clips import ClipSet, clips_of, requests
from benchmarks.gpu.usage import Usage
from pipeline.decoding.dali import DaliDecoder
from pipeline.decoding.decode import ClipRequest
from pipeline.decoding.trim import TrimmedClip, can_decode, trim
from pipeline.storage.manifest import Clip

FRAMES = 300


@dataclass(frozen=True, slots=True)
class Rate:
    """Of calls in a row."""

    clips: float  # per second
    frames: float  # decoded per second, those on the way to the wanted ones included
    nvdec: float | None  # share of NVDEC in use

    @property
    def ms(self) -> float:
        """Per clip."""
        return 1e3 / self.clips


def suite_set(bench: Bench, codec: str | None = None, width: int = 352, height: int = 256, gop: int = 32) -> ClipSet:
    """Eight clips of ten seconds; 720p four of five. In a dry walk two short ones that a CPU decodes."""
    if bench.dry:
        return ClipSet(codec or "vp9", width, height, gop, 1, 6 if width > 1000 else 12)
    return ClipSet(codec or "h264-fast", width, height, gop, *((4, 150) if width > 1000 else (8, FRAMES)))


def batches_of(bench: Bench, wanted: ClipSet, start: int | None = None, whole: bool = False) -> list[list[TrimmedClip]]:
    """Four batches of 32 clips, trimmed or whole. Raises AbsentError if DALI does not decode such clips here."""
    clips = clips_of(wanted, bench.kit, bench.work)
    if (reason := can_decode(clips[0][0], bench.device.type)) is not None:
        raise AbsentError(reason)
    number, size = bench.size((4, 32), (1, 2))
    samples = samples_of(bench, clips, number * size, start=start)
    prepare = untrimmed if whole else partial(trim, device=bench.device.type)
    trimmed = [prepare(sample) for sample in samples]
    return [trimmed[i * size : (i + 1) * size] for i in range(number)]


def samples_of(
    bench: Bench, clips: list[tuple[Clip, bytes]], number: int, views: int = 4, start: int | None = None
) -> list[ClipRequest]:
    """Of 16 frames at stride 4; in a dry walk of 4 in a row."""
    frames, stride = bench.size((16, 4), (4, 1))
    return requests(clips, number, views=bench.size(views, 1), frames=frames, stride=stride, start=start)


def untrimmed(request: ClipRequest) -> TrimmedClip:
    """The whole clip, for DALI to find the frames in."""
    wanted, places = np.unique(request.frames, return_inverse=True)
    places = np.broadcast_to(places, (len(request.boxes), len(request.frames)))
    return TrimmedClip(request.clip, request.data, wanted.astype(np.int32), places, request.boxes)


def side_of(bench: Bench) -> int:
    """Of a view, in pixels."""
    return bench.size(224, 32)


def decoder_of(bench: Bench, threads: int) -> DaliDecoder:
    """Raises AbsentError if DALI is not there."""
    try:
        return DaliDecoder(bench.device, bench.size(threads, min(threads, 2)), side_of(bench))
    except ValueError as reason:
        raise AbsentError(str(reason)) from reason


def decode(decoder: DaliDecoder, batch: Sequence[TrimmedClip]) -> torch.Tensor:
    """A batch, waited for. Raises RuntimeError if a clip fails."""
    views, failures = decoder(batch)
    if decoder.stream is not None:
        decoder.stream.synchronize()
    if failures:
        raise RuntimeError(f"clip {failures[0][0]} of {len(batch)} failed, the first of {len(failures)}: {failures[0][1]}")
    return views


def rate_of(work: Callable[[Sequence[TrimmedClip]], object], batches: list[list[TrimmedClip]], seconds: float) -> Rate:
    """All batches once to warm up, then whole calls for so long."""
    for batch in batches:
        work(batch)
    clips = frames = 0
    with Usage() as usage:
        began = time.perf_counter()
        for batch in cycle(batches):
            work(batch)
            clips += len(batch)
            frames += sum(int(clip.frames[-1]) + 1 for clip in batch)
            if (passed := time.perf_counter() - began) >= seconds:
                break
    return Rate(clips / passed, frames / passed, usage.nvdec)


def figure(bench: Bench, name: str, rate: Rate, baseline: Rate | None = None) -> None:
    """Clips/s, with frames/s beside it."""
    nvdec = {} if rate.nvdec is None else {"nvdec_share": round(rate.nvdec, 3)}
    against = baseline.clips if baseline else None
    bench.figure(name, rate.clips, "clips/s", against, frames_per_s=round(rate.frames), ms_per_clip=rate.ms, **nvdec)
