"""The parts of the path from encoded clips to trained views, as contestants: decoding, the loader, the model, the whole."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.parts.decode_only import DecodeOnly, Encoded
from benchmarks.parts.stopwatch import Stopwatch
from pipeline.loader import Batch, ClipLoader
from pipeline.machine import usable_cores
from pipeline.sampling import SamplingRecipe, sample_clips
from pipeline.storage.shards import ShardReader
from train.compute.optimizer import pretraining_optimizer
from train.compute.parallel import Ranks, build_model
from train.config import PretrainConfig
from train.watch.guard import guarded_step

MOST_CLIPS = 512  # whose bytes lie in the memory of each process that decodes them alone
PREFETCH = 3  # batches; 5 s of them, a training run's default, would only make the rests between turns long
SETTLING = 20.0  # seconds that a loader has to find its number of workers
WAITED = 1e-3  # seconds for a batch; less is what a ready one costs


def decoding_processes(config: PretrainConfig) -> int:
    return config.compute.workers or usable_cores()


class LoaderWork:
    """`ClipLoader` as a trainer uses it, and no model. `delivered` are the clips of the last turn: (epoch, positions, rows)."""

    def __init__(
        self,
        dataset: Path | str,
        recipe: SamplingRecipe,
        config: PretrainConfig,
        stopwatch: Stopwatch,
        *,
        clips_per_batch: int | None = None,
        decoder: Literal["auto", "libav", "dali"] = "libav",
    ) -> None:
        began = stopwatch.now()
        self.loader = ClipLoader(
            dataset,
            recipe,
            device=stopwatch.device,
            clips_per_batch=clips_per_batch,
            workers=config.compute.workers,
            prefetch=config.compute.prefetch or PREFETCH,
            decoder=decoder,
        )
        batch = next(self.loader)
        self.first_batch = stopwatch.now() - began  # seconds from making the loader to its first batch
        # on a CPU it lies in the loader's memory, which a later batch overwrites
        tensors = {name: getattr(batch, name).clone() for name in ("views", "visible", "decoded", "loss_weight")}
        self.first = replace(batch, **tensors)
        self.delivered: list[tuple[int, np.ndarray, np.ndarray]] = []
        while not self.loader.tuning.settled and stopwatch.now() - began < SETTLING:
            next(self.loader)

    def prepare(self) -> None:
        """Take what lies ready, until batches have to be waited for; not one only, which a busy machine may have held up."""
        in_a_row = taken = 0
        while taken <= self.loader.prefetch or (in_a_row < 2 and taken < 1000):
            waited = self.loader.wait_seconds
            next(self.loader)
            taken += 1
            in_a_row = in_a_row + 1 if self.loader.wait_seconds - waited > WAITED else 0
        self.delivered = []

    def work(self) -> int:
        """A batch."""
        batch = next(self.loader)
        self.delivered.append((batch.epoch, batch.positions.numpy(), batch.rows.numpy()))
        return len(batch.positions)

    def close(self) -> None:
        self.loader.close()


class DecodeWork:
    """What the loader has delivered in its last turn, decoded once more and nothing else: no reading, no checking, no crops.
    In as many processes as the loader has."""

    def __init__(self, loader: LoaderWork) -> None:
        self.loader = loader
        self.decoding = DecodeOnly(loader.loader.workers)
        self.clips: list[Encoded] = []

    def prepare(self) -> None:
        """Read the clips into memory; without those that stood in for others."""
        manifest, recipe = self.loader.loader.manifest, self.loader.loader.recipe
        reader, data = ShardReader(manifest.root), dict[int, bytes]()
        self.clips.clear()
        for epoch, positions, delivered in self.loader.delivered:
            samples = sample_clips(manifest, recipe, epoch, positions, np.zeros_like(positions))
            for row, frames, got in zip(samples.rows.tolist(), samples.frames, delivered.tolist(), strict=True):
                if row == got and len(self.clips) < MOST_CLIPS:
                    clip = manifest.clip(row)
                    if row not in data:
                        data[row] = bytes(reader.read(clip))
                    self.clips.append((clip, data[row], np.unique(frames)))
        reader.close()
        if not self.clips:
            raise RuntimeError("no clip was delivered in its own place; look at the dataset with `tubecell verify`")
        self.decoding.load(self.clips)

    def work(self) -> int:
        """All of them."""
        return self.decoding.decode()

    def close(self) -> None:
        self.decoding.close()


class ModelWork:
    """The training step, on one batch in memory.

    The learning rate stays 0: it costs the same, and a batch seen a thousand times cannot make the weights run away.
    """

    def __init__(self, config: PretrainConfig, batch: Batch, ranks: Ranks) -> None:
        self.model = build_model(config.model, config.compute, config.seed, ranks)
        self.optimizer = pretraining_optimizer(self.model, config.optim)
        self.parameters = list(self.model.parameters())
        self.passes, self.clip_grad, self.device = config.accumulation(ranks.world_size), config.optim.clip_grad, ranks.device
        self.cached = itertools.repeat(batch)
        for _ in range(2):  # compiles on a GPU; makes AdamW's moments
            self.work()

    def prepare(self) -> None:
        """It is always ready."""

    def work(self) -> int:
        """A step."""
        return self.step(self.cached)

    def step(self, batches: Iterator[Batch]) -> int:
        """As in the loop of train/pretrain.py; returns its clips."""
        clips, total = 0, torch.zeros((), device=self.device)
        for part in itertools.islice(batches, self.passes):
            loss = self.model(part.views, part.visible, part.decoded, part.loss_weight) / self.passes
            loss.backward()
            total += loss.detach()
            clips += len(part.positions)
        guarded_step(self.optimizer, self.parameters, self.clip_grad, total)
        return clips

    def close(self) -> None:
        """Nothing is open."""


class EndToEndWork:
    """The same step, fed by the loader: training."""

    def __init__(self, model: ModelWork, loader: ClipLoader, stopwatch: Stopwatch, prefetch: int) -> None:
        self.model, self.loader, self.stopwatch, self.prefetch = model, loader, stopwatch, prefetch
        self.seconds = self.waited = 0.0  # on the clock

    def prepare(self) -> None:
        """As many steps as use up what lies ready, and no more than a turn's time: the ring stays full if the model limits."""
        began = self.stopwatch.now()
        for _ in range(self.prefetch // self.model.passes + 2):
            self.model.step(self.loader)
            if self.stopwatch.now() - began > self.stopwatch.seconds:
                break

    def work(self) -> int:
        """A step."""
        waited, began = self.loader.wait_seconds, time.perf_counter()
        clips = self.model.step(self.loader)
        self.waited += self.loader.wait_seconds - waited
        self.seconds += time.perf_counter() - began
        return clips

    @property
    def data_wait(self) -> float:
        """Share of the time in which it waited for a batch."""
        return self.waited / self.seconds if self.seconds else 0.0

    def close(self) -> None:
        """Model and loader are others'."""
