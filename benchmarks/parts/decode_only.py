"""What the loader is measured against: libav decodes the same frames of the same clips to RGB, and does nothing else."""

import io
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from benchmarks.parts.crew import Crew
from pipeline.decoding.decode import video_stream
from pipeline.storage.manifest import Clip

PORTION = 4  # clips that a process is given at once
AHEAD = 2  # portions that it has in hand, so that it never waits

Encoded = tuple[Clip, bytes, np.ndarray]
"""A clip, its bytes, and the numbers of the wanted frames, ascending."""


class DecodeOnly:
    """Decodes clips in as many processes as it is told to, as the loader does. Two threads would do 0.8 times as much as two
    processes."""

    def __init__(self, processes: int) -> None:
        self._crew = Crew(processes, _serve)
        self._clips = 0

    def load(self, clips: Sequence[Encoded]) -> None:
        """Into the processes' memory."""
        self._clips = len(clips)
        self._crew.tell_all(list(clips))
        self._crew.answers()

    def decode(self) -> int:
        """All that were loaded; returns how many. Raises RuntimeError if a frame does not come out."""
        portions = deque(range(0, self._clips, PORTION))
        busy: dict[Connection, int] = {}
        for member in self._crew.members * AHEAD:
            if portions:
                member.send(portions.popleft())
                busy[member] = busy.get(member, 0) + 1
        done = 0
        while any(busy.values()):
            ready = wait([member for member, portions_left in busy.items() if portions_left])
            for member in [member for member in busy if member in ready]:
                answer = member.recv()
                busy[member] -= 1
                if isinstance(answer, str):
                    raise RuntimeError(answer)
                done += answer
                if portions:
                    member.send(portions.popleft())
                    busy[member] += 1
        return done

    def close(self) -> None:
        self._crew.close()


def _serve(connection: Connection) -> None:
    clips: list[Encoded] = []
    while True:
        message: list[Encoded] | int = connection.recv()
        if isinstance(message, list):
            clips = message
            connection.send(None)
            continue
        try:
            connection.send(sum(decode_only(*clip) for clip in clips[message : message + PORTION]))
        except RuntimeError as error:
            connection.send(str(error))


def decode_only(clip: Clip, data: bytes, frames: np.ndarray) -> int:
    """libav as PyAV has it: seek to the key frame, decode, convert the wanted frames to RGB arrays, forget them. Returns 1.

    One thread, and one reformatter a clip. `frame.to_ndarray(format="rgb24")` alone, which makes a reformatter and a pool of
    threads for every frame, would do 0.7 times as much per CPU-second, with threads=1 0.9 times.
    """
    wanted, last, start = set(frames.tolist()), int(frames[-1]), 0
    with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
        stream = video_stream(container)
        if clip.pts_step:
            start = max((key for key in clip.keyframes if key <= frames[0]), default=0)
        if start:
            container.seek(clip.pts_start + start * clip.pts_step, stream=stream)
        reformatter = VideoReformatter()
        for counted, frame in enumerate(container.decode(stream)):
            number = ((frame.pts or 0) - clip.pts_start) // clip.pts_step if clip.pts_step else counted
            if number in wanted:
                reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            if number >= last:
                return 1
    raise RuntimeError(f"{clip.key}: frame {last} does not come out, though the loader delivered it")
