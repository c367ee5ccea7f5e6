"""Batches of uint8 views on the training device, from a decoding process beside the trainer.

    loader = ClipLoader("DATASET", SamplingRecipe(views_per_step=64), device="cuda")
    for batch in loader:            # without end; loader.steps_per_epoch says how long an epoch is
        loss = model(batch.views, batch.visible, batch.decoded, batch.loss_weight)
        state = loader.state()      # after the batch's step: two integers, the ledger and what they belong to

It needs no torch.distributed and no trainer of ours: rank and world size are plain integers. The same dataset version and
recipe give the same bytes of every global batch for any world size, thread count and number of restarts.
"""

import contextlib
import os
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import sampling
from pipeline.decode import Decoder, Failure, decode_libav
from pipeline.manifest import Manifest
from pipeline.order import check_reading_order
from pipeline.ring import Ring, Slot
from pipeline.sampling import SamplingRecipe
from pipeline.sidecar import FailedClip, Job
from pipeline.stage_meters import BatchMeter, StageMeters

ROOT = Path(__file__).resolve().parent.parent
SILENCE = 240.0  # seconds, besides a clip's time, that a sidecar may say nothing while it is waited for


class LoaderError(RuntimeError):
    """The data cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B clips of R views, n = B · R, the views of a clip adjacent. On a CPU `views` lies in the loader's shared memory: it
    is valid until the next batch is asked for."""

    views: torch.Tensor  # uint8 (n, T, size, size, 3), RGB
    visible: torch.Tensor  # int64 (n, V), tokens the encoder sees
    decoded: torch.Tensor  # int64 (n, K), tokens the decoder reconstructs, those of the loss first
    loss_weight: torch.Tensor  # float32 (n, L), of the first L decoded tokens
    epoch: int
    step: int  # of the epoch
    positions: torch.Tensor  # int64 (B,), on the CPU
    rows: torch.Tensor  # int64 (B,) of the manifest, on the CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """Where a run stands in its data; plain values, for JSON. Merged over ranks it serves any other world size."""

    epoch: int
    step: int
    ledger: tuple[tuple[int, int, int], ...]  # (epoch, position, failed attempts)
    dataset: str  # fingerprint
    version: int
    recipe: Mapping[str, Any]

    @staticmethod
    def merged(states: list["LoaderState"]) -> "LoaderState":
        """One state for all ranks: their ledgers are disjoint."""
        return replace(states[0], ledger=tuple(sorted({entry for state in states for entry in state.ledger})))


