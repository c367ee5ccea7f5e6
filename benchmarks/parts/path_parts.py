"""The parts of the path from encoded clips to trained views, as contestants: decoding, the loader, the model, the whole.

They are the same for all who measure them. What a loader notes of its clips is kept turn by turn, and a profile is made of it.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from benchmarks.parts.results import describe_machine
from benchmarks.parts.stages_alone import DECODE_ONLY, StagesAlone
from benchmarks.parts.stopwatch import Part, Stopwatch, Work
from pipeline.loader import Batch, ClipLoader
from pipeline.machine import usable_cores
from pipeline.report.figures import figures, settings_of, stage_figures
from pipeline.report.loader_page import assemble
from pipeline.sampling import SamplingRecipe, sample_clips
from pipeline.sampling.sampler import Sampler
from pipeline.stage_meters import StageMeters
from train.compute.parallel import Ranks
from train.config import RunConfig
from train.loop import step
from train.stage import Stage
from train.stages.pretraining import PretrainConfig, Pretraining
from train.training import Training

MOST_CLIPS = 512  # of a turn that are decoded once more: their bytes lie in memory
CACHED_BATCHES = 4  # that take turns: one alone would stay in the processor's cache
STEPS = 4096  # after which the guard is read: as seldom as its memory allows
PREFETCH = 3  # batches; 5 s of them, a training run's default, would only make the rests between turns long
SETTLING = 20.0  # seconds that a loader has to find its number of workers
WAITED = 1e-3  # seconds for a batch; less is what a ready one costs


def decoding_processes(config: PretrainConfig) -> int:
    return config.loader.workers or usable_cores()


def tensors_of(batch: Batch) -> dict[str, Any]:
    """Those that the model takes; without masks, the views."""
    tensors = {name: getattr(batch, name) for name in ("views", "visible", "decoded", "loss_weight")}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class FedWork(Work):
    """Takes a loader's batches. `turns` are its notes of them, a turn each."""

    def __init__(self, loader: ClipLoader) -> None:
        self.loader, self.turns = loader, list[StageMeters]()

    def watch(self) -> None:
        """From now on: the turn begins."""
        self.loader.meters = StageMeters()
        self.turns.append(self.loader.meters)

    def figures(self) -> dict[str, Any]:
        """Of all turns; what is about time is that of the last."""
        together = StageMeters()
        for turn in self.turns:
            for batch in turn.batches:
                together.add(batch)
            together.copies.extend(turn.copies)
        loader = self.loader
        return figures(together, loader.manifest, loader.recipe, loader.workers, loader.failures, window=self.turns[-1])


class LoaderWork(FedWork):
    """`ClipLoader` as a trainer uses it, and no model."""

    def __init__(
        self,
        dataset: Path | str,
        recipe: SamplingRecipe,
        config: RunConfig,
        stopwatch: Stopwatch,
        *,
        sampler: Sampler | None = None,
        clips_per_batch: int | None = None,
        decoder: Literal["auto", "libav", "dali"] = "libav",
    ) -> None:
        began = stopwatch.now()
        super().__init__(
            ClipLoader(
                dataset,
                recipe,
                sampler=sampler,
                device=stopwatch.device,
                clips_per_batch=clips_per_batch,
                workers=config.loader.workers,
                prefetch=config.loader.prefetch or PREFETCH,
                decoder=decoder,
            )
        )
        batch = next(self.loader)
        self.first_batch = stopwatch.now() - began  # seconds from making the loader to its first batch
        # on a CPU it lies in the loader's memory, which a later batch overwrites
        self.first = replace(batch, **{name: tensor.clone() for name, tensor in tensors_of(batch).items()})
        while not self.loader.tuning.settled and stopwatch.now() - began < SETTLING:
            next(self.loader)

    def prepare(self) -> None:
        """Take what lies ready, until batches have to be waited for; not one only, which a busy machine may have held up."""
        self.loader.meters = None
        in_a_row = taken = 0
        while taken <= self.loader.prefetch or (in_a_row < 2 and taken < 1000):
            waited = self.loader.wait_seconds
            next(self.loader)
            taken += 1
            in_a_row = in_a_row + 1 if self.loader.wait_seconds - waited > WAITED else 0
        self.watch()

    def work(self) -> int:
        """A batch."""
        return len(next(self.loader).positions)

    def own_ms(self) -> list[float]:
        """What a clip takes of a core beside decoding, in ms, of every turn: planning, reading, opening, RGB, crops."""
        found = []
        for records in (turn.records() for turn in self.turns):
            stages = {stage["name"]: stage["core_ms"] for stage in stage_figures(records)}
            found.append(float((records["cpu"] + records["plan"]).mean()) / 1e6 - stages["decode"])
        return found

    def close(self) -> None:
        self.loader.close()


