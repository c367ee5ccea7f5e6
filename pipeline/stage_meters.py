"""Where a clip's time goes: what the workers note of every clip, and what the trainer's side collects of it.

A note lies in the ring, in the slot of the batch that its clip belongs to. So nobody needs a lock (the message that a batch
is complete says that its notes are, too), none is lost however long a step takes, and those of finished batches outlive a
sidecar that is killed. Always on: some 60 clock readings a clip, of 0.25 µs here (a virtual machine; 0.05 elsewhere). With
them decoding takes 1.004 to 1.012 times as long as without (80 real clips of 11 ms, one view, the least of 20 turns of each,
alternately in one process, four times); the same code against itself gives 0.998 to 1.007.
"""

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

STAGES = ("fetch", "demux", "decode", "colour", "augment", "resize")
"""What is done to a clip, in this order: its bytes are read and checked; the container is opened and searched (or
trimmed, before a hardware decoder); frames are decoded; the wanted ones become RGB; RandAugment changes them, where it is
asked for; crops are cut out and resized into the batch. All but the first two take turns, frame by frame."""

COUNTS = (
    *("frames_decoded", "frames_spanned", "frames_kept"),  # spanned: from the first wanted frame to the last
    *("bytes_read", "bytes_used"),  # used: given to the decoder
    "restarts",  # of decoding, from the clip's beginning: seeking or leaving out gave anything unexpected
)
NOTED = (*STAGES, *COUNTS)
FIELDS = (
    "submitted",  # ns of CLOCK_MONOTONIC, as all moments: the clip is handed to the workers
    "plan",  # ns on a core, its share of sampling the batch: order, frames, crops, masks
    *("worker", "began", "ended"),  # its number, and moments
    *STAGES,  # ns each
    *("fetch_cpu", "cpu"),  # ns that the worker had a core while it fetched, and altogether, without the failed attempts
    *COUNTS,
    *("failures", "lost"),  # attempts at this position that failed before, and ns that they took
)
RECORD = np.dtype([(name, np.int64) for name in FIELDS])


class ClipMeter:
    """Times, in ns, and counts of the clip that a worker works at; a decoder adds to them as it goes."""

    __slots__ = ("_began", "_cpu", "_failures", "_fetch_cpu", "_lost", *NOTED)

    def __init__(self, failures: int = 0) -> None:
        """After so many attempts that nobody could time."""
        self._failures, self._lost = failures, 0
        self._start()

    def fetched(self, size: int) -> None:
        """The clip's bytes are there, so many."""
        self.fetch = time.perf_counter_ns() - self._began
        self._fetch_cpu = time.thread_time_ns() - self._cpu
        self.bytes_read = size

    def failed(self) -> None:
        """This attempt was in vain; the next one begins."""
        self._failures += 1
        self._lost += time.perf_counter_ns() - self._began
        self._start()

    def write(self, record: np.void, worker: int) -> None:
        """The clip is in the batch: fill its note, a row of `RECORD`, all but what its batch's planning wrote there."""
        record["worker"], record["began"], record["ended"] = worker, self._began, time.perf_counter_ns()
        for name in NOTED:
            record[name] = getattr(self, name)
        record["fetch_cpu"], record["cpu"] = self._fetch_cpu, time.thread_time_ns() - self._cpu
        record["failures"], record["lost"] = self._failures, self._lost

    def _start(self) -> None:
        self._began, self._cpu = time.perf_counter_ns(), time.thread_time_ns()
        self.fetch = self.demux = self.decode = self.colour = self.augment = self.resize = self._fetch_cpu = 0
        self.frames_decoded = self.frames_spanned = self.frames_kept = self.bytes_read = self.bytes_used = self.restarts = 0


@dataclass(frozen=True, slots=True)
class BatchMeter:
    """One batch as the trainer met it; moments in ns of CLOCK_MONOTONIC."""

    epoch: int
    asked: int  # the trainer wants the batch
    got: int  # it has it
    ready: int  # batches that lay ready when it asked, 0 if it had to wait
    positions: np.ndarray  # (B,)
    rows: np.ndarray  # (B,)
    records: np.ndarray  # RECORD (B,)


@dataclass(slots=True)
class StageMeters:
    """The notes of the batches that a loader handed out: set `loader.meters` to one.

    The last `most_clips` are kept, 190 bytes each; `clips` and `batches_seen` count all.
    """

    most_clips: int = 20_000
    batches: deque[BatchMeter] = field(default_factory=deque)
    copies: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))
    clips: int = 0
    batches_seen: int = 0
    _kept: int = 0

    def add(self, batch: BatchMeter) -> None:
        """Take the next batch's."""
        self.batches.append(batch)
        self.batches_seen += 1
        self.clips += len(batch.rows)
        self._kept += len(batch.rows)
        while self._kept > self.most_clips and len(self.batches) > 1:
            self._kept -= len(self.batches.popleft().rows)

    def copied(self, milliseconds: float) -> None:
        """A batch is on the device, which took so long."""
        self.copies.append(milliseconds)

    def records(self) -> np.ndarray:
        """RECORD (n,) of the clips that are kept, batch by batch."""
        return np.concatenate([batch.records for batch in self.batches]) if self.batches else np.empty(0, RECORD)

    def rows(self) -> np.ndarray:
        """(n,) of the manifest."""
        return np.concatenate([batch.rows for batch in self.batches]) if self.batches else np.empty(0, np.int64)

    def positions(self) -> np.ndarray:
        """(n, 2): epoch and position."""
        pairs = [np.stack([np.full_like(batch.positions, batch.epoch), batch.positions], 1) for batch in self.batches]
        return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)