class ClipLoader:
    """An endless iterator over this rank's batches, resumable after any step."""

    def __init__(
        self,
        dataset: str | os.PathLike[str],
        recipe: SamplingRecipe,
        *,
        rank: int = 0,
        world_size: int = 1,
        state: LoaderState | None = None,
        device: str | torch.device = "cpu",
        clips_per_batch: int | None = None,
        threads: int | None = None,
        prefetch: int = 3,
        decoder: Decoder = decode_libav,
        clip_timeout: float = 60.0,
        max_failure_share: float = 0.02,
    ) -> None:
        """`clips_per_batch` splits a rank's share of a step for gradient accumulation (default: all of it at once);
        `threads` decode (default: one per usable core); `prefetch` batches are decoded ahead; a clip that takes longer
        than `clip_timeout` seconds is given up; more than `max_failure_share` of failed clips (and 16) end the run.

        Raises ValueError if the dataset, the recipe, the world size and the state do not fit each other.
        """
        self.recipe, self.rank, self.world_size = recipe, rank, world_size
        self.manifest = Manifest(dataset, state.version if state else None)
        self.device = torch.device(device)
        order = sampling.order_of(self.manifest, recipe)
        if order.lanes:
            check_reading_order(self.manifest)
        self.steps_per_epoch = order.steps_per_epoch
        share = len(order.rank_positions(0, rank, world_size))
        self.clips = clips_per_batch or share
        if share % self.clips:
            raise ValueError(f"clips_per_batch {self.clips} does not divide this rank's {share} clips of a step")
        self.batches_per_step = share // self.clips
        self.decoder, self.clip_timeout, self.max_failure_share = decoder, clip_timeout, max_failure_share
        self.failures: list[FailedClip] = []  # since the start of this process; the trainer writes them to failures.jsonl
        self.wait_seconds = 0.0  # spent waiting for data, in total
        self.meters: StageMeters | None = None  # give it one, to know where the time of clips and batches goes
        self.sampled_frames = self.repeated_frames = 0  # of clips handed out; repeated: the padding of short clips
        self._epoch, self._step, self._part = (state.epoch, state.step, 0) if state else (0, 0, 0)
        self._ledger: dict[tuple[int, int], int] = {}
        if state:
            self._check(state)
            self._ledger = {(epoch, position): attempts for epoch, position, attempts in state.ledger}
        self._threads = threads or len(os.sched_getaffinity(0))
        self._ring = Ring(recipe, self.clips, prefetch + 1, self._threads)
        self._consumed = self._ready = 0  # batches since the start of this process
        self._holding = False  # a batch is in the caller's hands
        self._deaths = 0  # of the sidecar in a row, without a clip to blame and without a batch delivered
        self._copies: torch.cuda.Stream | None = None
        self._copying: torch.cuda.Event | None = None
        self._copied: torch.cuda.Event | None = None
        if self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)
            # pinned, so that the copy to the device runs beside the step
            address = torch.frombuffer(self._ring.memory, dtype=torch.uint8).data_ptr()
            code = int(torch.cuda.cudart().cudaHostRegister(address, self._ring.nbytes, 0))
            if code:
                raise LoaderError(f"CUDA refused to pin {self._ring.nbytes >> 20} MiB (error {code}); lower prefetch")
            weakref.finalize(self, torch.cuda.cudart().cudaHostUnregister, address).atexit = False
        weakref.finalize(self, self._ring.close)
        self._start(serial_until=0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises LoaderError if too many clips fail, or the decoding process cannot go on."""
        if self._holding:
            self._release()
        asked = time.perf_counter_ns()
        while self._ready == self._consumed:
            self._listen(timeout=0.2)
        got = time.perf_counter_ns()
        self.wait_seconds += (got - asked) / 1e9
        self._listen(timeout=0)
        slot = self._ring[self._consumed]
        if self.meters:
            self.meters.add(self._meter(slot, asked, got))
        batch = self._tensors(slot)
        self.sampled_frames += self.clips * self.recipe.frames_per_clip
        self.repeated_frames += int(slot.repeated.sum())
        self._holding = True
        self._part += 1
        if self._part == self.batches_per_step:
            self._part, self._step = 0, self._step + 1
            if self._step == self.steps_per_epoch:
                self._step, self._epoch = 0, self._epoch + 1
        return batch

    def state(self) -> LoaderState:
        """Where the next step begins. Only whole steps: call it after a step's last batch."""
        assert self._part == 0, "state() in the middle of a step"
        first = (self._epoch, self._step * self.recipe.clips_per_step)
        ledger = tuple((*where, attempts) for where, attempts in sorted(self._ledger.items()) if where >= first)
        return LoaderState(
            epoch=self._epoch,
            step=self._step,
            ledger=ledger,
            dataset=self.manifest.fingerprint,
            version=self.manifest.version,
            recipe=asdict(self.recipe),
        )

    def close(self) -> None:
        """End the decoding process. Also done when the loader is garbage."""
        self._closer()

    def _check(self, state: LoaderState) -> None:
        if state.dataset != self.manifest.fingerprint:
            raise ValueError(
                f"the state belongs to another dataset: fingerprint {state.dataset}, version {state.version}; "
                f"{self.manifest.root} has {self.manifest.fingerprint}; give the dataset that the run began with"
            )
        before, mine = asdict(SamplingRecipe(**state.recipe)), asdict(self.recipe)
        changed = [f"{k} (was {before[k]}, is {v})" for k, v in mine.items() if before[k] != v]
        if changed:
            raise ValueError(f"the state belongs to another sampling recipe: {', '.join(changed)}; restore these values")

    def _start(self, serial_until: int) -> None:
        """Start a sidecar at the first batch that is not ready."""
        ours, theirs = Pipe()
        environment = {
            **os.environ,
            # our package before one of that name where the user is (hence -P), and the user's modules, for decoders
            "PYTHONPATH": os.pathsep.join([str(ROOT), *(folder or os.getcwd() for folder in sys.path)]),
            "CUDA_VISIBLE_DEVICES": "",  # libav needs none of the GPU's memory
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from pipeline.sidecar import main; main()", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), self._ring.memfd),
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        # the place of the first batch that is not ready: the next one to hand out, and those that wait in the ring
        part = self._part + self._ready - self._consumed - self._holding
        step, part = self._step + part // self.batches_per_step, part % self.batches_per_step
        ours.send(
            Job(
                dataset=self.manifest.root.resolve(),
                version=self.manifest.version,
                recipe=self.recipe,
                decoder=self.decoder,
                rank=self.rank,
                world_size=self.world_size,
                clips=self.clips,
                epoch=self._epoch + step // self.steps_per_epoch,
                step=step % self.steps_per_epoch,
                part=part,
                number=self._ready,
                serial_until=serial_until,
                num_slots=self._ring.num_slots,
                threads=self._threads,
                memfd=self._ring.memfd,
                failed=self._ledger,
            )
        )
        ours.send(self._consumed)
        self._process, self._connection, self._serial_until = process, ours, serial_until
        self._heard = time.monotonic()
        self._closer = weakref.finalize(self, _shut_down, process, ours)

    def _listen(self, timeout: float) -> None:
        """Take in what the sidecar has to say, waiting for the first message; bring it back if it died or hangs."""
        try:
            while self._connection.poll(timeout):
                message = self._connection.recv()
                self._heard = time.monotonic()
                if isinstance(message, int):
                    assert message == self._ready, f"batch {message} came when {self._ready} was due"
                    self._ready, self._deaths = self._ready + 1, 0
                elif isinstance(message, FailedClip):
                    self._record(message)
                else:
                    raise LoaderError(f"the decoding process of rank {self.rank} failed:\n{message}")
                timeout = 0
        except (EOFError, ConnectionResetError):
            self._revive()
            return
        now = time.monotonic_ns()
        in_flight = self._ring.in_flight.tolist()
        if any(began and now - began > self.clip_timeout * 1e9 for *_, began in in_flight):
            self._process.kill()
            self._revive(hung=now - self.clip_timeout * 1e9)
        elif self._ready == self._consumed and time.monotonic() - self._heard > SILENCE + self.clip_timeout:
            self._process.kill()  # stuck outside a decoder, where no clip is to blame: at its start, or reading the manifest
            self._revive()

    def _revive(self, hung: float | None = None) -> None:
        """Start a new sidecar where the dead one stopped, and find the clip that killed it.

        A clip that was in flight since before `hung` is given up. After a crash the batches in work are decoded again, one
        clip at a time; only a clip that crashes then, alone, is to blame, so that none suffers for the machine's troubles.
        """
        code = self._process.wait()
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:  # what it said before it died
                message = self._connection.recv()
                if isinstance(message, FailedClip):
                    self._record(message)
                elif isinstance(message, int):
                    self._ready += 1
        in_flight = [row for row in self._ring.in_flight.tolist() if row[3]]
        serial = self._ready < self._serial_until
        alone = serial and len(in_flight) == 1
        blamed = [row for row in in_flight if row[3] < hung] if hung else in_flight if alone else []
        for epoch, position, attempt, _ in blamed:
            reason = Failure.TIMEOUT if hung else Failure.CRASH
            detail = f"over {self.clip_timeout:g} s" if hung else f"the decoding process died with status {code}"
            place = np.array([position]), np.array([attempt])
            row = int(sampling.sample_clips(self.manifest, self.recipe, epoch, *place).rows[0])
            self._record(FailedClip(epoch, position, attempt, row, self.manifest.clip(row).key, reason, detail))
        self._deaths += not blamed
        if self._deaths > 3:
            raise LoaderError(f"the decoding process of rank {self.rank} died {self._deaths} times, last with status {code}")
        self._ring.in_flight[:] = 0
        self._closer()
        self._start(serial_until=self._serial_until if hung else self._ready + self._ring.num_slots)

    def _record(self, failed: FailedClip) -> None:
        where = (failed.epoch, failed.position)
        self._ledger[where] = max(self._ledger.get(where, 0), failed.attempt + 1)
        self.failures.append(failed)
        delivered = self._ready * self.clips
        if len(self.failures) > max(16, self.max_failure_share * delivered):
            reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(f.reason for f in self.failures).most_common())
            raise LoaderError(
                f"{len(self.failures)} clips failed among the first {delivered} of rank {self.rank}, more than "
                f"{self.max_failure_share:.0%}: {reasons}; the last: {failed.key}: {failed.detail}"
            )

    def _release(self) -> None:
        """The caller is done with its batch: its slot may be filled again."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy to the device, long done
            if self.meters and self._copying is not None:
                self.meters.copied(self._copying.elapsed_time(self._copied))
        self._consumed += 1
        self._holding = False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead sidecar is noticed while listening
            self._connection.send(self._consumed)

    def _meter(self, slot: Slot, asked: int, got: int) -> BatchMeter:
        ready = self._ready - self._consumed - 1
        arrays = (slot.positions.copy(), slot.rows.copy(), slot.records.copy())
        return BatchMeter(self._epoch, asked, got, ready, *arrays)

    def _tensors(self, slot: Slot) -> Batch:
        views = torch.from_numpy(slot.views.reshape(-1, *slot.views.shape[2:]))
        tensors = [views, *map(torch.from_numpy, (slot.visible, slot.decoded, slot.loss_weight))]
        if self._copies is not None:
            current = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(self._copies):
                self._copying = self._copies.record_event(torch.cuda.Event(enable_timing=True))
                tensors = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
                self._copied = self._copies.record_event(torch.cuda.Event(enable_timing=True))
            current.wait_event(self._copied)
            for tensor in tensors:
                tensor.record_stream(current)
        views, visible, decoded, loss_weight = tensors
        positions, rows = (torch.from_numpy(array.copy()) for array in (slot.positions, slot.rows))
        return Batch(views, visible, decoded, loss_weight, self._epoch, self._step, positions, rows)


def _shut_down(process: subprocess.Popen, connection: Connection) -> None:
    """The sidecar leaves when its connection closes; it is not waited for inside a decoder."""
    connection.close()
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
