"""Part 1 of the GPU suite: NVDEC through DALI. Rates of whole `DaliDecoder` calls: decoding, colour, four views of 224² a clip.

Clips are trimmed off the clock, as the loader's sidecar does it; every call is waited for, as `device_decoding` does.
"""

import time
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clips import clips_of
from benchmarks.gpu.decoding_rate import Rate, batches_of, decode, decoder_of, figure, rate_of, samples_of, side_of, suite_set
from benchmarks.gpu.plan import CODECS, GOPS, IN_FLIGHT, SIZES, STARTS
from pipeline.decoding.decode import ClipRequest, DecodeError, decode_libav
from pipeline.decoding.trim import TrimmedClip, UnsupportedClipError, trim
from pipeline.workers import device_decoding

UNALIGNED = (340, 254)  # NVDEC's surfaces are multiples of 16
DAMAGED = 16  # clips


def in_flight(bench: Bench) -> None:
    """How many decoders at once: the winner on h264-fast, which is what the builder makes, becomes the default."""
    found: dict[int, Rate] = {}
    for codec in CODECS:
        batches: list[list[TrimmedClip]] = []
        for number in IN_FLIGHT:
            with bench.attempt(f"in_flight/{codec}/{number}"):
                batches = batches or batches_of(bench, suite_set(bench, codec))
                rate = rate_of(partial(decode, decoder_of(bench, number)), batches, bench.size(0.7, 0))
                figure(bench, f"in_flight/{codec}/{number}", rate)
                if codec == bench.size("h264-fast", "vp9"):
                    found[number] = rate
    if found:
        best = max(found, key=lambda number: found[number].clips)
        why = "clips/s by decoders in flight: " + ", ".join(f"{number}: {rate.clips:.0f}" for number, rate in found.items())
        bench.recommend("pipeline/workers/device_decoding.py DECODERS", best, device_decoding.DECODERS, why)


def formats(bench: Bench) -> None:
    """What the encoding of the clips costs."""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    cases = [(f"gop/{gop}", {"gop": gop}) for gop in GOPS]
    cases += [(f"size/{width}x{height}", {"width": width, "height": height}) for width, height in SIZES]
    for name, changes in cases:
        with bench.attempt(name):
            batches = batches_of(bench, suite_set(bench, **changes))  # type: ignore[arg-type]
            figure(bench, name, rate_of(partial(decode, decoder), batches, bench.size(0.8, 0)))


def trimming(bench: Bench) -> None:
    """What it is worth to send the needed packets only, and whether the way to the wanted frames costs."""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    wanted = suite_set(bench)

    def measured(start: int | None, whole: bool) -> Rate:
        return rate_of(partial(decode, decoder), batches_of(bench, wanted, start, whole), bench.size(0.6, 0))

    whole = measured(None, True)
    figure(bench, "whole", whole)
    figure(bench, "trimmed", measured(None, False), whole)
    first: float | None = None
    for start in STARTS:
        rate, ms = measured(start, True), measured(start, False).ms
        first = first or rate.ms
        bench.figure(f"start/{start}", rate.ms, "ms/clip", first, whole_clips=True, trimmed_ms=ms)
    samples = samples_of(bench, clips_of(wanted, bench.kit, bench.work), bench.size(64, 4))
    began = time.thread_time()
    for sample in samples:
        trim(sample, bench.device.type)
    bench.figure("trim", 1e3 * (time.thread_time() - began) / len(samples), "ms/clip", of="one core")


def reuse(bench: Bench) -> None:
    """Whether decoders are made anew: for the first call, for sizes that are no multiples of 16, for sizes in turn."""
    aligned, odd = batches_of(bench, suite_set(bench)), batches_of(bench, suite_set(bench, None, *UNALIGNED))
    wide = batches_of(bench, suite_set(bench, None, 448, 256))
    decoder = decoder_of(bench, device_decoding.DECODERS)
    before = device_memory(bench)
    began = time.perf_counter()
    decode(decoder, aligned[0])
    first = 1e3 * (time.perf_counter() - began) / len(aligned[0])
    rate = partial(rate_of, partial(decode, decoder), seconds=bench.size(0.8, 0))
    usual = rate(aligned)
    bench.figure("reuse/first_call", first, "ms/clip", usual.ms)
    bench.figure("reuse/multiple_of_16", usual.ms, "ms/clip", memory_mib=device_memory(bench) - before)
    turns = [clips for three in zip(aligned, odd, wide, strict=True) for clips in three]
    mixed = [[three[i % 3][i] for i in range(len(three[0]))] for three in zip(aligned, odd, wide, strict=True)]
    size: dict[str, Any] = {"size": "{}x{}".format(*UNALIGNED)}
    for name, batches, detail in (("not_multiple_of_16", odd, size), ("sizes_in_turn", turns, {}), ("sizes_mixed", mixed, {})):
        ms = rate(batches).ms
        bench.figure(f"reuse/{name}", ms, "ms/clip", usual.ms, **detail, memory_mib=device_memory(bench) - before)


