"""Videos -> windows, decoded ahead in threads. Each frame that some window has is decoded and resized once, and gone when the
last window with it is: of a video of an hour a few windows are in memory.

Threads do, where the loader has processes: FFmpeg and the resizing let go of the interpreter, and videos are long.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import av
import numpy as np
from torch import Tensor

from pipeline.decoding.decode import DecodeError, Failure, decode_upright
from pipeline.decoding.video_file import VideoFile
from train.features.videos import ListedVideo, Open
from train.features.windows import FrameView, Windows

REFUSED = (DecodeError, OSError, ValueError, MemoryError)  # what a single video may end with; the others go on


@dataclass(frozen=True, slots=True)
class Opened:
    """What follows are windows of it."""

    video: ListedVideo
    file: VideoFile
    frames: np.ndarray
    """Of its windows, int64 (W, T)."""


@dataclass(frozen=True, slots=True)
class Window:
    """One of a video's windows. Numbers begin anew where decoding does: what comes later holds."""

    video: ListedVideo
    number: int
    views: list[Tensor]
    """T of (S, S, 3), which other windows share."""


@dataclass(frozen=True, slots=True)
class Closed:
    """No more windows of it."""

    video: ListedVideo
    error: Exception | None
    """Why what came is not all there is, and does not count."""


class WindowStream:
    """A context manager, and an iterator over what happens to the videos: of each `Opened`, `Window`, ..., `Closed`, or
    `Closed` alone; with several threads those of several videos in turn."""

    def __init__(
        self, videos: Sequence[ListedVideo], opened: Open, windows: Windows, view: FrameView, *, threads: int, ahead: int
    ) -> None:
        """`ahead` windows wait at most."""
        self._open, self._windows, self._view = opened, windows, view
        self._videos, self._taking = iter(videos), threading.Lock()
        self._ready: queue.Queue[Opened | Window | Closed | Exception | None] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(max(1, min(threads, len(videos))))]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Opened | Window | Closed]:
        working = len(self._threads)
        while working:
            event = self._ready.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                working -= 1
            else:
                yield event

    def _put(self, event: Opened | Window | Closed | Exception | None) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(event, timeout=0.2)
            except queue.Full:
                continue
        raise _StoppedError

    def _work(self) -> None:
        with suppress(_StoppedError):
            try:
                while video := self._next():
                    error: Exception | None = None
                    try:
                        self._decode(video)
                    except REFUSED as found:
                        error = found
                    self._put(Closed(video, error))
                self._put(None)
            except Exception as error:  # a bug of ours: for who waits for windows
                self._put(error)

    def _next(self) -> ListedVideo | None:
        with self._taking:
            return next(self._videos, None)

    def _decode(self, video: ListedVideo) -> None:
        file = self._open(video)
        frames_WT = self._windows.frames(file)
        wanted, places_WT = np.unique(frames_WT, return_inverse=True)
        self._put(Opened(video, file, frames_WT))
        taker = _Taker(video, places_WT.reshape(frames_WT.shape), self._view.of(file), self._put)
        try:
            decode_upright(file.clip, file.data, wanted, taker)
        except (av.FFmpegError, ValueError, EOFError) as error:
            raise DecodeError(Failure.DAMAGED, f"{type(error).__name__}: {error}") from error


class _StoppedError(BaseException):
    """Nobody waits for windows any more."""


class _Taker:
    """Is given the frames of a video, and gives its windows."""

    def __init__(
        self,
        video: ListedVideo,
        places_WT: np.ndarray,
        view: Callable[[np.ndarray], Tensor],
        give: Callable[[Window], None],
    ) -> None:
        self._video, self._places, self._view, self._give = video, places_WT, view, give
        self._kept: dict[int, Tensor] = {}  # by the frame's place, ascending
        self._next, self._last = 0, -1  # window, and frame that came

    def __call__(self, place: int, frame: np.ndarray) -> None:
        if place <= self._last:  # decoding began anew, in a more careful manner
            self._kept.clear()
            self._next = 0
        self._last = place
        self._kept[place] = self._view(frame)
        while self._next < len(self._places) and self._places[self._next, -1] == place:
            self._give(Window(self._video, self._next, [self._kept[i] for i in self._places[self._next].tolist()]))
            self._next += 1
        first = self._places[self._next, 0] if self._next < len(self._places) else place + 1
        while self._kept and (oldest := next(iter(self._kept))) < first:
            del self._kept[oldest]
