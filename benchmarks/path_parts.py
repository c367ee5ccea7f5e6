"""The parts of the path from encoded clips to trained views, each measured alone, and the whole."""

import itertools
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks.stopwatch import REPETITIONS, Part, Stopwatch
from dataset_builders.executors import usable_cores
from pipeline.decode import ClipRequest, DecodeError, decode_frames, decode_libav
from pipeline.loader import Batch, ClipLoader
from pipeline.manifest import Manifest
from pipeline.sampling import sample_clips
from pipeline.storage import ShardReader
from train.config import PretrainConfig
from train.optimizer import build_optimizer
from train.parallel import Ranks, build_model
from train.pretrain import guarded_step

MOST_CLIPS = 256  # whose bytes lie in memory for the decoding parts
CROPS = (1, 4)  # R


def decoding_threads(config: PretrainConfig) -> int:
    return config.views.threads or usable_cores()


def measure_decoding(config: PretrainConfig, stopwatch: Stopwatch) -> list[Part]:
    """The needed frames as RGB and nothing else; then cropped and resized into one view; then into four. In threads, on
    the same clips, whose bytes are in memory."""
    stopwatch.bar.set_description("reading clips")
    assert config.data is not None
    requests, unreadable = sampled_requests(Manifest(config.data), config)
    size, frames, threads = config.model.input_size, config.model.num_frames, decoding_threads(config)
    buffers: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()  # one a thread, filled again and again as a ring is
    for _ in range(threads):
        buffers.put(np.zeros((max(CROPS), frames, size, size, 3), np.uint8))

    def decode(request: ClipRequest) -> None:
        decode_frames(request.clip, request.data, np.unique(request.frames))

    def crop(request: ClipRequest, views: int) -> None:
        buffer = buffers.get()
        try:
            decode_libav(replace(request, boxes=request.boxes[:views]), buffer[:views])
        finally:
            buffers.put(buffer)

    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # parallel over clips, as in the loader
    try:
        with ThreadPoolExecutor(threads) as pool:

            def one_pass(work: Callable[[ClipRequest], None]) -> int:
                return sum(1 for _ in pool.map(work, requests))

            requests = usable_requests(requests, unreadable, partial(crop, views=max(CROPS)), pool, threads, stopwatch)
            passes = [partial(one_pass, decode), *(partial(one_pass, partial(crop, views=views)) for views in CROPS)]
            rates = stopwatch.rates_in_turns("decode and crop", passes)
    finally:
        torch.set_num_threads(torch_threads)
    views = config.views.views_per_clip
    alone = Part("decode", "decode only", rates[0], views)
    crops = zip(CROPS, rates[1:], strict=True)
    return [alone, *(Part(f"decode_crop/r{r}", f"decode + crop, R = {r}", of_r, r, alone) for r, of_r in crops)]


def sampled_requests(manifest: Manifest, config: PretrainConfig) -> tuple[list[ClipRequest], list[str]]:
    """What the first positions of epoch 0 ask of the decoder, with crops for four views -> (requests, what is unreadable)."""
    recipe = replace(config.sampling, views_per_clip=max(CROPS), views_per_step=max(CROPS))
    positions = np.arange(min(len(manifest), MOST_CLIPS))
    samples = sample_clips(manifest, recipe, 0, positions, np.zeros_like(positions))
    requests, bad = [], []
    with closing(ShardReader(manifest.root)) as reader:
        for row, frames, boxes in zip(samples.rows, samples.frames, samples.boxes, strict=True):
            clip = manifest.clip(int(row))
            try:
                requests.append(ClipRequest(clip, reader.read(clip), frames, boxes))
            except OSError as error:
                bad.append(f"{clip.key}: {error}")
    return requests, bad


