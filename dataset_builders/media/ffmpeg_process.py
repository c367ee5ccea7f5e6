"""FFmpeg as one process for one source, without a shell, and what its log says that decides about a clip."""

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from functools import cache, partial

import imageio_ffmpeg

from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.children import die_with_parent

LOGGING = ("-hide_banner", "-nostats", "-loglevel", "level+verbose")  # verbose: it counts packets, frames and errors
# how FFmpeg and x264 put it; the second is what starting a thread fails with, the last what decoding does
OUT_OF_MEMORY = ("Cannot allocate memory", "Resource temporarily unavailable", "malloc of size", "get_buffer() failed")


@cache
def ffmpeg_path() -> str:
    """FFmpeg's program: imageio-ffmpeg's own, or what IMAGEIO_FFMPEG_EXE names; raises ValueError without one."""
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ValueError(f"no ffmpeg program: {error}") from None


@dataclass(slots=True)
class FfmpegLog:
    """What FFmpeg said that decides about a clip."""

    status: int = 0
    frames_decoded: int = 0
    frames_encoded: int = 0
    failed_packets: int = 0  # in the decoder
    marked_packets: int = 0  # that the demuxer calls corrupt
    corrupt_frames: int = 0
    out_of_memory: bool = False
    reading_failed: bool = False  # in the file or on its medium, which FFmpeg does not tell apart
    reconfigured: bool = False  # frames came with another size, pixel format or orientation than the first ones
    first_error: str = ""

    @property
    def said(self) -> str:
        """To be appended to a detail."""
        return f"; FFmpeg: {self.first_error}" if self.first_error else ""

    def check(self, num_packets: int, joined: bool = False) -> None:
        """Raise RejectedError (out_of_memory, crash, damaged, encode_failed) unless all went well. `joined`: packets that the
        demuxer calls corrupt may be whole."""
        if self.status == -signal.SIGKILL or self.out_of_memory:
            raise RejectedError(Reason.OUT_OF_MEMORY, f"FFmpeg ran out of memory{self.said}")
        if self.status < 0:
            raise RejectedError(Reason.CRASH, f"FFmpeg was ended by {signal.Signals(-self.status).name}{self.said}")
        failed = self.failed_packets + (0 if joined else self.marked_packets)
        if failed or self.corrupt_frames:
            counts = f"{failed} of {num_packets} packets fail, {self.corrupt_frames} frames are corrupt"
            raise RejectedError(Reason.DAMAGED, counts + self.said)
        if self.status:
            raise RejectedError(Reason.ENCODE_FAILED, f"FFmpeg ended with status {self.status}{self.said}")


def run_ffmpeg(command: list[str], descriptors: tuple[int, ...]) -> FfmpegLog:
    """Run to the end, with these descriptors open. The process dies with ours; an exception here ends it."""
    log = FfmpegLog()
    # a session of its own: the terminal's ^C reaches the builder, which ends its workers, which take FFmpeg with them
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    ) as process:
        assert process.stderr is not None
        try:
            for raw in process.stderr:
                _read(log, raw.decode("utf-8", "replace"))
        except BaseException:
            process.kill()
            raise
        log.status = process.wait()
    return log


def _read(log: FfmpegLog, line: str) -> None:
    if found := re.search(r"(\d+) frames decoded; (\d+) decode errors", line):
        log.frames_decoded += int(found[1])
        log.failed_packets += int(found[2])
    elif found := re.search(r"(\d+) frames encoded", line):
        log.frames_encoded += int(found[1])
    elif "corrupt decoded frame" in line:
        log.corrupt_frames += 1
    elif "corrupt input packet" in line:
        log.marked_packets += 1
    log.reconfigured |= "Reconfiguring filter graph" in line
    log.reading_failed |= "Error during demuxing" in line
    log.out_of_memory |= any(sign in line for sign in OUT_OF_MEMORY)
    if not log.first_error and ("[error]" in line or "[fatal]" in line):
        log.first_error = re.sub(r"\[[^]]*\] ?", "", line).strip()
