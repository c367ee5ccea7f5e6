"""One CUDA context a process: what is done on a GPU makes it the thread's device first.

A thread begins on device 0, whatever its parent chose. `with torch.cuda.stream(s)` ends by setting the stream that it found,
and that one's device: since CUDA 12 this makes a context there, about 0.5 GiB, and each rank of a node would have one on GPU 0.
`torch.cuda.device` ends without making one.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """A stream and its device are this thread's current ones inside; None, on a CPU: nothing."""
    if stream is None:
        yield
        return
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):
        yield


def pin(address: int, nbytes: int, device: torch.device, owner: object) -> int:
    """Lock memory until its owner is garbage, so that copies from and to a device run beside other work. Returns CUDA's error,
    0 for none."""
    with torch.cuda.device(device):
        code = int(torch.cuda.cudart().cudaHostRegister(address, nbytes, 0))
    if not code:
        weakref.finalize(owner, _unpin, address, device).atexit = False
    return code


def _unpin(address: int, device: torch.device) -> None:
    """In whichever thread collects the garbage."""
    with torch.cuda.device(device):
        torch.cuda.cudart().cudaHostUnregister(address)
