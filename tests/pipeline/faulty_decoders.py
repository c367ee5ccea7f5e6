"""Decoders that fail on some clips, as real ones do; in a module of their own because the sidecar imports them by name."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow  # noqa: F401  starts a thread, as what a user's decoder imports may

from pipeline.decoding.decode import ClipRequest, DecodeError, Failure, decode_libav
from pipeline.storage.remote import StorageError

BAD_ROWS = (3, 7)


def refusing(request: ClipRequest, views: np.ndarray) -> None:
    if request.clip.row in BAD_ROWS:
        raise DecodeError(Failure.DAMAGED, "made to fail")
    decode_libav(request, views)


def refusing_all(request: ClipRequest, views: np.ndarray) -> None:
    raise DecodeError(Failure.DAMAGED, "made to fail")


def crashing(request: ClipRequest, views: np.ndarray) -> None:
    if request.clip.row in BAD_ROWS:
        os.kill(os.getpid(), signal.SIGSEGV)
    decode_libav(request, views)


def hanging(request: ClipRequest, views: np.ndarray) -> None:
    if request.clip.row in BAD_ROWS:
        time.sleep(1000)
    decode_libav(request, views)


def broken(request: ClipRequest, views: np.ndarray) -> None:
    raise KeyError("a bug of ours")


def storage_in_trouble(request: ClipRequest, views: np.ndarray) -> None:
    """Row 3 can be read at the second attempt, row 7 never; what the decoder raises stands for the reader."""
    mark = Path(os.environ["TUBECELL_TEST_MARKS"]) / str(request.clip.row)
    if request.clip.row == 7 or (request.clip.row == 3 and not mark.exists()):
        mark.touch()
        raise StorageError("no proper answer: made to fail", transient=True)
    decode_libav(request, views)


def slow(request: ClipRequest, views: np.ndarray) -> None:
    time.sleep(0.1)
    decode_libav(request, views)


def crashing_once_in_a_while(request: ClipRequest, views: np.ndarray) -> None:
    """Crashes on row 11, late enough for others to be in flight at the same time."""
    if request.clip.row == 11:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.05)
    decode_libav(request, views)


def writing_down(request: ClipRequest, views: np.ndarray) -> None:
    """Beside others' notes: {row: [[the distinct frames that were asked for], again ...]}."""
    note = Path(os.environ["TUBECELL_TEST_MARKS"]) / str(request.clip.row)
    before = json.loads(note.read_text()) if note.exists() else []
    note.write_text(json.dumps([*before, np.unique(request.frames).tolist()]))
    decode_libav(request, views)
