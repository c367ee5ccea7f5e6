"""Training as it is, loader and step together, beside the same step on a batch that lies on the device: what `throughput.py`
and `loader_profile.py` measure, on the suite's device. ViT-g's bar: at most 3 % less."""

import gc
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clips import ClipSet, clips_of, write_dataset
from benchmarks.gpu.steps import cleared, views_of
from benchmarks.parts.path_parts import EndToEndWork, LoaderWork, ModelWork, training_parts
from benchmarks.parts.stopwatch import Part, Stopwatch
from model.config import MODELS
from pipeline.machine import usable_cores
from pipeline.sampling import Views
from train.compute.parallel import started
from train.config import ComputeConfig, LoaderConfig
from train.stages.pretraining import PretrainConfig

BAR = 0.97  # of the model's rate alone
CLIPS = ClipSet("h264-fast", 352, 256, 32, 8, 300), ClipSet("vp9", 160, 128, 8, 2, 20)  # the second what DALI decodes on a CPU


def training(bench: Bench, name: str, decoder: Any) -> None:
    """The loader alone, the model alone, on batches from memory, and fed by the loader."""
    stopwatch, config = Stopwatch(bench.size(3.0, 0.01), bench.device), configuration(bench, name)
    if bench.device.type == "cuda":
        torch._dynamo.reset()  # see step_contest.py
    with started(bench.device.type) as ranks:
        with closing(LoaderWork(dataset_of(bench), config.sampling, config, stopwatch, decoder=decoder)) as fed:
            parts = training_parts(config, fed, stopwatch, ranks)
            model, together = parts["model"].work, parts["together"].work
            assert isinstance(model, ModelWork) and isinstance(together, EndToEndWork)
            with cleared(model):
                parts["loader"] = Part("loader", "loader alone", config.views.views_per_clip, fed)
                stopwatch.rounds(list(parts.values()), bench.size(2, 1))
                for part in parts.values():
                    used = {"cores": sum(part.cores) / len(part.cores), "of_cores": usable_cores()}
                    bench.put([part.result("views/s", f"{name}/{part.name}", parts["model"])], **used)
                bench.figure(f"{name}/data_wait", together.data_wait, "of the time", decoder=str(fed.loader.decoder_choice))
                share = parts["together"].views / parts["model"].views
                clips = parts["loader"].views / config.views.views_per_clip
                met = "meets" if share >= BAR else "misses"
                bench.remark(
                    f"{name} with {decoder}: {share:.1%} of the step alone, {met} {BAR:.0%}; the loader {clips:.0f} clips/s"
                )
        del parts, model, together
        gc.collect()


def configuration(bench: Bench, name: str) -> PretrainConfig:
    """A step of one forward pass; `tiny` in a dry walk. Workers and prefetch are given: to find them takes a loader 20 s."""
    views = views_of(bench, name)
    compute = ComputeConfig(
        views_per_forward=views,
        activation_checkpointing="none",
        precision=bench.size("bf16", "fp32"),
        device=bench.device.type,  # type: ignore[arg-type]
    )
    per_clip = Views(views_per_step=views, views_per_clip=bench.size(4, 2))
    loader = LoaderConfig(workers=usable_cores(), prefetch=3)
    return PretrainConfig(model=MODELS[bench.size(name, "tiny")], views=per_clip, compute=compute, loader=loader)


def dataset_of(bench: Bench) -> Path:
    """The one that was carried along, or 512 rows of clips that are encoded here."""
    if bench.data is not None:
        return bench.data
    folder = bench.work / "dataset"
    return folder if folder.is_dir() else write_dataset(folder, clips_of(bench.size(*CLIPS), bench.work), bench.size(512, 8))
