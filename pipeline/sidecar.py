"""The decoding process beside a trainer: plans its rank's batches, decodes them in threads, fills the ring.

One process per rank, so that a decoder which crashes or hangs takes nothing with it, and neither the trainer's GIL nor its
garbage collector stands in the way. Threads inside it suffice: libav, torch and swscale release the GIL (64 -> 116 videos/s
from 1 to 2 threads on 2 cores). The trainer sends how many batches it has consumed; it is told which are ready, which
clips failed, and, by the in-flight table of the ring, what every thread is doing.

It does without torch, whose import takes seconds, where `resize` has its own kernel.
"""

import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode import ClipRequest, DecodeError, Decoder, Failure
from pipeline.decoder_threads import DecoderThreads
from pipeline.manifest import Manifest
from pipeline.read_plan import ReadPlan
from pipeline.remote import StorageError, is_url
from pipeline.ring import Ring, Slot
from pipeline.sampling import ClipSamples, Order, SamplingRecipe, order_of, sample_clips, sample_masks
from pipeline.stage_meters import ClipMeter
from pipeline.storage import ShardReader
from pipeline.trim import UnsupportedClipError, pack, trim
from pipeline.tuning import Tuner, Tuning

TICK = 0.1  # seconds between looks at the pool, while numbers of threads are tried
LATER = (1.0, 5.0)  # seconds after which a clip is read once more, if its storage did not answer (`StorageError.transient`)
MAX_ATTEMPTS = 64  # substitutes at one position; the loader's own limit of failures comes first


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a sidecar has to do; pickled to it as the first message."""

    dataset: Path
    version: int
    recipe: SamplingRecipe
    decoder: Decoder
    rank: int
    world_size: int
    clips: int  # of one batch of this rank
    epoch: int
    step: int  # of the epoch, the first to deliver
    part: int  # of that step: a rank's share of a step may be several batches
    number: int  # of the first batch to deliver; batch n lies in slot n modulo the number of slots
    serial_until: int  # batches before this number are decoded one clip at a time, to find the one that crashes
    num_slots: int
    most_threads: int
    memfd: int
    tuner: Tuner
    patience: float  # seconds for one reading of a clip from behind a URL
    packs_for: str | None = None  # "cpu" or "cuda": what DALI decodes there is trimmed only, for the trainer to decode
    failed: Mapping[tuple[int, int], int] = field(default_factory=dict)  # the ledger: (epoch, position) -> failed attempts


@dataclass(frozen=True, slots=True)
class FailedClip:
    """One failed attempt to deliver a clip: a line of failures.jsonl."""

    epoch: int
    position: int
    attempt: int  # 0 for the clip that the order names, 1 for its first substitute ...
    row: int
    key: str
    reason: Failure
    detail: str


@dataclass(frozen=True, slots=True)
class Retry:
    """The trainer could not decode a trimmed clip: deliver another attempt. Comes back when that lies in the slot."""

    number: int  # of the batch
    place: int  # of the clip in it
    epoch: int
    position: int
    attempt: int


def batches(job: Job, order: Order) -> Iterator[tuple[int, np.ndarray]]:
    """(epoch, positions (clips,)) of this rank's batches, from the job's first one on, without end."""
    epoch, step, part = job.epoch, job.step, job.part
    while True:
        positions = order.rank_positions(step, job.rank, job.world_size).reshape(-1, job.clips)
        for chunk in positions[part:]:
            yield epoch, chunk
        part = 0
        epoch, step = (epoch, step + 1) if step + 1 < order.steps_per_epoch else (epoch + 1, 0)


class Sidecar:
    """The process's state: memory, threads, and the two directions of the connection."""

    def __init__(self, job: Job, connection: Connection) -> None:
        self.job, self.connection = job, connection
        self.manifest = Manifest(job.dataset, job.version)
        self.reader = ShardReader(job.dataset, patience=job.patience)
        self.ring = Ring(job.recipe, job.clips, job.num_slots, job.most_threads, job.memfd)
        self._serial, self._send_lock, self._announcing = threading.Lock(), threading.Lock(), threading.Lock()
        self.tuner = job.tuner
        self.pool = DecoderThreads(job.tuner.threads, job.most_threads)
        self._threads = self.pool.here
        self._complete: set[int] = set()  # batches that wait for an earlier one
        self._announced = job.number  # the next batch to tell the trainer of

    def run(self) -> None:
        """Keep every free slot in work until the trainer closes the connection."""
        consumed = self.connection.recv()  # not job.number: the trainer still holds batches that were ready before
        order = order_of(self.manifest, self.job.recipe)
        work = batches(self.job, order)
        if is_url(self.reader.root):
            work = ReadPlan(self.reader, self.manifest, self.job.recipe).ahead_of(work)
        for number, (epoch, positions) in enumerate(work, self.job.number):
            while number > consumed + self.tuner.prefetch:
                if self.connection.poll(None if self.tuner.settled else TICK):
                    message = self.connection.recv()
                    if isinstance(message, Retry):
                        self.pool.submit_urgent(self._retry, message)
                    else:
                        consumed = message
                self._tune(consumed)
            self.ring.place(number, consumed)
            self._submit(number, epoch, positions)

    def _tune(self, consumed: int) -> None:
        done, waiting = self.pool.done, self.pool.waiting
        if self.tuner.observe(time.monotonic(), consumed=consumed, decoded=done, waiting=waiting):
            self.pool.use(self.tuner.threads)
            self._send(self.tuner.tuning)

    def _submit(self, number: int, epoch: int, positions: np.ndarray) -> None:
        slot, began = self.ring[number], time.thread_time_ns()
        attempts = np.array([self.job.failed.get((epoch, int(p)), 0) for p in positions])
        slot.positions[:] = positions
        slot.visible[:], slot.decoded[:], slot.loss_weight[:] = sample_masks(self.job.recipe, epoch, positions)
        # for the whole batch: 34 µs a clip, 0.4 ms one by one
        samples = sample_clips(self.manifest, self.job.recipe, epoch, positions, attempts)
        slot.records["submitted"] = time.perf_counter_ns()
        slot.records["plan"] = (time.thread_time_ns() - began) // len(positions)
        delivered = itertools.count(1)
        for i, (position, attempt) in enumerate(zip(positions.tolist(), attempts.tolist(), strict=True)):
            self.pool.submit(self._decode, delivered, number, i, epoch, position, attempt, samples)

    def _decode(self, delivered: Iterator[int], number: int, i: int, epoch: int, position: int, *sampled: Any) -> None:
        """A thread's task: a clip, and the news of its batch if it is the last one of that."""
        with self._reported():
            self._deliver(number, i, epoch, position, *sampled)
            if next(delivered) == self.job.clips:
                self._announce(number)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Errors of a thread go to the trainer."""
        try:
            yield
        except BrokenPipeError:  # the trainer is gone
            pass
        except Exception:
            with suppress(BrokenPipeError):
                self._send(traceback.format_exc())

    def _deliver(self, number: int, i: int, epoch: int, position: int, attempt: int, samples: ClipSamples | None) -> None:
        """Decode what stands at a position, place i of `samples`, into the slot; on failure, the position's next substitute."""
        slot, state = self.ring[number], self.ring.in_flight[self._threads.row]
        first, place = attempt, i
        meter, later = ClipMeter(), list(LATER)
        while attempt < first + MAX_ATTEMPTS:
            if samples is None or attempt > first:
                samples = sample_clips(self.manifest, self.job.recipe, epoch, np.array([position]), np.array([attempt]))
                place = 0
            clip = self.manifest.clip(int(samples.rows[place]))
            try:
                with self._serial if number < self.job.serial_until else nullcontext():
                    state[:3] = epoch, position, attempt
                    state[3] = time.monotonic_ns()  # last: it says that the row is valid
                    try:
                        data = self.reader.read(clip)
                        meter.fetched(len(data))
                        request = ClipRequest(clip, data, samples.frames[place], samples.boxes[place], meter)
                        self._fill(request, slot, i)
                    except OSError as error:
                        raise DecodeError(Failure.READ, str(error)) from error
                    finally:
                        state[3] = 0
                slot.rows[i], slot.repeated[i] = clip.row, samples.repeated[place]
                meter.write(slot.records[i], self._threads.row)
                return
            except DecodeError as error:
                if later and isinstance(error.__cause__, StorageError) and error.__cause__.transient:
                    time.sleep(later.pop(0))  # the storage has troubles: this thread need not add to them
                    continue
                self._send(FailedClip(epoch, position, attempt, clip.row, clip.key, error.reason, error.detail))
                meter.failed()
                attempt += 1
        raise RuntimeError(f"{MAX_ATTEMPTS} clips in a row could not be decoded at position {position} of epoch {epoch}")

    def _fill(self, request: ClipRequest, slot: Slot, i: int) -> None:
        """Put a clip's views into place i of a slot, or what the trainer makes them of."""
        slot.packed[i] = 0
        if self.job.packs_for:
            with suppress(UnsupportedClipError):
                slot.packed[i] = pack(trim(request, self.job.packs_for), slot.views[i])
                return
        self.job.decoder(request, slot.views[i])

    def _retry(self, retry: Retry) -> None:
        with self._reported():
            self._deliver(retry.number, retry.place, retry.epoch, retry.position, retry.attempt, None)
            self._send(retry)

    def _announce(self, number: int) -> None:
        """Tell the trainer, in order, which batches are complete."""
        with self._announcing:
            self._complete.add(number)
            while self._announced in self._complete:
                self._complete.remove(self._announced)
                self._send(self._announced)
                self._announced += 1

    def _send(self, message: int | str | FailedClip | Retry | Tuning) -> None:
        with self._send_lock:
            self.connection.send(message)


def main() -> None:
    """Serve the trainer at the other end of the connection whose descriptor is the first argument, until it closes."""
    # Ctrl-C and a scheduler's SIGTERM reach every process of the job; this one ends when its trainer does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    try:
        Sidecar(connection.recv(), connection).run()
    except (EOFError, ConnectionResetError, BrokenPipeError):
        pass  # the trainer closed the connection or died
    except Exception:
        connection.send(traceback.format_exc())
    # not waiting for threads that may be inside a decoder
    sys.stdout.flush()
    os._exit(0)