def usable_requests(
    requests: list[ClipRequest],
    bad: list[str],
    work: Callable[[ClipRequest], None],
    pool: ThreadPoolExecutor,
    threads: int,
    stopwatch: Stopwatch,
) -> list[ClipRequest]:
    """The warm-up: as many clips as a repetition has time for, without those that fail, as the loader would leave them out.

    Says how many were left out besides the `bad` ones. Raises ValueError if none is left.
    """
    good: list[ClipRequest] = []
    bad = list(bad)

    def attempt(request: ClipRequest) -> DecodeError | None:
        try:
            work(request)
        except DecodeError as error:
            return error
        return None

    began = time.perf_counter()
    for start in range(0, len(requests), threads):
        chunk = requests[start : start + threads]
        for request, error in zip(chunk, pool.map(attempt, chunk), strict=True):
            if error is None:
                good.append(request)
            else:
                bad.append(f"{request.clip.key}: {error}")
        if good and time.perf_counter() - began > stopwatch.seconds / REPETITIONS:
            break
    if bad:
        said = f"{len(bad)} of the dataset's clips cannot be read or decoded, such as {bad[0]}"
        if not good:
            raise ValueError(said)
        stopwatch.bar.write(f"left out while decoding alone: {said}")
    return good


def open_loader(config: PretrainConfig, ranks: Ranks) -> ClipLoader:
    """The loader as train/pretrain.py makes it for one process."""
    assert config.data is not None
    return ClipLoader(
        config.data,
        config.sampling,
        device=ranks.device,
        clips_per_batch=config.sampling.clips_per_step // config.accumulation(ranks.world_size),
        threads=config.views.threads,
        prefetch=config.views.prefetch,
    )


def measure_loader(config: PretrainConfig, decode: Part, ranks: Ranks, stopwatch: Stopwatch) -> tuple[Part, float, Batch]:
    """Batches on the device and no model -> (the part, seconds from making the loader to its first batch, a batch)."""
    stopwatch.bar.set_description("starting the loader")
    began = stopwatch.now()
    with closing(open_loader(config, ranks)) as loader:
        batch = next(loader)
        first_batch = stopwatch.now() - began
        tensors = {name: getattr(batch, name).clone() for name in ("views", "visible", "decoded", "loss_weight")}
        kept = replace(batch, **tensors)  # on a CPU it lay in the loader's memory, which a later batch overwrites

        def work() -> int:
            return len(next(loader).positions)

        stopwatch.warm_up("loader: warm-up", work, config.views.prefetch + 1)
        rates = stopwatch.rates("loader", work)
    return Part("loader", "loader alone", rates, config.views.views_per_clip, decode), first_batch, kept


def measure_training(config: PretrainConfig, batch: Batch, ranks: Ranks, stopwatch: Stopwatch) -> tuple[Part, Part, float]:
    """The training step on one batch in memory, and fed by the loader -> (model, end to end, share of the time in which
    the latter waited for data).

    The learning rate stays 0: it costs the same, and a batch seen a thousand times cannot make the weights run away.
    """
    stopwatch.bar.set_description("building the model")
    model = build_model(config.model, config.compute, config.seed, ranks)
    optimizer = build_optimizer(
        model.named_parameters(),
        weight_decay=config.optim.weight_decay,
        betas=config.optim.betas,
        eps=config.optim.eps,
    )
    parameters = list(model.parameters())
    passes = config.accumulation(ranks.world_size)

    def step(batches: Iterator[Batch]) -> int:
        """As in the loop of train/pretrain.py; returns its clips."""
        clips, total = 0, torch.zeros((), device=ranks.device)
        for part in itertools.islice(batches, passes):
            loss = model(part.views, part.visible, part.decoded, part.loss_weight) / passes
            loss.backward()
            total += loss.detach()
            clips += len(part.positions)
        guarded_step(optimizer, parameters, config.optim.clip_grad, total)
        return clips

    views = config.views.views_per_clip
    cached = itertools.repeat(batch)
    stopwatch.warm_up("model: warm-up", lambda: step(cached), 3)  # compiles on a GPU; makes AdamW's moments
    alone = Part("model", "model alone", stopwatch.rates("model", lambda: step(cached)), views)
    with closing(open_loader(config, ranks)) as loader:
        # what was decoded ahead is used up
        stopwatch.warm_up("end to end: warm-up", lambda: step(loader), -(-(config.views.prefetch + 1) // passes))
        waited, began = loader.wait_seconds, stopwatch.now()
        rates = stopwatch.rates("end to end", lambda: step(loader))
        data_wait = (loader.wait_seconds - waited) / (stopwatch.now() - began)
    return alone, Part("end_to_end", "end to end", rates, views, alone), data_wait
