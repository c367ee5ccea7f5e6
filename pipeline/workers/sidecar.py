"""The process beside a trainer that plans its rank's batches and has them decoded, into the ring.

One per rank, so that neither the trainer's GIL nor its garbage collector stands in the way. It forks a process for every clip
that is decoded at once, and has a thread wait for each: what one of these says goes on to the trainer, one that crashes or
hangs is replaced. The trainer sends how many batches it has consumed; it is told which are ready, and which clips failed.

It does without torch, whose import takes seconds, where `resize` has its own kernel, and without what starts threads when it is
imported, pyarrow above all: its processes could not be forked.
"""

import gc
import itertools
import mmap
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

import numpy as np

from pipeline import stop_signals
from pipeline.children import command, serve
from pipeline.decoding.colour import load_swscale
from pipeline.decoding.decode import Failure
from pipeline.decoding.resize import kernel
from pipeline.sampling.sampler import NOBODY, Sampler
from pipeline.storage.clip_cache import ClipCache
from pipeline.storage.manifest import Clip
from pipeline.storage.remote import is_url
from pipeline.storage.shards import ShardReader
from pipeline.storage.watch import StorageTrouble, StorageWatch, Unreadable
from pipeline.workers.decoders import Decoders
from pipeline.workers.delivery import BytesWanted, ClipDelivery, Delivery, FailedClip, answer, sample_position
from pipeline.workers.fork_server import ForkServer, ProcessDiedError, Serve, ServerDiedError, other_threads
from pipeline.workers.read_plan import ReadPlan
from pipeline.workers.ring import Ring
from pipeline.workers.tuning import Tuner, Tuning

AGAIN = "again"  # last argument of a sidecar that has begun once more
TICK = 0.1  # seconds between looks at the pool, while numbers of workers are tried
CRASHES = 3  # of a process in a row, before the clip that it was at is to blame and not the machine's troubles


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What a sidecar has to do; pickled to it as the first message."""

    sampler: Sampler  # of a dataset and a recipe
    decoder: bytes  # a pickled Decoder: what it imports may start threads
    rank: int
    world_size: int
    share: int  # clips of this rank in a step
    clips: int  # of one batch of this rank
    epoch: int
    mark: int  # where in the epoch the first step to deliver begins, see `Sampler`
    part: int  # of that step: a rank's share of a step may be several batches
    number: int  # of the first batch to deliver; batch n lies in slot n modulo the number of slots
    num_slots: int
    most_workers: int
    memfd: int
    tuner: Tuner
    patience: float  # seconds for one reading of a clip from behind a URL
    clip_timeout: float  # seconds after which a clip is given up
    cache: ClipCache | None  # of clips from behind a URL
    packs_for: str | None = None  # "cpu" or "cuda": what DALI decodes there is trimmed only, for the trainer to decode
    last_epoch: int | None = None  # of a finite pass
    failed: Mapping[tuple[int, int], int] = field(default_factory=dict)  # the ledger: (epoch, position) -> failed attempts


def batches(assignment: Assignment) -> Iterator[tuple[int, np.ndarray]]:
    """(epoch, positions (clips,)) of this rank's batches, from the first assigned one on, to the end of a finite pass."""
    sampler, rank, world_size = assignment.sampler, assignment.rank, assignment.world_size
    epoch, mark, part = assignment.epoch, assignment.mark, assignment.part
    share, end = assignment.share, sampler.epoch_end
    while assignment.last_epoch is None or epoch <= assignment.last_epoch:
        positions = sampler.positions(mark, rank, world_size, share).reshape(-1, assignment.clips)
        for chunk in positions[part:]:
            yield epoch, chunk
        part, mark = 0, mark + sampler.stride(share, world_size)
        if mark >= end:
            epoch, mark = epoch + 1, 0


