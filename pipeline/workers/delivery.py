"""A clip's way into its batch: read, decoded, cropped; and where that fails, the next substitute's, in a finite pass nobody's.

In processes of their own, one clip at a time in each: a decoder that crashes or hangs takes nothing with it, and none waits for
another's GIL, which is held for 14 % of the time of decoding a clip. On two cores, 16 frames of the real clips, one view: 229
clips/s with two processes, 165 with two threads; and seven threads are the most that one GIL could serve anywhere.
"""

import mmap
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pipeline.decoding.decode import ClipRequest, DecodeError, Decoder, Failure
from pipeline.decoding.trim import UnsupportedClipError, pack, trim
from pipeline.sampling.sampler import Sampler
from pipeline.sampling.samples import ClipSamples
from pipeline.stage_meters import ClipMeter
from pipeline.storage.manifest import Clip, Manifest
from pipeline.storage.remote import RemovedClipError, StorageError, WrongBytesError
from pipeline.storage.shards import ShardReader
from pipeline.storage.watch import Unreadable
from pipeline.workers.ring import Ring, Slot

MAX_ATTEMPTS = 64  # substitutes at one position; the loader's own limit of failures comes first


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """What stands at a position of an epoch, into a place of a batch."""

    number: int  # of the batch
    place: int  # of the clip in it
    worker: int = 0  # number of the one that does it
    epoch: int
    position: int
    attempt: int = 0  # 0 for the clip that the order names, 1 for its first substitute ...
    failures: int = 0  # attempts that were in vain before this one
    sample: ClipSamples | None = None  # of this clip alone (B = 1); None: yet to be computed

    def next_attempt(self, attempt: int) -> "Delivery":
        """The same after a failure."""
        return replace(self, attempt=attempt, failures=self.failures + 1, sample=None)


@dataclass(frozen=True, slots=True)
class FailedClip:
    """One failed attempt to deliver a clip: a line of failures.jsonl."""

    epoch: int
    position: int
    attempt: int
    row: int
    key: str
    reason: Failure
    detail: str


@dataclass(frozen=True, slots=True)
class BytesWanted:
    """Of a clip in a remote shard: whoever reads ahead has them. The answer is bytes, or a StorageError."""

    row: int


def sample_position(sampler: Sampler, epoch: int, position: int, attempt: int) -> ClipSamples:
    """One clip (B = 1)."""
    return sampler.clips(epoch, np.array([position]), np.array([attempt]))


class ClipDelivery:
    """What a decoding process does. Made before it is forked."""

    def __init__(
        self,
        sampler: Sampler,
        reader: ShardReader,
        decoder: Decoder,
        ring: Ring,
        packs_for: str | None,
        reading: bytearray | mmap.mmap | None = None,
    ) -> None:
        """Clips that DALI decodes on `packs_for` ("cpu" or "cuda") are trimmed only, for the trainer to decode. `reading` is
        memory shared with the owner: element w is 1 while worker w waits for a local disk."""
        self._manifest, self._sampler, self._reader = sampler.manifest, sampler, reader
        self._reading = bytearray(1) if reading is None else reading
        self._decoder, self._ring, self._packs_for = decoder, ring, packs_for

    def serve(self, connection: Connection) -> None:
        """Deliver what comes. Sends FailedClips, BytesWanteds and Unreadables on the way, then None, or the traceback of a bug.
        The answer to an Unreadable is whether the clip is to be given up."""
        while True:
            task: Delivery = connection.recv()
            try:
                self._deliver(task, connection)
            except (EOFError, ConnectionError):
                raise
            except Exception:
                connection.send(traceback.format_exc())
            else:
                connection.send(None)

    def _deliver(self, task: Delivery, connection: Connection) -> None:
        slot, attempt, sample = self._ring[task.number], task.attempt, task.sample
        meter = ClipMeter(task.failures)
        while attempt < task.attempt + MAX_ATTEMPTS:
            sample = sample or sample_position(self._sampler, task.epoch, task.position, attempt)
            clip = self._manifest.clip(int(sample.rows[0]))
            try:
                try:
                    data = self._read(clip, task.worker, connection)
                    meter.fetched(len(data))
                    operations = None if sample.operations is None else sample.operations[0]
                    request = ClipRequest(clip, data, sample.frames[0], sample.boxes[0], meter, operations)
                    self._fill(request, slot, task.place)
                except OSError as error:
                    reason = Failure.REMOVED if isinstance(error, RemovedClipError) else Failure.READ
                    raise DecodeError(reason, str(error)) from error
                slot.rows[task.place], slot.repeated[task.place] = clip.row, sample.repeated[0]
                meter.write(slot.records[task.place], task.worker)
                return
            except DecodeError as error:
                cause = error.__cause__
                if isinstance(cause, StorageError) and not isinstance(cause, WrongBytesError):
                    connection.send(Unreadable(clip.row, str(cause), cause.transient))
                    if not _received(connection):
                        continue
                failed = FailedClip(task.epoch, task.position, attempt, clip.row, clip.key, error.reason, error.detail)
                connection.send(failed)
                if self._sampler.finite:
                    slot.leave_empty(task.place)
                    return
                meter.failed()
                attempt, sample = attempt + 1, None
        where = f"position {task.position} of epoch {task.epoch}"
        raise RuntimeError(f"{MAX_ATTEMPTS} clips in a row could not be decoded at {where}")

    def _read(self, clip: Clip, worker: int, connection: Connection) -> bytes:
        if not self._reader.is_remote(clip.shard):
            self._reading[worker] = 1
            try:
                return self._reader.read(clip)
            finally:
                self._reading[worker] = 0
        connection.send(BytesWanted(clip.row))
        answer = _received(connection)
        if isinstance(answer, StorageError):
            raise answer
        assert isinstance(answer, bytes)
        return answer

    def _fill(self, request: ClipRequest, slot: Slot, place: int) -> None:
        """Put a clip's views into a place of a slot, or what the trainer makes them of."""
        slot.packed[place] = 0
        if self._packs_for:
            with suppress(UnsupportedClipError):
                slot.packed[place] = pack(trim(request, self._packs_for), slot.views[place])
                return
        self._decoder(request, slot.views[place])


def _received(connection: Connection) -> Any:
    """From the owner. A broken connection is not the storage's trouble."""
    try:
        return connection.recv()
    except ConnectionError as error:
        raise EOFError from error


def answer(wanted: BytesWanted, manifest: Manifest, read: Callable[[Clip], bytes]) -> bytes | StorageError:
    """What a decoding process is sent for its BytesWanted."""
    try:
        return read(manifest.clip(wanted.row))
    except StorageError as error:
        return error