def modes(bench: Bench) -> None:
    """Dynamic mode, which `pipeline/decoding/dali.py` uses, against pipeline mode."""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    from benchmarks.gpu.pipeline_mode import PipelineDecoder  # it imports DALI, which is now known to be there

    batches = batches_of(bench, suite_set(bench))
    threads, seconds = bench.size(device_decoding.DECODERS, 2), bench.size(1.5, 0)
    pipeline = PipelineDecoder(bench.device, threads, side_of(bench), batches)
    difference = (pipeline().int() - decode(decoder, batches[0]).int()).abs().float()
    rates: dict[str, list[float]] = {"dynamic": [], "pipeline": []}
    for _ in range(bench.size(2, 1)):  # in turns
        rates["dynamic"].append(rate_of(partial(decode, decoder), batches, seconds).clips)
        rates["pipeline"].append(rate_of(lambda _: pipeline(), batches, seconds).clips)
    medians = {name: median(found) for name, found in rates.items()}
    bench.figure("mode/dynamic", medians["dynamic"], "clips/s", rounds=rates["dynamic"])
    detail = {"rounds": rates["pipeline"], "pixels_differ_by_mean": float(difference.mean())}
    bench.figure("mode/pipeline", medians["pipeline"], "clips/s", medians["dynamic"], **detail)
    best = max(medians, key=lambda name: medians[name])
    why = ", ".join(f"{name} {rate:.0f} clips/s" for name, rate in medians.items())
    bench.recommend("pipeline/decoding/dali.py mode", best, "dynamic", why)


def memory(bench: Bench) -> None:
    """Whether it grows over 2,000 small batches, or as many as half a minute has."""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    batches = [batch[:4] for batch in batches_of(bench, suite_set(bench))]
    most, process, series = bench.size(2000, 4), psutil.Process(), []
    ends = time.perf_counter() + min(30.0, max(2.0, bench.left() - 5))
    for number, batch in enumerate(cycle(batches)):
        if number % max(1, most // 20) == 0 or number == most:
            series.append((number, round(device_memory(bench)), round(process.memory_info().rss / 2**20)))
        if number == most or time.perf_counter() > ends:
            break
        decode(decoder, batch)
    settled, last = series[len(series) // 5], series[-1]
    for place, column in (("device", 1), ("host", 2)):
        detail: dict[str, Any] = {"batches": last[0], "from_batch": settled[0]}
        rows = [(row[0], row[column]) for row in series]
        bench.figure(f"memory/{place}", float(last[column] - settled[column]), "MiB", **detail, series=rows)


def device_memory(bench: Bench) -> float:
    """MiB of the GPU in use, by whomever: NVDEC's surfaces are not torch's."""
    if bench.device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(bench.device)
    return (total - free) / 2**20


def damage(bench: Bench) -> None:
    """Clips whose payload is damaged, given to DALI and to libav: does it refuse, deliver, hang, and is it whole afterwards?"""
    decoder = decoder_of(bench, device_decoding.DECODERS)
    samples = samples_of(bench, clips_of(suite_set(bench), bench.kit, bench.work), bench.size(DAMAGED, 3), views=1)
    kind, random = bench.device.type, np.random.default_rng(0)
    intact = trim(samples[0], kind)
    before = decode(decoder, [intact]).clone()
    told, agree, wrong = list[str](), 0, 0
    for number, sample in enumerate(samples):
        broken = bytearray(sample.data)
        at = int(random.integers(len(broken) // 4, len(broken) * 3 // 4))
        length = (16, 400, 4000)[number % 3]
        broken[at : at + length] = random.bytes(len(broken[at : at + length]))
        request = ClipRequest(sample.clip, bytes(broken), sample.frames, sample.boxes)
        libav, reference = np.empty((1, len(sample.frames), side_of(bench), side_of(bench), 3), np.uint8), "delivers"
        try:
            decode_libav(request, libav)
        except DecodeError as error:
            reference = f"refuses ({error.reason})"
        ours = "delivers"
        try:
            views, failures = decoder([trim(request, kind)])
            if failures:
                ours = f"refuses ({failures[0][1]})"
            elif reference == "delivers":
                away = np.abs(views[0].cpu().numpy().astype(int) - libav).mean()
                ours = f"delivers, {away:.1f} levels from libav's"
        except (DecodeError, UnsupportedClipError) as error:
            ours = f"refuses before decoding ({error})"
        agree += ours.split()[0] == reference.split()[0]
        wrong += ours.startswith("delivers") and reference.startswith("refuses")
        told.append(f"{length} bytes: libav {reference}; DALI {ours}")
    bench.figure("damage/as_libav", agree / len(samples), "share", outcomes=told)
    bench.figure("damage/delivered_but_refused_by_libav", wrong / len(samples), "share")
    same = bool(torch.equal(decode(decoder, [intact]), before))
    bench.figure("damage/whole_afterwards", float(same), "share", meaning="an intact clip decodes to the same bytes as before")
