"""Part 5 of the GPU suite: training as it is, loader and step together, against the same step on a batch that lies ready.

Contestants take turns (`stopwatch`). ViT-g's bar: at most 3 % less than on cached batches; ViT-B, which eats clips seven times
as fast, is the goal.
"""

import gc
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import mean, median

from benchmarks.gpu.bench import AbsentError, Bench
from benchmarks.gpu.clips import ClipSet, kept_dataset
from benchmarks.gpu.plan import DECODERS, end_to_end_figures
from benchmarks.gpu.step_costs import traced
from benchmarks.gpu.usage import Usage
from benchmarks.parts.path_parts import EndToEndWork, LoaderWork, ModelWork
from benchmarks.parts.stopwatch import Part, Stopwatch
from model.config import MODELS
from pipeline.decoding.decoder_choice import choose_decoder
from pipeline.machine import usable_cores
from pipeline.sampling import Views
from pipeline.storage.manifest import Manifest
from train.compute.parallel import started
from train.config import ComputeConfig, LoaderConfig
from train.stages.pretraining import PretrainConfig, Pretraining

VIEWS = {"vit-g": 128, "vit-b": 256}  # of a step, in one forward pass: 64 clips of ViT-B at R = 4
BAR = 0.97  # of the rate on cached batches


class DiscardingWork(EndToEndWork):
    """The step on the cached batch, while the loader's batches are taken and thrown away: what decoding beside it costs."""

    def work(self) -> int:
        for _ in range(self.model.passes):
            next(self.loader)
        return self.model.work()


def vit_g(bench: Bench) -> None:
    """128 views of ViT-g: about 78 clips/s are asked for."""
    if bench.dry:
        raise AbsentError("a dry walk trains one small model, in ViT-B's place")
    measure(bench, "vit-g")


def vit_b(bench: Bench) -> None:
    """256 views of ViT-B, and a trace of three steps."""
    measure(bench, "vit-b", trace="end_to_end.json.gz")


def measure(bench: Bench, name: str, trace: str | None = None) -> None:
    """Cached, with each decoder, and with the default decoder's batches thrown away."""
    config = configuration(bench, name)
    dataset = dataset_of(bench)
    stopwatch = Stopwatch(bench.size(2.0, 0.01), bench.device)
    with started(bench.device.type) as ranks, ExitStack() as stack:
        chosen = choose_decoder(Manifest(dataset), bench.device).name
        loaders: dict[str, LoaderWork] = {}
        for decoder in DECODERS if chosen == "both" else DECODERS[1:]:  # else "auto" is one of the others
            try:
                work = LoaderWork(dataset, config.sampling, config, stopwatch, decoder=decoder)  # type: ignore[arg-type]
                loaders[decoder] = stack.enter_context(closing(work))
            except ValueError as reason:
                for figure in end_to_end_figures(name, decoder):
                    bench.absent(figure, str(reason))
        default = loaders["auto" if chosen == "both" else chosen]
        model = ModelWork(Pretraining(config), default.first, ranks)
        cached = Part("cached", "model on a cached batch", config.views.views_per_clip, model)
        contestants = {"cached": cached}
        for decoder, loader in loaders.items():
            training = EndToEndWork(model, loader.loader, stopwatch)
            contestants[decoder] = Part(decoder, f"end to end, {decoder}", config.views.views_per_clip, training)
        discarding = DiscardingWork(model, default.loader, stopwatch)
        contestants["discarded"] = Part("discarded", "its batches thrown away", config.views.views_per_clip, discarding)
        nvdec: dict[str, list[float]] = {each: [] for each in contestants}
        for number in range(bench.size(3, 1)):
            if number and bench.left() < 20:
                break
            for each, part in contestants.items():
                with Usage() as usage:
                    stopwatch.turn(part)
                if usage.nvdec is not None:
                    nvdec[each].append(usage.nvdec)
        bench.figure(f"{name}/cached", cached.views, "views/s", rounds=cached.rates, views=config.views.views_per_step)
        for decoder in (*loaders, *(["auto"] if "auto" not in loaders else [])):
            measured = decoder if decoder in loaders else chosen
            choice = str(loaders[measured].loader.decoder_choice)
            put_down(bench, name, decoder, contestants[measured], cached, nvdec[measured], choice)
        lost = contestants["discarded"]
        bench.figure(f"{name}/discarded", lost.views, "views/s", cached.views, decoder=chosen, rounds=lost.rates)
        advise(bench, name, contestants, chosen)
        if trace:
            with bench.attempt(f"{name}/trace"):
                record(bench, name, EndToEndWork(model, default.loader, stopwatch), trace)
        del model, contestants, cached, discarding, lost
        gc.collect()


