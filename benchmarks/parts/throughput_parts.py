"""Who takes part in `throughput.py`: on a dataset, and on files as people have them."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.parts.finetune_views import VIEWS, add_finetuning
from benchmarks.parts.generated_dataset import generated_dataset
from benchmarks.parts.original_files import build_of_files, dataset_files, shuffled_files
from benchmarks.parts.path_parts import DecodeWork, EndToEndWork, LoaderWork, decoding_processes, profile, training_parts
from benchmarks.parts.peers import READERS, STRIDE, PeerWork, VideoFiles, missing_reader
from benchmarks.parts.results import describe_machine
from benchmarks.parts.stopwatch import Part, Stopwatch
from benchmarks.parts.throughput_table import PEER_VIEWS, Measured
from pipeline.decoding.dali import DaliDecoder
from pipeline.decoding.decoder_choice import choose_decoder
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.splits import count_clips, describe_split
from pipeline.storage.manifest import Manifest
from train.compute.parallel import Ranks
from train.stages.pretraining import PretrainConfig

CLIPS_PER_BATCH = 8  # of a loader that feeds no model: 32 views where R = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """What all parts share."""

    config: PretrainConfig
    stopwatch: Stopwatch
    rounds: int
    files: int  # that are taken of a user's, at most

    def recipe(self, views: int, clips: int) -> SamplingRecipe:
        """The configuration's views, R of a clip, in batches of a few clips."""
        return replace(self.config.sampling, views_per_clip=views, views_per_step=views * min(CLIPS_PER_BATCH, clips))

    def describe(self) -> str:
        """Machine and views."""
        frames, side = self.config.model.num_frames, self.config.model.input_size
        return f"{describe_machine()}\nviews: {frames} frames at stride {STRIDE}, {side} x {side} px"


def measure_files(trial: Trial, folder: Path, narrowest: int, more: bool) -> Measured:
    """--videos: a user's files through DataLoaders, through tubecell as they are, and as h264-fast would be; `more` as in
    `add_original_files`."""
    print(trial.describe(), flush=True)
    measured = Measured(PEER_VIEWS, decoding_processes(trial.config), trial.stopwatch.device)
    with ExitStack() as stack:
        add_original_files(measured, trial, shuffled_files(folder), narrowest, stack, more)
        trial.stopwatch.rounds(measured.parts, trial.rounds)
    return measured


def measure_dataset(trial: Trial, ranks: Ranks, narrowest: int | None) -> Measured:
    """--data: everything from the builder to the whole of training; and the peers, over files of at least `narrowest`
    pixels, unless that is None."""
    config, stopwatch = trial.config, trial.stopwatch
    dataset = config.data or generated_dataset()
    manifest, views, model = Manifest(dataset), config.views, config.model
    width, height = int(np.median(manifest.width)), int(np.median(manifest.height))
    passes = config.accumulation(1)
    print(
        f"{trial.describe()}\n"
        f"model: encoder {model.encoder_depth} x {model.encoder_dim}, {config.compute.precision}; a step takes "
        f"{views.views_per_step} views, R = {views.views_per_clip}, in {passes} forward pass{'es' if passes > 1 else ''}\n"
        f"data: {describe_split(manifest, config.sampling.split)}, {width} x {height} in the middle, in {dataset}"
        + ("" if config.data else ", generated: smaller and quicker to decode than most real ones"),
        flush=True,
    )
    measured = Measured(views.views_per_clip, decoding_processes(config), ranks.device)
    with ExitStack() as stack:
        for backend in backends(manifest, measured):
            for r in sorted({1, PEER_VIEWS, views.views_per_clip}) if backend == "libav" else (1, PEER_VIEWS):
                recipe = trial.recipe(r, count_clips(manifest, config.sampling.split))
                loader = stack.enter_context(closing(LoaderWork(dataset, recipe, config, stopwatch, decoder=backend)))
                decode = stack.enter_context(closing(DecodeWork(loader, stopwatch.seconds)))
                measured.add_loader(f"loader/{backend}/r{r}", f"loader, {backend}, R = {r}", loader, decode)
        if narrowest is not None:
            try:
                add_original_files(measured, trial, dataset_files(manifest.root), narrowest, stack, more=True)
            except (ValueError, RuntimeError) as reason:
                measured.skipped.append(f"DataLoader over the original files: {reason}")
        clips, decoder = config.sampling.clips_per_step // passes, config.loader.decoder
        fed = LoaderWork(dataset, config.sampling, config, stopwatch, clips_per_batch=clips, decoder=decoder)
        stack.enter_context(closing(fed))
        parts = training_parts(config, fed, stopwatch, ranks)
        measured.parts += parts.values()
        measured.model, measured.cached, measured.end_to_end = parts.values()
        stopwatch.rounds(measured.parts, trial.rounds)
        parts["loader"] = measured.loader
        measured.profile = profile(parts, "benchmarks/throughput.py", measured.first_batch[measured.loader.name])
        assert isinstance(measured.end_to_end.work, EndToEndWork)
        measured.data_wait = measured.end_to_end.work.data_wait
    return measured


