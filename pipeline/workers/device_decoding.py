"""The trainer's half of decoding with DALI: a thread that makes batches of what the sidecar trimmed, ahead of the step.

    sidecar    reads, checks and trims a clip into the place of its views in the ring (`trim.pack`); what DALI does not take is
               decoded there by libav, straight into that place
    thread     decodes the trimmed clips of a complete slot on a stream of high priority, copies the others and the masks, and
               waits for the stream: a batch that is done needs no event, and its slot no guard
    trainer    takes the batch; a clip that DALI could not decode is put down in the ledger, and the sidecar asked for another
               attempt at its position, which is then decoded into its place

The trainer's own thread does all the talking; this one only decodes, so nothing is shared that would need a lock. At most
`BATCHES_AHEAD` batches are done or in work at a time; one more is in the trainer's hands, and two that it has given back may
wait until the work it queued on them is through. ViT-g's 128 views are 308 MB a batch. A trainer that captures CUDA graphs
while it loads does so with `capture_error_mode="thread_local"`: this thread allocates memory and waits.
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.cuda_context import on_stream
from pipeline.decoding.dali import DaliDecoder
from pipeline.decoding.decode import DecodeError
from pipeline.decoding.trim import unpack
from pipeline.workers.ring import Slot

BATCHES_AHEAD = 2
DECODERS = 14  # in flight on a GPU: two for each of the seven NVDEC of an H100 or H200, so that none waits for its next clip


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """A batch on the device; B clips of R views."""

    views: torch.Tensor  # uint8 or int16 (B, R, T, H, W, 3)
    masks: tuple[torch.Tensor, ...]  # as `Slot.masks`
    failures: list[tuple[int, DecodeError]]  # (place of a clip whose views are still to come, why)


@dataclass(slots=True)
class _Worker:
    """What the thread and its owner share. The owner is not in it, so that it can become garbage."""

    jobs: "queue.SimpleQueue[tuple[Future, Callable, tuple] | None]" = field(default_factory=queue.SimpleQueue)
    began: float = 0.0  # when the job in work began, by time.monotonic(); 0 between jobs


class DeviceDecoding:
    """Batches by number: `submit` complete slots in order, then `take` them in order."""

    def __init__(self, device: torch.device, threads: int, size: tuple[int, int], pixels: type[np.integer] = np.uint8) -> None:
        """`threads` decode on a CPU; `size`: a view's (height, width), of `pixels`. DALI takes a second to
        start: `wait_until_started`."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())  # the caller's; the thread would say 0
        self._worker = _Worker()
        thread = threading.Thread(target=_work, args=(self._worker, device), name="device decoding", daemon=True)
        thread.start()
        # DALI's thread is the one that made its objects; it is told to leave before Python's modules are taken apart
        self.close = weakref.finalize(self, _stop, self._worker, thread)
        threads = threads if device.type == "cpu" else DECODERS
        self._decoder: Future[DaliDecoder] = self._do(DaliDecoder, device, threads, size, pixels)
        self._batches: dict[int, Future[DecodedBatch]] = {}

    def wait_until_started(self) -> None:
        """Raises ValueError if DALI is not installed, or cannot use the device."""
        self._decoder.result()

    @property
    def ready(self) -> int:
        """How many batches are done and not yet taken."""
        return sum(batch.done() for batch in self._batches.values())

    def submit(self, number: int, slot: Slot) -> None:
        """Begin with a batch; not again, if it has been submitted."""
        if number not in self._batches:
            self._batches[number] = self._do(_decode_batch, self._decoder, slot)

    def take(self, number: int, timeout: float) -> DecodedBatch | None:
        """The batch, or None if it is not done in so many seconds. Raises RuntimeError if the device fails.

        A batch with failures is not final: `repair` it, and take it again.
        """
        try:
            batch = self._batches[number].result(timeout)
        except TimeoutError:
            return None
        del self._batches[number]
        return batch

    def repair(self, number: int, slot: Slot, batch: DecodedBatch) -> None:
        """The sidecar put other clips into the places that had failed."""
        self._batches[number] = self._do(_repair, self._decoder, slot, batch)

    def overdue(self, seconds: float) -> bool:
        """Whether one batch takes longer than that: it hangs in the driver, and there is no process to kill but this one."""
        began = self._worker.began
        return bool(began) and time.monotonic() - began > seconds

    def give_back(self, batch: DecodedBatch) -> None:
        """The trainer has queued all its work on a batch, on the current stream."""
        decoder = self._decoder.result()
        if decoder.stream is not None:
            stream = torch.cuda.current_stream(decoder.device)
            for tensor in batch.masks:
                tensor.record_stream(stream)
            decoder.retire(batch.views, stream)

    def _do(self, function: Callable, *arguments: object) -> Future:
        future: Future = Future()
        self._worker.jobs.put((future, function, arguments))
        return future


