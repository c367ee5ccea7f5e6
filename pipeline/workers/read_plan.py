"""What the reader will be asked for: told to it ahead of the decoders, in the order and the portions of the shuffle."""

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.sampling.sampler import NOBODY, Sampler
from pipeline.storage.shards import ShardReader

CLIPS_AHEAD = 256  # of those handed to the decoders: 3 s at 80 clips/s, in which a long request comes even at 10 MB/s


class ReadPlan:
    """Passes batches on, after it has announced the clips of those that follow."""

    def __init__(self, reader: ShardReader, sampler: Sampler, clips_ahead: int = CLIPS_AHEAD) -> None:
        self._reader, self._sampler, self._clips_ahead = reader, sampler, clips_ahead
        self._announced: dict[int, tuple[int, int]] = {}  # lane -> (epoch, last position) of its windows so far

    def ahead_of(self, batches: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, positions) of batches -> the same, later: each when `clips_ahead` clips after it are announced."""
        waiting: list[tuple[int, np.ndarray]] = []
        clips = 0
        for epoch, positions in batches:
            self._announce(epoch, positions)
            waiting.append((epoch, positions))
            clips += len(positions)
            while waiting and clips - len(waiting[0][1]) >= self._clips_ahead:
                clips -= len(waiting[0][1])
                yield waiting.pop(0)
        yield from waiting

    def _announce(self, epoch: int, positions: np.ndarray) -> None:
        lanes = self._sampler.lanes
        if not lanes:
            self._prefetch(epoch, positions[positions != NOBODY])
            return
        for position in positions.tolist():
            lane = position % lanes
            if (epoch, position) > self._announced.get(lane, (-1, -1)):
                window = self._sampler.window(epoch, position)
                self._announced[lane] = epoch, int(window[-1])
                self._prefetch(epoch, window[window >= position])  # after a restart only the rest of it

    def _prefetch(self, epoch: int, positions: np.ndarray) -> None:
        self._reader.prefetch(self._sampler.manifest.clip(int(row)) for row in self._sampler.rows(epoch, positions))