def put_down(bench: Bench, name: str, decoder: str, part: Part, cached: Part, nvdec: list[float], choice: str) -> None:
    """The rate, and what it took."""
    ratios = [mine / theirs for mine, theirs in zip(part.rates, cached.rates, strict=True)]
    detail = {"of_cached": median(ratios), "meets_97_percent": median(ratios) >= BAR, "rounds": ratios, "decoder": choice}
    assert isinstance(part.work, EndToEndWork)
    bench.figure(f"{name}/{decoder}", part.views, "views/s", cached.views, **detail)
    bench.figure(f"{name}/{decoder}/data_wait", part.work.data_wait, "share")
    extra = max(0.0, median(part.cores) - median(cached.cores))
    bench.figure(f"{name}/{decoder}/cores", median(part.cores), "cores", more_than_cached=extra, of=usable_cores())
    if nvdec:
        bench.figure(f"{name}/{decoder}/nvdec", mean(nvdec), "share")
    else:
        bench.absent(f"{name}/{decoder}/nvdec", "NVML cannot be asked: nvidia-ml-py or the driver is missing")


def advise(bench: Bench, name: str, contestants: dict[str, Part], chosen: str) -> None:
    """Which decoder "auto" should take."""
    rates = {each: part.views for each, part in contestants.items() if each in DECODERS}
    best = max(rates, key=lambda each: rates[each])
    told = ", ".join(f"{each} {rate:.0f}" for each, rate in rates.items())
    why = f"views/s of {name}: {told}; {contestants['cached'].views:.0f} on a cached batch"
    bench.recommend(f"--loader.decoder for {name}", best, f"auto: {chosen}", why)


def record(bench: Bench, name: str, work: EndToEndWork, file: str) -> None:
    """A trace of three steps."""
    work.prepare()
    traced(bench, work, bench.size(3, 1), file)
    bench.figure(f"{name}/trace", (bench.out / file).stat().st_size / 2**20, "MiB", file=file)


def configuration(bench: Bench, name: str) -> PretrainConfig:
    """A step of one forward pass; `tiny` in a dry walk. Workers and prefetch are given: to find them takes a loader 20 s."""
    views, precision, device = bench.size(VIEWS[name], 4), bench.size("bf16", "fp32"), bench.device.type
    compute = ComputeConfig(views_per_forward=views, precision=precision, device=device)  # type: ignore[arg-type]
    loader = LoaderConfig(workers=usable_cores(), prefetch=3)
    per_clip = Views(views_per_step=views, views_per_clip=bench.size(4, 2))
    return PretrainConfig(model=MODELS[bench.size(name, "tiny")], views=per_clip, compute=compute, loader=loader)


def dataset_of(bench: Bench) -> Path:
    """512 rows of the kit's clips, or of encoded ones; in a dry walk what libav and DALI decode on a CPU."""
    clips = bench.size(ClipSet("h264-fast", 352, 256, 32, 8, 300), ClipSet("vp9", 160, 128, 8, 2, 20))
    return kept_dataset(bench, "dataset", clips, bench.size(512, 8))
