"""Batches of uint8 views on the training device, from a decoding process beside the trainer.

    loader = ClipLoader("DATASET", SamplingRecipe(views_per_step=64), device="cuda")
    for batch in loader:            # without end; loader.steps_per_epoch says how long an epoch is
        loss = model(batch.views, batch.visible, batch.decoded, batch.loss_weight)
        state = loader.state()      # after the batch's step: two integers, the ledger and what they belong to; plain JSON

It needs no torch.distributed and no trainer of ours: rank and world size are plain integers. The same dataset version and
recipe give the same bytes of every global batch for any world size and number of workers and restarts.
"""

import contextlib
import json
import math
import os
import pickle
import subprocess
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np
import torch

from pipeline import stop_signals
from pipeline.children import start
from pipeline.console import complain
from pipeline.cuda_context import on_stream, pin
from pipeline.decoding.decode import Decoder, Failure, decode_libav
from pipeline.decoding.decoder_choice import DecoderChoice, choose_decoder
from pipeline.floats import IMAGENET_MEAN, IMAGENET_STD, normalised
from pipeline.labels import Labels
from pipeline.machine import available_memory, ranks_here, ranks_of_job, usable_cores
from pipeline.sampling.notices import notices
from pipeline.sampling.order import order_of
from pipeline.sampling.sampler import Sampler, TrainingSampler
from pipeline.sampling.samples import SamplingRecipe
from pipeline.sampling.splits import ALL, clips_of_split, split_digest
from pipeline.settings import read, setting
from pipeline.stage_meters import BatchMeter, StageMeters
from pipeline.storage.clip_cache import ClipCache
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import PATIENCE
from pipeline.storage.watch import VARIABLE, StorageTrouble, patience
from pipeline.workers.delivery import Delivery, FailedClip
from pipeline.workers.device_decoding import BATCHES_AHEAD, DecodedBatch, DeviceDecoding
from pipeline.workers.ring import Ring, Slot, slot_size
from pipeline.workers.sidecar import Assignment
from pipeline.workers.sidecar import main as sidecar
from pipeline.workers.tuning import MOST_SLOTS, MOST_WORKERS, Tuner, Tuning

SIDECAR = {  # of its environment
    "CUDA_VISIBLE_DEVICES": "",  # libav needs none of the GPU's memory
    # a heap for every thread that reads ahead is full of holes: with 256 MiB of room, 120 of it in use, 669 MiB after
    # 96,000 clips, and growing; from one heap for all never more than 240 (glibc; other libraries pass it by)
    "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1"),
}
MOST_DEATHS = 3  # of the sidecar in a row
MOST_FAILURES, MOST_REMEMBERED = 10_000, 50_000  # of the last ones, 0.4 kB each, and where they were, 0.1 kB
OF_VIEWS, OF_CLIPS = ("views", "visible", "decoded", "loss_weight"), ("positions", "rows", "weight")  # tensors of a batch
BETWEEN_COMPLAINTS = 30.0  # seconds, of a storage in trouble
SILENCE = 240.0  # seconds, besides a clip's time, that a sidecar may say nothing while it is waited for


class LoaderError(RuntimeError):
    """The data cannot go on; the message says why."""