class DecodeWork(Work):
    """What the loader has delivered in its last turn, decoded once more and nothing else: no reading, no checking, no crops.
    In as many processes as the loader has."""

    def __init__(self, loader: LoaderWork, seconds: float) -> None:
        self.source, self.seconds = loader, seconds
        self.stages = StagesAlone(loader.loader.manifest, loader.loader.recipe, loader.loader.workers)

    def prepare(self) -> None:
        """The processes read the clips into their memory; without those that stood in for others."""
        manifest, recipe = self.source.loader.manifest, self.source.loader.recipe
        delivered = []
        for batch in self.source.turns[-1].batches:
            samples = sample_clips(manifest, recipe, batch.epoch, batch.positions, np.zeros_like(batch.positions))
            delivered += [samples.one(i) for i in np.flatnonzero(samples.rows == batch.rows).tolist()]
        if not delivered:
            raise RuntimeError("no clip was delivered in its own place; look at the dataset with dataset_builders/verify.py")
        self.stages.share(delivered[:MOST_CLIPS])

    def work(self) -> int:
        """For as long as a turn lasts."""
        return sum(clips for clips, _ in self.stages.run(DECODE_ONLY, self.seconds))

    def close(self) -> None:
        self.stages.close()


class ModelWork(Work):
    """The training step, on one batch in memory.

    The learning rate stays 0: it costs the same, and a batch seen a thousand times cannot make the weights run away.
    """

    def __init__(self, stage: Stage, batch: Batch, ranks: Ranks) -> None:
        self.training, self.device = Training(stage, ranks, memory=STEPS), ranks.device
        self.model, self.passes, self.steps = self.training.model, self.training.passes, 0
        self.cached = itertools.repeat(batch)
        for _ in range(2):  # compiles on a GPU; makes AdamW's moments
            self.work()

    def work(self) -> int:
        """A step."""
        return self.step(self.cached)

    def step(self, batches: Iterator[Batch]) -> int:
        """The loop's; returns its clips."""
        clips = 0

        def take() -> Batch:
            nonlocal clips
            batch = next(batches)
            clips += len(batch.positions)
            return batch

        self.steps += 1
        step(self.training, self.steps, take)
        if self.steps % STEPS == 0:
            self.training.guard.read()  # as where a line of the log is due
        return clips


class CachedWork(Work):
    """The same step, fed with real batches that lie in the host's memory: what a loader without any cost would give."""

    def __init__(self, model: ModelWork, loader: ClipLoader) -> None:
        self.model, self.batches = model, list[Batch]()
        for batch in itertools.islice(loader, CACHED_BATCHES):
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors_of(batch).items()}
            if model.device.type == "cuda":
                copies = {name: tensor.pin_memory() for name, tensor in copies.items()}
            self.batches.append(replace(batch, **copies))
        self.given = self.give()

    def give(self) -> Iterator[Batch]:
        """One after the other without end, on the model's device."""
        for batch in itertools.cycle(self.batches):
            tensors = tensors_of(batch).items()
            yield replace(batch, **{name: tensor.to(self.model.device, non_blocking=True) for name, tensor in tensors})

    def work(self) -> int:
        """A step."""
        return self.model.step(self.given)


class EndToEndWork(FedWork):
    """The same step, fed by the loader: training."""

    def __init__(self, model: ModelWork, loader: ClipLoader, stopwatch: Stopwatch) -> None:
        super().__init__(loader)
        self.model, self.stopwatch = model, stopwatch
        self.seconds = self.waited = 0.0  # on the clock

    def prepare(self) -> None:
        """As many steps as use up what lies ready, and no more than a turn's time: the ring stays full if the model limits."""
        self.loader.meters = None
        began = self.stopwatch.now()
        for _ in range(self.loader.prefetch // self.model.passes + 2):
            self.model.step(self.loader)
            if self.stopwatch.now() - began > self.stopwatch.seconds:
                break
        self.watch()

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

    def figures(self) -> dict[str, Any]:
        """The same, with the waiting of all turns: one turn may be a single step, of which the notes tell none."""
        found = super().figures()
        return found | {"batches": found["batches"] | {"wait_share": min(1.0, self.data_wait)}}


def training_parts(config: PretrainConfig, fed: LoaderWork, stopwatch: Stopwatch, ranks: Ranks) -> dict[str, Part]:
    """The model on one batch, on batches from memory, and fed by the loader."""
    model, views = ModelWork(Pretraining(config), fed.first, ranks), config.views.views_per_clip
    return {
        "model": Part("model", "model alone", views, model),
        "cached": Part("cached", "batches from memory", views, CachedWork(model, fed.loader)),
        "together": Part("end_to_end", "end to end", views, EndToEndWork(model, fed.loader, stopwatch)),
    }


def profile(parts: Mapping[str, Part], title: str, first_batch: float, **more: Any) -> dict[str, Any]:
    """What was measured of a "loader" and, where a model took part, of `training_parts`: a loader's profile (`loader_page`),
    with what limits. `more` are others of its parts; a `no_model` is why none took part."""
    alone, reason = parts["loader"].work, more.pop("no_model", None)
    assert isinstance(alone, FedWork)
    training = parts["together"].work if "together" in parts else None
    neighbours = median(cores for part in parts.values() for cores in part.neighbours)
    rounds = {name: [rate * part.views_per_clip for rate in part.rates] for name, part in parts.items()}
    rates = {name: {"median": part.views, "rounds": rounds[name]} for name, part in parts.items()}
    return assemble(
        manifest=alone.loader.manifest,
        recipe=alone.loader.recipe,
        loader=alone.figures(),
        run=training.figures() if isinstance(training, FedWork) else None,
        rates=rates,
        settings={**settings_of(alone.loader), "first_batch_s": first_batch, "neighbours": neighbours, "no_model": reason},
        machine=describe_machine(),
        title=title,
        **more,
    )