def backends(manifest: Manifest, measured: Measured) -> list[Literal["libav", "dali"]]:
    """The decoders that take the whole dataset here; why DALI does not is noted."""
    try:
        choice = choose_decoder(manifest, measured.device, "dali")
        if choice.name != "dali":
            left = sum(choice.reasons.values())
            raise ValueError(f"{left} of {len(manifest)} clips are left to libav: {next(iter(choice.reasons))}")
        DaliDecoder(measured.device, 1, 16)
        return ["libav", "dali"]
    except ValueError as reason:
        measured.skipped.append(f"dali: {reason}")
    return ["libav"]


def add_original_files(
    measured: Measured, trial: Trial, paths: Sequence[bytes], narrowest: int, stack: ExitStack, more: bool
) -> None:
    """DataLoaders over original files, and tubecell over the same files, as they are and as h264-fast. And with `more` as
    h264-plain, to see what the frames are worth that a decoder is spared, with one view of a clip, and fine-tuning's views.

    Raises ValueError if none of the files can be taken.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tubecell-throughput-")))
    files = measured.originals = build_of_files(paths, trial.files, narrowest, folder, plain=more)
    print(f"files: {len(files.files)}, {files.width} x {files.height} in the middle, {files.codecs}", flush=True)
    clips = min(built.clips for built in (files.copy, *files.built.values()))
    for reader in READERS:
        if reason := missing_reader(reader):
            measured.skipped.append(f"DataLoader with {reader}: {reason}")
            continue
        videos = VideoFiles(files.files, reader, trial.recipe(PEER_VIEWS, clips))
        work = stack.enter_context(closing(PeerWork(videos, trial.stopwatch.device)))
        title = f"DataLoader, {reader}, R = {PEER_VIEWS}, original files"
        measured.peers.append(measured.add(Part(f"dataloader/{reader.lower()}/r{PEER_VIEWS}", title, PEER_VIEWS, work)))
    encoded = [(built, preset.replace("-", "_"), f"these as {preset}") for preset, built in files.built.items()]
    loaders = [(PEER_VIEWS, each) for each in ((files.copy, "same_files", "original files"), *encoded)]
    for r, (built, suffix, what) in [*loaders, *((1, each) for each in encoded if more)]:
        recipe = trial.recipe(r, clips)
        loader = stack.enter_context(closing(LoaderWork(built.dataset, recipe, trial.config, trial.stopwatch)))
        name = f"r{r}/{suffix}"
        part = measured.add(Part(f"loader/libav/{name}", f"loader, libav, R = {r}, {what}", r, loader))
        measured.on_files[name], measured.first_batch[part.name] = part, loader.first_batch
    if more and missing_reader("decord2") is None:
        recipe = trial.recipe(VIEWS, clips)
        parts = add_finetuning(files.files, files.h264_fast.dataset, recipe, trial.config, trial.stopwatch, stack)
        measured.finetuning = {name: measured.add(part) for name, part in parts.items()}