def _decode_batch(started: Future[DaliDecoder], slot: Slot) -> DecodedBatch:
    decoder = started.result()
    with on_stream(decoder.stream):
        views, failures = _decode(decoder, slot, list(range(len(slot.views))))
        masks = tuple(torch.from_numpy(array).to(decoder.device, copy=True, non_blocking=True) for array in slot.masks)
        _wait(decoder)
    return DecodedBatch(views, masks, failures)


def _repair(started: Future[DaliDecoder], slot: Slot, batch: DecodedBatch) -> DecodedBatch:
    decoder = started.result()
    places = [place for place, _ in batch.failures]
    with on_stream(decoder.stream):
        views, failures = _decode(decoder, slot, places)
        for place, of_clip in zip(places, views, strict=True):
            batch.views[place].copy_(of_clip)
        _wait(decoder)
    return DecodedBatch(batch.views, batch.masks, failures)


def _decode(decoder: DaliDecoder, slot: Slot, places: list[int]) -> tuple[torch.Tensor, list[tuple[int, DecodeError]]]:
    """Views of the clips at these places -> (n, R, T, H, W, 3); those of a slot that is trimmed throughout are
    handed on without a copy."""
    packed = [place for place in places if slot.packed[place]]
    failures: list[tuple[int, DecodeError]] = []
    views = None
    if packed:
        began = time.perf_counter_ns()
        views, failed = decoder([unpack(slot.views[place], int(slot.packed[place])) for place in packed])
        _wait(decoder)
        slot.records["decode"][packed] += (time.perf_counter_ns() - began) // len(packed)  # colour and resizing in it
        for index, error in failed:
            assert isinstance(error, DecodeError), "what DALI does not take is found out when it is trimmed"
            failures.append((packed[index], error))
    if views is not None and len(packed) == len(places):
        return views, failures
    whole = torch.empty(
        (len(places), *slot.views.shape[1:]), dtype=torch.from_numpy(slot.views[:0]).dtype, device=decoder.device
    )
    for of_clip, place in zip(whole, places, strict=True):
        if views is not None and slot.packed[place]:
            of_clip.copy_(views[packed.index(place)])
        else:
            of_clip.copy_(torch.from_numpy(slot.views[place]), non_blocking=True)
    return whole, failures


def _wait(decoder: DaliDecoder) -> None:
    if decoder.stream is not None:
        decoder.stream.synchronize()


def _work(worker: _Worker, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # or all that ends here by setting the device before, ends with 0: see `cuda_context`
    while (job := worker.jobs.get()) is not None:
        future, function, arguments = job
        worker.began = time.monotonic()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        worker.began = 0.0
        del job, future, function, arguments  # a batch that nobody wants is not kept until the next job


def _stop(worker: _Worker, thread: threading.Thread) -> None:
    """Let the thread finish what it is at, unless it hangs there; what else was asked for is dropped."""
    try:
        while True:
            worker.jobs.get_nowait()
    except queue.Empty:
        worker.jobs.put(None)
    if thread is not threading.current_thread():
        thread.join(timeout=10)