class Sidecar:
    """The process's state: memory, threads and their processes, and the two directions of the connection."""

    def __init__(self, assignment: Assignment, connection: Connection) -> None:
        self.assignment, self.connection = assignment, connection
        self.sampler, self.manifest = assignment.sampler, assignment.sampler.manifest
        self.reader = ShardReader(self.manifest.root.resolve(), cache=assignment.cache, patience=assignment.patience)
        memory = assignment.clips, assignment.num_slots, assignment.memfd
        self.ring = Ring(self.sampler.recipe, *memory, self.sampler.views_per_clip, self.sampler.pixels)
        self._reading = mmap.mmap(-1, assignment.most_workers)  # a byte for each: whether it waits for a disk
        self.processes = ForkServer(self._prepare, unneeded=(connection,))
        self._send_lock, self._announcing = threading.Lock(), threading.Lock()
        self._watch = StorageWatch(self.reader, self.manifest, self._send)
        self.tuner = assignment.tuner
        self.pool = Decoders(assignment.tuner.workers, assignment.most_workers)
        self._here = self.pool.here
        self._complete: set[int] = set()  # batches that wait for an earlier one
        self._announced = assignment.number  # the next batch to tell the trainer of

    def _prepare(self) -> Serve:
        """In the fork server: load what all processes that decode need, so that they share it."""
        assignment, decoder = self.assignment, pickle.loads(self.assignment.decoder)
        delivery = ClipDelivery(self.sampler, self.reader, decoder, self.ring, assignment.packs_for, self._reading)
        if not kernel():
            import torch  # noqa: F401
        load_swscale()
        gc.collect()
        gc.freeze()  # their garbage collectors would touch, and so copy, every page
        return delivery.serve

    def run(self) -> None:
        """Keep every free slot in work until the trainer closes the connection."""
        consumed = self.connection.recv()  # not assignment.number: the trainer still holds batches that were ready before
        work = batches(self.assignment)
        if is_url(self.reader.root):
            work = ReadPlan(self.reader, self.sampler).ahead_of(work)
        for number, (epoch, positions) in enumerate(work, self.assignment.number):
            while number > consumed + self.tuner.prefetch:
                if self.connection.poll(None if self.tuner.settled else TICK):
                    consumed = self._hear(consumed)
                self._tune(consumed)
            self.ring.place(number, consumed)
            self._submit(number, epoch, positions)
        while True:  # a pass is through; what could not be decoded of it on the device may still be asked for
            self._hear(consumed)

    def _hear(self, consumed: int) -> int:
        """Wait for the trainer's next message -> the batches that it has consumed."""
        message = self.connection.recv()
        if not isinstance(message, Delivery):
            return message
        self.pool.submit_urgent(self._repeat, message)
        return consumed

    def _tune(self, consumed: int) -> None:
        done, waiting = self.pool.done, self.pool.waiting
        if self.tuner.observe(time.monotonic(), consumed=consumed, decoded=done, waiting=waiting):
            self.pool.use(self.tuner.workers)
            self._send(self.tuner.tuning)

    def _submit(self, number: int, epoch: int, positions: np.ndarray) -> None:
        slot, began = self.ring[number], time.thread_time_ns()
        attempts = np.array([self.assignment.failed.get((epoch, int(p)), 0) for p in positions])
        slot.positions[:] = positions
        for place, masks in zip(slot.masks, self.sampler.masks(epoch, positions) or (), strict=True):
            place[:] = masks
        # for the whole batch: 34 µs a clip, 0.4 ms one by one
        samples = self.sampler.clips(epoch, positions, attempts)
        slot.rows[:], slot.weight[:] = samples.rows, 1
        slot.records["submitted"] = time.perf_counter_ns()
        slot.records["plan"] = (time.thread_time_ns() - began) // len(positions)
        delivered, tasks = itertools.count(1), []
        for i, (position, attempt) in enumerate(zip(positions.tolist(), attempts.tolist(), strict=True)):
            if position == NOBODY or (attempt and self.sampler.finite):
                slot.leave_empty(i)
            else:
                sample = samples.one(i)
                tasks.append(Delivery(number=number, place=i, epoch=epoch, position=position, attempt=attempt, sample=sample))
        for task in tasks:
            self.pool.submit(self._decode, task, delivered, len(tasks))
        if not tasks:
            self._announce(number)

    def _decode(self, task: Delivery, delivered: Iterator[int], clips: int) -> None:
        """A thread's task: a clip, and the news of its batch if it is the last one of that."""
        with self._reported():
            self._deliver(task)
            if next(delivered) == clips:
                self._announce(task.number)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Errors of a thread go to the trainer."""
        try:
            yield
        except BrokenPipeError:  # the trainer is gone
            pass
        except ServerDiedError:  # the trainer starts another sidecar
            os._exit(1)
        except Exception:
            with suppress(BrokenPipeError):
                self._send(traceback.format_exc())

    def _deliver(self, task: Delivery) -> None:
        """Have the thread's process do it. A clip that hangs or crashes it is given up, and the process replaced; one that
        the storage does not give is waited for, as `StorageWatch` says."""
        crashes = unreadable = 0
        while not (task.attempt and self.sampler.finite):
            process = getattr(self._here, "process", None) or self.processes.fork()
            self._here.process = None  # until it has done this
            try:
                process.send(replace(task, worker=self._here.row))
                while (message := process.receive(self.assignment.clip_timeout)) is not None:
                    if isinstance(message, BytesWanted):
                        process.send(answer(message, self.manifest, self.reader.read))
                    elif isinstance(message, Unreadable):
                        unreadable += 1
                        process.send(self._watch.gives_up(self.manifest.clip(message.row), message, unreadable))
                    elif isinstance(message, FailedClip):
                        self._send(message)
                        task, crashes, unreadable = task.next_attempt(message.attempt + 1), 0, 0
                    else:
                        raise RuntimeError(message)
                if unreadable:
                    self._watch.passed()
                self._here.process = process
                return
            except ProcessDiedError as error:
                crashes += 1
                if crashes < CRASHES:
                    continue
                reason, detail = Failure.CRASH, f"the process that decoded it died with {error}, {crashes} times in a row"
            except TimeoutError:
                reason, detail = Failure.TIMEOUT, f"over {self.assignment.clip_timeout:g} s"
            clip = self._clip(task)
            if reason is Failure.TIMEOUT and self._reading[self._here.row]:
                self._reading[self._here.row] = 0
                unreadable += 1
                where = os.path.join(self.reader.root, clip.shard)
                trouble = Unreadable(clip.row, f"{where}: reading it hangs, for over {self.assignment.clip_timeout:g} s", True)
                self._watch.gives_up(clip, trouble, unreadable, hung=True)
                continue
            self._send(FailedClip(task.epoch, task.position, task.attempt, clip.row, clip.key, reason, detail))
            task, crashes, unreadable = task.next_attempt(task.attempt + 1), 0, 0
        self.ring[task.number].leave_empty(task.place)  # in a finite pass nobody stands in for a clip

    def _clip(self, task: Delivery) -> Clip:
        """That stands there."""
        sample = sample_position(self.sampler, task.epoch, task.position, task.attempt)
        return self.manifest.clip(int(sample.rows[0]))

    def _repeat(self, task: Delivery) -> None:
        """The trainer could not decode a trimmed clip, and wants another attempt in its place."""
        with self._reported():
            self._deliver(task)
            self._send(task)

    def _announce(self, number: int) -> None:
        """Tell the trainer, in order, which batches are complete."""
        with self._announcing:
            self._complete.add(number)
            while self._announced in self._complete:
                self._complete.remove(self._announced)
                self._send(self._announced)
                self._announced += 1

    def _send(self, message: int | str | FailedClip | Delivery | Tuning | StorageTrouble) -> None:
        with self._send_lock:
            self.connection.send(message)


def main(connection: Connection) -> None:
    """Serve the trainer at the other end of the connection, until it closes."""
    stop_signals.ignore()
    if other_threads() and sys.argv[-1] != AGAIN:
        # of a library that is preloaded (Nsight Systems', jemalloc's), or of a debugger that follows the interpreters that are
        # started, but not through `env`. This process would not be forked; so it begins again, once, without them
        os.execvp("env", ["env", "-u", "LD_PRELOAD", *command(serve, *sys.argv[1:], AGAIN)])
    try:
        Sidecar(connection.recv(), connection).run()
    except (EOFError, ConnectionResetError, BrokenPipeError):
        raise
    except Exception:
        connection.send(traceback.format_exc())