@dataclass(frozen=True, slots=True, repr=False)
class Batch:
    """B clips of R views, n = B · R, the views of a clip adjacent. It is valid until the next batch is asked for: on a CPU it
    lies in the loader's shared memory, on a GPU in DALI's. Work that is queued on it until then is waited for."""

    views: torch.Tensor  # (n, T, H, W, 3), RGB: uint8, or int16 in 128ths of a level, see `recipe.crop_resize`
    visible: torch.Tensor | None  # int64 (n, V), tokens the encoder sees; these three are None in a recipe without masks
    decoded: torch.Tensor | None  # int64 (n, K), tokens the decoder reconstructs, those of the loss first
    loss_weight: torch.Tensor | None  # float32 (n, L), of the first L decoded tokens
    epoch: int  # or pass
    step: int  # of the epoch
    positions: torch.Tensor  # int64 (B,), on the CPU
    rows: torch.Tensor  # int64 (B,) of the manifest, on the CPU
    weight: torch.Tensor  # float32 (B,), 1, or in a finite pass 0 where no clip stands: the views there are black
    loader: "ClipLoader | None" = field(default=None, compare=False)  # that made it

    @property
    def labels(self) -> torch.Tensor:
        """int64 (B,), places in `loader.label_map`, -1 without a label; bool (B, C) if `loader.label_kind` is "multi". On the
        device of the views, of which each clip has R: `labels.repeat_interleave(R, 0)` is a label a view. Where `weight` is 0
        a label means nothing, as a key does: it may be that of another clip."""
        assert self.loader is not None
        labels = torch.from_numpy(self.loader.labels.of(self.rows.numpy()))
        if self.views.device.type == "cuda":
            labels = labels.pin_memory()  # then the host does not wait
        return labels.to(self.views.device, non_blocking=True)

    @property
    def crops(self) -> np.ndarray:
        """What the views show: int64 (B, R, 4), boxes (x, y, width, height) in pixels of a clip's frame."""
        assert self.loader is not None
        return self.loader.sampler.crops_of(self.epoch, self.positions.numpy(), self.rows.numpy())

    @property
    def keys(self) -> list[str]:
        """Of the B clips."""
        assert self.loader is not None
        return [self.loader.manifest.clip(row).key for row in self.rows.tolist()]

    def floats(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        layout: Literal["BCTHW", "BTCHW"] = "BCTHW",
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """The views (n, 3, T, size, size), or (n, T, 3, size, size), on their device: (value / 255 - mean) / std, by default of
        ImageNet. A copy, in one pass, at four times their memory; see `normalised`. Raises ValueError as that does."""
        return normalised(self.views, mean, std, layout, dtype)

    def __repr__(self) -> str:
        tensors = ((name, getattr(self, name)) for name in ("views", "visible", "decoded", "loss_weight"))
        shapes = [f"{name} {_kind(tensor)} {tuple(tensor.shape)}" for name, tensor in tensors if tensor is not None]
        where = f"{self.views.device}, epoch {self.epoch}, step {self.step}"
        return f"Batch({', '.join(shapes)}; {len(self.rows)} clips on {where})"

    def of_clips(self, places: torch.Tensor) -> "Batch":
        """That of some of the B clips alone, int64 (b,), copied."""
        each = torch.arange(len(self.views) // len(self.rows), device=places.device)
        at = (places[:, None] * len(each) + each).flatten()
        taken: dict[str, Any] = {name: None if (of := getattr(self, name)) is None else of[at] for name in OF_VIEWS}
        taken |= {name: (of := getattr(self, name))[places.to(of.device)] for name in OF_CLIPS}
        return replace(self, **taken)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """Where a run stands in its data. `ClipLoader.state` gives it as plain values, and takes them; merged over ranks it serves
    any other world size."""

    epoch: int
    step: int  # of a finite pass: how many of its clips have been taken, on all ranks
    ledger: tuple[tuple[int, int, int], ...]  # (epoch, position, failed attempts)
    dataset: str  # fingerprint
    version: int
    recipe: Mapping[str, Any]
    sampler: str = "training"  # or which finite pass it is
    taken: str = setting("", was="")  # which clips the split takes, see `split_digest`
    annotated: str = setting("", was="")  # what is annotated at key frames, see `KeyFrames.annotated`

    @staticmethod
    def of(values: "Mapping[str, Any] | LoaderState") -> "LoaderState":
        """From what `plain` gave, whatever code did. Raises ValueError if that was newer than this, or is no state."""
        if isinstance(values, LoaderState):
            return values
        if lacking := sorted({"epoch", "step", "ledger", "dataset", "version", "recipe"} - set(values)):
            raise ValueError(f"this is no state of a loader: it lacks {', '.join(lacking)}; give what `loader.state()` gave")
        return read(LoaderState, {**values, "ledger": tuple(map(tuple, values["ledger"]))}, "the loader's state")

    @staticmethod
    def merged(states: "Sequence[Mapping[str, Any] | LoaderState]") -> "LoaderState":
        """One state for all ranks: their ledgers are disjoint."""
        read_states = [LoaderState.of(state) for state in states]
        return replace(read_states[0], ledger=tuple(sorted({entry for state in read_states for entry in state.ledger})))

    def plain(self) -> dict[str, Any]:
        """Lists, strings and numbers, which `json` and `torch.load(weights_only=True)` take."""
        return json.loads(json.dumps(asdict(self)))


class ClipLoader:
    """An endless iterator over this rank's batches, resumable after any step. A `state` that older code wrote goes on as it was
    begun: see `recipe.arithmetic` for what that means.

    With an `EvaluationSampler` it ends after `len(loader)` batches, as many on every rank. Another `for` then begins the next
    pass, with decoding processes of its own; one that was left early goes on. `missing` names this rank's clips that could not
    be decoded in the pass, `num_clips` says of how many on all ranks. A pass that is resumed tries again what failed before.
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str],
        recipe: SamplingRecipe,
        *,
        sampler: Sampler | None = None,
        rank: int = 0,
        world_size: int = 1,
        state: Mapping[str, Any] | LoaderState | None = None,
        device: str | torch.device = "cpu",
        clips_per_batch: int | None = None,
        workers: int | None = None,
        prefetch: int | None = None,
        memory_budget: int | None = None,
        decoder: Literal["auto", "libav", "dali"] | Decoder = "auto",
        clips_per_second: float | None = None,
        cache: ClipCache | None = None,
        clip_timeout: float = 60.0,
        max_failure_share: float = 0.02,
        label_map: Sequence[str] | str | os.PathLike[str] | None = None,
    ) -> None:
        """`state` is what `state()` gave, of one rank or of all, merged. `sampler` is the endless one of training, or an
        `EvaluationSampler`; `clips_per_batch` splits a rank's share of a step for gradient accumulation (default: all of it at
        once), or is that share, in a finite pass; `workers` decode and `prefetch` batches are decoded ahead; either is found
        while the loader works, where it is None (see `workers.tuning`; what became of it: `tuning`), in `memory_budget` bytes
        for the batches (default: a quarter of what is available, of the machine or the container, shared by the ranks here:
        LOCAL_WORLD_SIZE); `decoder` is as in `choose_decoder` (what became of it: `decoder_choice`), or a function that the
        sidecar calls for every clip; `clips_per_second` are what a step of this rank takes, where that is known: with "auto",
        whether cores can feed it; `cache` keeps clips of a dataset behind a URL (default: what TUBECELL_CACHE asks for, see
        `ClipCache`); a clip that takes longer than `clip_timeout` seconds is given up; more than `max_failure_share` of failed
        clips (and 16) end the run, unless it is a finite pass; `label_map`, names of classes or a JSON file of them, stands in
        for the dataset's own.

        Raises ValueError if the dataset, the recipe, the world size and the state do not fit each other.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of world_size {world_size}: allowed are ranks from 0 to less than world_size")
        state = None if state is None else LoaderState.of(state)
        self.manifest = Manifest(dataset, state.version if state else None)
        if state:
            self._check(state)
            recipe = recipe.going_on(SamplingRecipe.of(state.recipe))
            self._check_split(state, recipe)
        self.recipe, self.rank, self.world_size = recipe, rank, world_size
        self.device = torch.device(device)
        self.sampler = (sampler or TrainingSampler()).of(self.manifest, recipe)
        if state and state.sampler != str(self.sampler):
            raise ValueError(f"the state is one of {state.sampler}, and this loader is for {self.sampler}; take its sampler")
        if state and state.annotated and state.annotated != self.sampler.annotated:
            raise ValueError(
                f"other boxes, actions or key frames are annotated in {self.manifest.place} than when the state was written: "
                "restore its boxes.parquet and key_frames.parquet (detections may be others), or begin anew"
            )
        self._share = self.sampler.share(rank, world_size, clips_per_batch)
        self.clips = self._share if self.sampler.finite else clips_per_batch or self._share
        if self._share % self.clips:
            raise ValueError(f"clips_per_batch {self.clips} does not divide this rank's {self._share} clips of a step")
        self.batches_per_step = self._share // self.clips
        self._stride, self._end = self.sampler.stride(self._share, world_size), self.sampler.epoch_end
        self.steps_per_epoch = -(-self._end // self._stride)
        # N: of a finite pass on all ranks; in training, of the split
        self.num_clips = self._end if self.sampler.finite else order_of(self.manifest, recipe).num_clips
        self.notices = notices(self.manifest, recipe) if rank == 0 else []  # it reads columns: 3.4 s for 100 million clips
        for notice in self.notices:
            complain(f"{self.manifest.place}: {notice}", once=True)
        if not self.sampler.picked and world_size == 1 < ranks_of_job() and os.environ.get("RANK", "0") == "0":
            complain(
                f"warning: WORLD_SIZE is {ranks_of_job()}, and a loader was made for a world_size of 1: if every rank makes "
                "one, all of them take the same clips; give it rank and world_size",
                once=True,
            )
        self._label_map = label_map
        if recipe.randaugment and not self.sampler.finite and decoder is not decode_libav:
            if decoder not in ("auto", "libav"):
                named = decoder if isinstance(decoder, str) else getattr(decoder, "__name__", type(decoder).__name__)
                raise ValueError(
                    f"decoder {named!r} gives no whole frames for RandAugment {recipe.randaugment!r}; take 'libav' or 'auto', "
                    "or have it done on the training device: --augment.randaugment-by device"
                )
            decoder = "libav"
        self.decoder_choice = (
            DecoderChoice(getattr(decoder, "__name__", type(decoder).__name__))
            if callable(decoder)
            else choose_decoder(
                self.manifest,
                self.device,
                decoder,
                clips_of_split(self.manifest, recipe.split),
                cores=usable_cores(),
                wanted=clips_per_second,
            )
        )
        for slow in self.decoder_choice.slow if rank == 0 else ():
            complain(f"warning: {slow}", once=True)
        on_device = self.decoder_choice.name in ("dali", "both") and not callable(decoder)
        self.decoder = decoder if callable(decoder) else decode_libav  # the sidecar's
        self._cache = cache or ClipCache.asked_for()
        self.clip_timeout, self.max_failure_share = clip_timeout, max_failure_share
        self.failures: list[FailedClip] = []  # the last MOST_FAILURES or more; the trainer writes them to failures.jsonl
        self.missing: list[FailedClip] = []  # of this pass, if it is a finite one
        self.num_failures = 0  # since the start of this process
        self._reasons: Counter[Failure] = Counter()
        patience()  # refuses what is no number
        self._trouble_told = -math.inf  # when
        self.wait_seconds = 0.0  # spent waiting for data, in total
        self.meters: StageMeters | None = None  # give it one, to know where the time of clips and batches goes
        self.sampled_frames = self.repeated_frames = 0  # of clips handed out; repeated: the padding of short clips
        self._epoch, self._mark, self._part = (state.epoch, state.step, 0) if state else (0, 0, 0)
        self._pass = self._epoch if self.sampler.finite else None  # a finite one, the present
        self._phase = self._mark % self._stride  # not 0 in a pass that other ranks began
        self._weights = torch.ones(self.clips, device=self.device)  # of a batch of training
        self._ledger: dict[tuple[int, int], int] = {}
        if state:
            self._ledger = {(epoch, position): attempts for epoch, position, attempts in state.ledger}
        cores, ahead = usable_cores(), BATCHES_AHEAD if on_device else 0
        self._most_workers = workers or MOST_WORKERS * cores
        views, pixels = self.sampler.views_per_clip, self.sampler.pixels
        batch_bytes = slot_size(recipe, self.clips, views, pixels)
        budget = available_memory() // 4 // ranks_here() if memory_budget is None else memory_budget
        deep = None if prefetch is None else prefetch + ahead
        slots = max(2, min(MOST_SLOTS, budget // batch_bytes)) + ahead if deep is None else deep + 1
        if memory_budget is not None and slots * batch_bytes > budget:
            raise ValueError(
                f"memory_budget {budget}: {slots} batches are the fewest that will do, and take {slots * batch_bytes} bytes; "
                f"give as much, or lower clips_per_batch{'' if prefetch is None else ' or prefetch'}"
            )
        self._tuner = Tuner(
            cores=cores, workers=workers, prefetch=deep, batch_bytes=batch_bytes, slots=slots, memory_budget=budget
        )
        self.tuning: Tuning = self._tuner.tuning  # what the loader works with now
        self._ring = Ring(recipe, self.clips, slots, views_per_clip=views, pixels=pixels)
        self._pinned: set[int] = set()  # addresses of slots
        self._consumed = self._ready = 0  # batches since the start of this process
        self._holding = False  # a batch is in the caller's hands
        self._deaths = 0  # of the sidecar in a row, without a batch delivered
        self._copies: torch.cuda.Stream | None = None
        self._copying: torch.cuda.Event | None = None
        self._copied: torch.cuda.Event | None = None
        self._device_decoding: DeviceDecoding | None = None
        self._batch: DecodedBatch | None = None  # in the caller's hands
        self._retries: set[int] = set()  # places of the next batch that the sidecar was asked to fill anew
        if on_device:  # what is left of the ring is small, and copied by a thread: it is not pinned
            self._device_decoding = DeviceDecoding(self.device, workers or cores, recipe.view_size, pixels)
        elif self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)
        weakref.finalize(self, self._ring.close)
        self._start()
        if self._device_decoding:
            try:
                self._device_decoding.wait_until_started()
            except ValueError:
                self.close()
                raise

    def __iter__(self) -> Iterator[Batch]:
        if self._is_through:
            if self._holding:
                self._release()
            self._closer()
            self._pass, self._phase, self.missing = self._epoch, 0, []
            self._ledger.clear()
            self._start()
        return self

    def __len__(self) -> int:
        """Batches of a whole finite pass on this rank, as on every other. Raises TypeError if it has no end."""
        if not self.sampler.finite:
            raise TypeError("training goes on without end; steps_per_epoch and batches_per_step say how long an epoch is")
        return self.steps_per_epoch * self.batches_per_step

    @property
    def _is_through(self) -> bool:
        return self._pass is not None and self._epoch > self._pass

    def __next__(self) -> Batch:
        """The next batch. Raises LoaderError if too many clips fail, or the decoding process cannot go on."""
        if self._holding:
            self._release()
        if self._is_through:
            self._closer()
            raise StopIteration
        asked = time.perf_counter_ns()
        while self._ready == self._consumed:
            self._listen(timeout=0.2)
        slot = self._ring[self._consumed]
        if self._device_decoding:
            self._batch = self._decoded(self._device_decoding, slot)
        got = time.perf_counter_ns()
        self.wait_seconds += (got - asked) / 1e9
        self._listen(timeout=0)
        if self.meters:
            self.meters.add(self._meter(slot, asked, got))
        batch = self._tensors(slot)
        self.sampled_frames += int(slot.weight.sum()) * self.sampler.frames_per_clip
        self.repeated_frames += int(slot.repeated.sum())
        self._holding = True
        self._part += 1
        if self._part == self.batches_per_step:
            self._part, self._mark = 0, self._mark + self._stride
            if self._mark >= self._end:
                self._mark, self._epoch = 0, self._epoch + 1
        return batch

    def __repr__(self) -> str:
        recipe = self.recipe
        clips = f"{self.num_clips} clips of {'all splits' if recipe.split == ALL else f'split {recipe.split}'}"
        clips = str(self.sampler) if self.sampler.finite else clips
        batches = f"{self.clips} clips x {self.sampler.views_per_clip} views a batch of rank {self.rank} of {self.world_size}"
        where = f"epoch {self._epoch}, step {self._mark // self._stride} of {self.steps_per_epoch}"
        return (
            f"ClipLoader({self.manifest.place}, version {self.manifest.version}: {clips}; {batches} on {self.device}; {where}; "
            f"decoder {self.decoder_choice.name})"
        )

    def epochs(self, n: int) -> "Epochs":
        """This loader's batches up to the end of an epoch, the nth: the one in which it stands counts as the first. Of finite
        passes, too, where the next begins if one is through. Raises ValueError for less than one."""
        return Epochs(self, n)

    def state(self) -> dict[str, Any]:
        """Where the next step begins: plain values, for JSON; that of all ranks is `LoaderState.merged(states).plain()`. Only
        of whole steps: raises ValueError before a step's last batch has been taken."""
        if self._part:
            raise ValueError(
                f"state() in the middle of a step, of which {self._part} of {self.batches_per_step} batches have been taken; "
                "call it after the last"
            )
        first = (self._epoch, self._mark * self.recipe.clips_per_step)
        ledger = tuple((*where, attempts) for where, attempts in sorted(self._ledger.items()) if where >= first)
        return LoaderState(
            epoch=self._epoch,
            step=self._mark,
            ledger=() if self.sampler.finite else ledger,
            dataset=self.manifest.fingerprint,
            version=self.manifest.version,
            recipe=asdict(self.recipe),
            sampler=str(self.sampler),
            taken=split_digest(self.manifest, self.recipe.split),
            annotated=self.sampler.annotated,
        ).plain()

    @cached_property
    def labels(self) -> Labels:
        """What the clips are labelled; read when it is first asked for. Raises ValueError for a label map that is none."""
        labels = Labels(self.manifest, self.recipe.split, self._label_map)
        if labels.unknown:
            self.notices.append(
                f"{labels.unknown:,} of {self.num_clips:,} clips have a label that the label map of {len(labels.names):,} "
                f"classes lacks, such as {labels.example!r}: they count as without it"
            )
            if self.rank == 0:
                complain(f"{self.manifest.place}: {self.notices[-1]}", once=True)
        return labels

    @property
    def label_kind(self) -> Literal["none", "single", "multi"]:
        """Of `batch.labels`: a number each, "single", or of a class each whether the clip shows it, "multi"."""
        return self.labels.kind

    @property
    def label_map(self) -> list[str]:
        """Names of the C classes, in their order: the official one where the dataset's builder wrote one, else sorted."""
        return self.labels.names

    def keys(self, epoch: int, step: int, part: int | None = None) -> list[str]:
        """Of this rank's clips of a step that was taken since the start of this process: of one of its batches, or of all.

        They are computed, not remembered; a clip that failed goes by its substitute, while it is one of
        the last MOST_REMEMBERED that did.
        """
        positions = self.sampler.positions(step * self._stride + self._phase, self.rank, self.world_size, self._share)
        if part is not None:
            positions = positions[part * self.clips : (part + 1) * self.clips]
        attempts = np.array([self._ledger.get((epoch, position), 0) for position in positions.tolist()])
        rows = self.sampler.clips(epoch, positions, attempts).rows
        return [self.manifest.clip(row).key for row in rows.tolist()]

    @property
    def workers(self) -> int:
        """That decode now."""
        return self.tuning.workers

    @property
    def prefetch(self) -> int:
        """Batches that are decoded ahead now, at most."""
        return self.tuning.prefetch

    def close(self) -> None:
        """End the decoding process, and the thread. Also done when the loader is garbage."""
        if self._device_decoding:
            self._device_decoding.close()
        self._closer()

    def _check(self, state: LoaderState) -> None:
        if state.dataset != self.manifest.fingerprint:
            raise ValueError(
                f"the state belongs to another dataset: fingerprint {state.dataset}, version {state.version}; "
                f"{self.manifest.place} has {self.manifest.fingerprint}; give the dataset that the run began with"
            )

    def _check_split(self, state: LoaderState, recipe: SamplingRecipe) -> None:
        if state.taken != split_digest(self.manifest, recipe.split):
            raise ValueError(
                f"split {recipe.split!r} of {self.manifest.place} has other clips than when the state was written: the "
                "manifest was changed; restore it, or begin anew"
            )

    def _start(self) -> None:
        """Start a sidecar at the first batch that is not ready."""
        with stop_signals.blocked():  # not mortal: the thread that starts it may end before the loader
            process, ours = start(sidecar, pass_fds=(self._ring.memfd,), mortal=False, **SIDECAR)
        # the place of the first batch that is not ready: the next one to hand out, and those that wait in the ring
        part = self._part + self._ready - self._consumed - self._holding
        mark, part = self._mark + part // self.batches_per_step * self._stride, part % self.batches_per_step
        ours.send(
            Assignment(
                sampler=self.sampler,
                decoder=pickle.dumps(self.decoder),
                rank=self.rank,
                world_size=self.world_size,
                share=self._share,
                clips=self.clips,
                epoch=self._epoch + mark // self._end,
                mark=mark % self._end,
                last_epoch=self._pass,
                part=part,
                number=self._ready,
                num_slots=self._ring.num_slots,
                most_workers=self._most_workers,
                tuner=self._tuner,
                clip_timeout=self.clip_timeout,
                patience=min(PATIENCE, self.clip_timeout * 2 / 3),  # ends before the clip is given up
                memfd=self._ring.memfd,
                cache=self._cache,
                packs_for=self.device.type if self._device_decoding else None,
                failed=self._ledger,
            )
        )
        ours.send(self._consumed)
        self._process, self._connection = process, ours
        self._heard = time.monotonic()
        for place in self._retries:  # its predecessor did not live to answer
            self._ask_again(place)
        self._closer = weakref.finalize(self, _shut_down, process, ours)

    def _listen(self, timeout: float) -> None:
        """Take in what the sidecar has to say, waiting for the first message; bring it back if it died."""
        try:
            while self._connection.poll(timeout):
                self._take_in(self._connection.recv())
                timeout = 0
        except (EOFError, ConnectionResetError):
            self._revive()
            return
        if (self._ready == self._consumed or self._retries) and time.monotonic() - self._heard > SILENCE + self.clip_timeout:
            self._process.kill()  # stuck at its start, or reading the manifest
            self._revive()

    def _take_in(self, message: object) -> None:
        self._heard = time.monotonic()
        if isinstance(message, int):
            assert message == self._ready, f"batch {message} came when {self._ready} was due"
            self._ready, self._deaths = self._ready + 1, 0
        elif isinstance(message, FailedClip):
            self._record(message)
        elif isinstance(message, Delivery):
            self._retries.remove(message.place)
        elif isinstance(message, Tuning):
            self.tuning = message
        elif isinstance(message, StorageTrouble):
            self._heed(message)
        else:
            raise LoaderError(f"the decoding process of rank {self.rank} failed:\n{message}")

    def _revive(self) -> None:
        """Start a new sidecar where the dead one stopped. No clip is to blame: those are decoded by other processes."""
        code = self._process.wait()
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:  # what it said before it died
                self._take_in(self._connection.recv())
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise LoaderError(f"the decoding process of rank {self.rank} died {self._deaths} times, last with status {code}")
        self._closer()
        self._tuner.resume(self.tuning)
        self.tuning = self._tuner.tuning
        self._start()

    def _decoded(self, device_decoding: DeviceDecoding, slot: Slot) -> DecodedBatch:
        """The next batch on the device, with substitutes for clips that fail there."""
        number = self._consumed
        while True:
            for ahead in range(number, min(self._ready, number + 1 + BATCHES_AHEAD)):
                device_decoding.submit(ahead, self._ring[ahead])
            try:
                batch = device_decoding.take(number, timeout=0.2)
            except (RuntimeError, MemoryError) as error:
                raise LoaderError(f"{self.device} failed while it decoded a batch of rank {self.rank}: {error}") from error
            self._listen(timeout=0)
            if batch is None:
                if device_decoding.overdue(SILENCE + self.clip_timeout):
                    rows = ", ".join(self.manifest.clip(row).key for row in slot.rows.tolist())
                    raise LoaderError(
                        f"DALI has been at one batch of rank {self.rank} for {SILENCE + self.clip_timeout:g} s and hangs; "
                        f"a clip of the next one or two batches is to blame, the first has {rows}"
                    )
                continue
            if not batch.failures:
                return batch
            for place, cause in batch.failures:
                position, row = int(slot.positions[place]), int(slot.rows[place])
                attempt = self._ledger.get((self._epoch, position), 0)
                key = self.manifest.clip(row).key
                self._record(FailedClip(self._epoch, position, attempt, row, key, cause.reason, cause.detail))
                self._retries.add(place)
                self._ask_again(place)
            while self._retries:
                self._listen(timeout=0.2)
            slot.records["failures"][[place for place, _ in batch.failures]] += 1
            device_decoding.repair(number, slot, batch)

    def _ask_again(self, place: int) -> None:
        """Have the sidecar fill a place of the next batch with what the ledger now says."""
        position = int(self._ring[self._consumed].positions[place])
        attempt = self._ledger[self._epoch, position]
        self._heard = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead sidecar is noticed while listening
            self._connection.send(
                Delivery(number=self._consumed, place=place, epoch=self._epoch, position=position, attempt=attempt)
            )

    def _record(self, failed: FailedClip) -> None:
        where = (failed.epoch, failed.position)
        self._ledger[where] = max(self._ledger.get(where, 0), failed.attempt + 1)
        self.failures.append(failed)
        if self.sampler.finite:
            self.missing.append(failed)
        self.num_failures += 1
        self._reasons[failed.reason] += 1
        if len(self.failures) == 2 * MOST_FAILURES:
            del self.failures[:MOST_FAILURES]
        if len(self._ledger) >= 2 * MOST_REMEMBERED:
            self._forget()
        delivered = self._ready * self.clips
        faults = self.num_failures - self._reasons[Failure.REMOVED]  # which is none
        if faults > max(16, self.max_failure_share * delivered) and not self.sampler.finite:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self._reasons.most_common())
            raise LoaderError(
                f"{faults} clips failed among the first {delivered} of rank {self.rank}, more than "
                f"{self.max_failure_share:.0%}: {reasons}; the last: {failed.key}: {failed.detail}"
            )

    def _forget(self) -> None:
        """Of the steps that were taken, only the last MOST_REMEMBERED failures stay in the ledger; those to come all do."""
        first = (self._epoch, self._mark * self.recipe.clips_per_step)
        for where in sorted(where for where in self._ledger if where < first)[:-MOST_REMEMBERED]:
            del self._ledger[where]

    def _heed(self, trouble: StorageTrouble) -> None:
        """Say so, now and then, and when it is over. Raises LoaderError if it has lasted too long."""
        if trouble.seconds > trouble.limit:
            raise LoaderError(
                f"{trouble.detail.removesuffix('?')}. The storage was waited for {trouble.seconds:.0f} s ({VARIABLE} says how "
                "long); no clip is blamed for this: put it right, and the same command goes on from the last checkpoint"
            )
        now = time.monotonic()
        if not trouble.detail and self._trouble_told > -math.inf:
            self._trouble_told = -math.inf
            complain(f"rank {self.rank}: the storage answers again, after {trouble.seconds:.0f} s")
        elif trouble.detail and now - self._trouble_told > BETWEEN_COMPLAINTS:
            self._trouble_told = now
            complain(f"rank {self.rank}: waiting for the storage, up to {trouble.limit:.0f} s: {trouble.detail}")

    def _release(self) -> None:
        """The caller is done with its batch: its slot may be filled again."""
        if self._device_decoding and self._batch:
            self._device_decoding.give_back(self._batch)
            self._batch = None
        if self._copied is not None:
            self._copied.synchronize()  # the copy to the device, long done
            if self.meters and self._copying is not None:
                self.meters.copied(self._copying.elapsed_time(self._copied))
        self._consumed += 1
        self._holding = False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead sidecar is noticed while listening
            self._connection.send(self._consumed)

    def _meter(self, slot: Slot, asked: int, got: int) -> BatchMeter:
        behind = self._device_decoding.ready if self._device_decoding else self._ready - self._consumed - 1
        ready = behind + 1 if got - asked < 1_000_000 else 0  # a millisecond: it had to be waited for
        arrays = (slot.positions.copy(), slot.rows.copy(), slot.records.copy())
        return BatchMeter(self._epoch, asked, got, ready, *arrays)

    def _tensors(self, slot: Slot) -> Batch:
        made = self._batch
        if made:
            tensors = [made.views.flatten(0, 1), *made.masks]
        else:
            views = torch.from_numpy(slot.views.reshape(-1, *slot.views.shape[2:]))
            tensors = [views, *map(torch.from_numpy, slot.masks)]
        if self._copies is not None:
            self._pin(self._ring.memory_of(self._consumed))
            current = torch.cuda.current_stream(self.device)
            with on_stream(self._copies):
                self._copying = self._copies.record_event(torch.cuda.Event(enable_timing=True))
                tensors = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
                self._copied = self._copies.record_event(torch.cuda.Event(enable_timing=True))
            current.wait_event(self._copied)
            for tensor in tensors:
                tensor.record_stream(current)
        visible, decoded, loss_weight = tensors[1:] or (None, None, None)
        positions, rows = (torch.from_numpy(array.copy()) for array in (slot.positions, slot.rows))
        weight = torch.from_numpy(slot.weight.copy()).to(self.device) if self.sampler.finite else self._weights
        step = self._mark // self._stride
        return Batch(tensors[0], visible, decoded, loss_weight, self._epoch, step, positions, rows, weight, self)

    def _pin(self, slot: memoryview) -> None:
        """Lock a slot's pages when it is first used, so that its copies to the device run beside the step."""
        address = torch.frombuffer(slot, dtype=torch.uint8).data_ptr()
        if address in self._pinned:
            return
        if code := pin(address, slot.nbytes, self.device, self):
            raise LoaderError(f"CUDA refused to pin {slot.nbytes >> 20} MiB (error {code}); lower memory_budget or prefetch")
        self._pinned.add(address)


class Epochs:
    """A loader's batches to the end of an epoch; `len` says how many are left."""

    def __init__(self, loader: ClipLoader, n: int) -> None:
        if n < 1:
            raise ValueError(f"epochs({n}): at least 1 is needed, the epoch in which the loader stands")
        self._loader, self._end = loader, loader._epoch + n

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Raises LoaderError as the loader does."""
        loader = self._loader
        ended = loader._epoch >= self._end
        if ended and not loader._is_through:
            raise StopIteration
        if not ended and loader._is_through:
            iter(loader)  # begins the next finite pass
        return next(loader)

    def __len__(self) -> int:
        loader = self._loader
        steps = (self._end - loader._epoch) * loader.steps_per_epoch - loader._mark // loader._stride
        return max(0, steps * loader.batches_per_step - loader._part)


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shut_down(process: subprocess.Popen, connection: Connection) -> None:
    """The sidecar leaves when its connection closes; it is not waited for inside a decoder."""
    connection.close()
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
