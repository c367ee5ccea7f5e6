"""What a process does on GPU 3 makes no context on GPU 0: CUDA's calls are played here, with a device for each thread."""

import gc
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pipeline.cuda_context import on_stream, pin
from pipeline.decoding.dali import DaliDecoder
from pipeline.decoding.decode import ClipRequest
from pipeline.decoding.trim import pack, trim
from pipeline.sampling import SamplingRecipe
from pipeline.workers import device_decoding
from pipeline.workers.device_decoding import DeviceDecoding
from pipeline.workers.ring import Ring
from tests.pipeline.encoding import describe, encode, numbered_frame, read_number


class Cuda(threading.local):
    """Of a thread; devices that have a context are all threads'."""

    contexts: set[int]
    device = 0

    def set_device(self, device: Any) -> None:
        self.device = getattr(device, "index", device)
        self.contexts.add(self.device)

    def exchange_device(self, device: int) -> int:
        before = self.device
        self.set_device(device)
        return before

    def maybe_exchange_device(self, device: int) -> int:
        """Makes no context."""
        before, self.device = self.device, device
        return before

    def current_device(self) -> int:
        return self.device

    def current_stream(self, device: Any = None) -> SimpleNamespace:
        return stream(self.device if device is None else device.index)

    def set_stream(self, stream: Any) -> None:
        self.set_device(stream.device)

    def registered(self, address: int, *_: int) -> int:
        self.contexts.add(self.device)
        return 0


def stream(device: int) -> Any:
    return SimpleNamespace(device=torch.device("cuda", device))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda, calls = Cuda(), SimpleNamespace()
    Cuda.contexts = set()
    calls.cudaHostRegister = calls.cudaHostUnregister = cuda.registered
    for name in ("set_device", "current_device", "current_stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "_exchange_device", cuda.exchange_device)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", cuda.maybe_exchange_device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: calls)
    return cuda


def test_leaving_a_stream_makes_no_context_on_the_device_before(cuda: Cuda) -> None:
    with on_stream(stream(3)):
        assert cuda.device == 3
    assert (cuda.device, cuda.contexts) == (0, {3})
    with on_stream(None):
        pass
    with torch.cuda.stream(stream(3)):  # that it would
        pass
    assert cuda.contexts == {0, 3}


def test_memory_is_pinned_and_let_go_on_its_device(cuda: Cuda) -> None:
    class Owner:
        pass

    owner = [Owner()]
    assert pin(4096, 1, torch.device("cuda", 3), owner[0]) == 0
    thread = threading.Thread(target=lambda: (owner.clear(), gc.collect()))
    thread.start()
    thread.join()
    assert cuda.contexts == {3} and not owner


def test_the_decoding_thread_and_dali_stay_on_the_ranks_device(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI makes its context's device current at the begin of an operator, and at its end the one before, in the thread that
    runs the operator: here a device that does the same, while the operators run on the CPU."""
    dali, decoders = pytest.importorskip("nvidia.dali.experimental.dynamic._device"), []

    class Device3(dali.Device):
        before: ClassVar[list[int]] = []

        def __enter__(self) -> None:
            self.before.append(cuda.exchange_device(3))
            super().__enter__()

        def __exit__(self, *raised: Any) -> None:
            cuda.set_device(self.before.pop())
            super().__exit__(*raised)

    class OnDevice3(DaliDecoder):
        def __init__(self, device: Any, threads: int, *how: Any) -> None:
            assert device == torch.device("cuda", 3) and cuda.device == 3
            super().__init__("cpu", 1, *how)
            self._context._device = Device3("cpu")
            decoders.append(self)

    monkeypatch.setattr(device_decoding, "DaliDecoder", OnDevice3)
    data = encode([numbered_frame(i) for i in range(9)], "libvpx-vp9", "webm", options={"deadline": "realtime"})
    clip = describe(data, "vp9")
    ring = Ring(SamplingRecipe(views_per_step=4, num_frames=2, input_size=64, masks=None), 1, 1)
    ring.place(0, 0)
    box = np.array([[0, 0, clip.width, clip.height]] * 4)
    ring[0].packed[0] = pack(trim(ClipRequest(clip, data, np.array([1, 7]), box), "cpu"), ring[0].views[0])
    decoding = DeviceDecoding(torch.device("cuda", 3), 1, (64, 64))
    decoding.submit(0, ring[0])
    batch = decoding.take(0, timeout=60)
    assert batch is not None and not batch.failures
    assert [read_number(frame) for frame in batch.views[0, 0].numpy()] == [1, 7]
    decoding.close()
    ring.close()
    assert cuda.contexts == {3} and decoders[0]._context._async_executor._thread is None
