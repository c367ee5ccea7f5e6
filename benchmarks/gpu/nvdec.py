"""NVDEC through DALI: rates of whole `DaliDecoder` calls (decode, colour, four views of 224² a clip), memory, contexts.

Clips are trimmed off the clock, as the loader's sidecar does it; every call is waited for, as `device_decoding` does.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from itertools import cycle

import psutil
import torch

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.clips import clips_of, requests
from benchmarks.gpu.end_to_end import CLIPS, configuration, dataset_of
from benchmarks.parts.card import CardWatch
from benchmarks.parts.path_parts import LoaderWork
from benchmarks.parts.stopwatch import Stopwatch
from pipeline.decoding.dali import DaliDecoder
from pipeline.decoding.decoder_choice import LIBAV_RATE
from pipeline.decoding.trim import TrimmedClip, can_decode, trim
from pipeline.machine import usable_cores
from pipeline.workers.device_decoding import DECODERS

IN_FLIGHT = (14, 7, 4)  # an H100 or H200 has seven NVDEC


def rates(bench: Bench) -> None:
    """By how many decoders there are at once."""
    batches, watch, found = batches_of(bench), CardWatch(bench.device), dict[int, float]()
    for number in IN_FLIGHT:
        with bench.attempt(f"in_flight/{number}"):
            decoder = decoder_of(bench, number)
            decode(decoder, batches[0])
            with watch:
                found[number], frames = rate_of(decoder, batches, bench.size(2.0, 0.0))
            detail = {"frames_per_s": round(frames), "ms_per_clip": 1e3 / found[number], **watch.means}
            bench.figure(f"in_flight/{number}", found[number], "clips/s", found.get(IN_FLIGHT[0]), **detail)
    best = max(found, key=lambda number: found[number], default=DECODERS)
    bench.remark(
        f"The most is {found.get(best, 0):.0f} clips/s (DALI_RATES of decoder_choice.py), with {best} decoders (DECODERS is "
        f"{DECODERS}); {usable_cores()} cores are reckoned to give {LIBAV_RATE * usable_cores():.0f}"
    )


def batches_of(bench: Bench) -> list[list[TrimmedClip]]:
    """Four batches of 32 clips, trimmed. Raises AbsentError if DALI does not decode such clips here."""
    clips = clips_of(bench.size(*CLIPS), bench.work)
    if (reason := can_decode(clips[0][0], bench.device.type)) is not None:
        raise AbsentError(reason)
    number, size = bench.size((4, 32), (1, 2))
    frames, stride = bench.size((16, 4), (4, 1))
    samples = requests(clips, number * size, views=bench.size(4, 1), frames=frames, stride=stride)
    trimmed = [trim(sample, bench.device.type) for sample in samples]
    return [trimmed[i * size : (i + 1) * size] for i in range(number)]


def decoder_of(bench: Bench, threads: int) -> DaliDecoder:
    """Raises AbsentError if DALI is not there."""
    try:
        return DaliDecoder(bench.device, bench.size(threads, 2), bench.size(224, 32))
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


def rate_of(decoder: DaliDecoder, batches: Sequence[Sequence[TrimmedClip]], seconds: float) -> tuple[float, float]:
    """Whole calls for so long -> clips/s, and frames/s with those on the way to the wanted ones."""
    clips = frames = 0
    began = time.perf_counter()
    for batch in cycle(batches):
        decode(decoder, batch)
        clips, frames = clips + len(batch), frames + sum(int(clip.frames[-1]) + 1 for clip in batch)
        if (passed := time.perf_counter() - began) >= seconds:
            break
    return clips / passed, frames / passed


def memory(bench: Bench) -> None:
    """What decoders take of the device beside torch's memory, and whether it or the host's grows, over so many batches."""
    batches, process, most = batches_of(bench), psutil.Process(), bench.size(1000, 4)
    before = beside_torch(bench.device)
    decoder = decoder_of(bench, DECODERS)
    decode(decoder, batches[0])
    settled, host, ends = 0.0, 0, time.perf_counter() + 20
    for number, batch in enumerate(cycle(batches)):
        if number == most // 5:
            settled, host = beside_torch(bench.device), process.memory_info().rss
        if number >= most // 5 and (number == most or time.perf_counter() > ends):
            break
        decode(decoder, batch[:8])
    bench.figure("decoders", settled - before, "MiB beside torch's", decoders=DECODERS)
    bench.figure("growth on the device", beside_torch(bench.device) - settled, "MiB", batches=number - most // 5)
    bench.figure("growth on the host", (process.memory_info().rss - host) / 2**20, "MiB", batches=number - most // 5)


def beside_torch(device: torch.device) -> float:
    """MiB of a GPU that are in use by others than torch's allocator; 0 of a CPU."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return (total - free - torch.cuda.memory_reserved(device)) / 2**20


def contexts(bench: Bench) -> None:
    """Devices beside its own on which a trainer's loader with DALI makes a context: half a GiB each, on rank 0's GPU."""
    device = bench.device
    if device.type == "cuda":
        if torch.cuda.device_count() == 1:
            raise AbsentError("there is one GPU only, and no other to make a context on")
        device = torch.device("cuda", torch.cuda.device_count() - 1)  # as the last rank of a node
        torch.cuda.set_device(device)
    before, stopwatch, config = stray_contexts(device), Stopwatch(0.5, device), configuration(bench, "vit-b")
    with closing(LoaderWork(dataset_of(bench), config.sampling, config, stopwatch, decoder="dali")) as loader:
        for _ in range(bench.size(8, 1)):
            loader.work()
        stray = stray_contexts(device)
    bench.figure("stray contexts", len(stray), "devices", of=str(device), devices=stray, before=before)


def stray_contexts(own: torch.device) -> list[int]:
    """Devices on which this process has a CUDA context, but its own. It makes none."""
    devices = [number for number in range(torch.cuda.device_count()) if torch._C._cuda_hasPrimaryContext(number)]
    return [number for number in devices if number != own.index]
