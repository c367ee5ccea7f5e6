"""A movie that was cut into files of a second each, MOVIE/895.mp4, MOVIE/896.mp4 ..., as AlphAction's tools cut AVA: some of
them joined again, without decoding, so that a window over several is one clip."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from math import floor
from typing import BinaryIO

import av

from dataset_builders.media.probe import open_container, open_file, video_stream
from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.decoding.decode import packets_of

NAME = re.compile(rb"(\d{1,6})\.(?i:mp4|mkv|webm|avi|mov|m4v)")


def pieces_in(names: list[bytes]) -> dict[int, bytes]:
    """Names in a folder -> the second at which each piece begins, and its name; other files are passed over."""
    return {int(found[1]): name for name in sorted(names) if (found := NAME.fullmatch(name))}


@contextmanager
def joined(folder: bytes, start: float | None, end: float | None) -> Iterator[tuple[bytes, int]]:
    """The pieces that hold the seconds from `start` to `end` -> (a file with them in a row, the second at which it begins).

    Of a gap only what lies on the side of the middle is taken. Raises RejectedError where none is there, or they do not fit
    together: each must have the coding of the first.
    """
    try:
        there = pieces_in(os.listdir(folder))
    except OSError as error:
        raise RejectedError(Reason.UNREADABLE, error.strerror or str(error)) from None
    if not there:
        raise RejectedError(Reason.NOT_VIDEO, "the folder holds no pieces 900.mp4, 901.mp4 ...")
    low, high = floor(min(there) if start is None else start), floor(max(there) if end is None else end - 1e-6)
    middle = (low + high + 1) // 2  # in which a key frame lies
    if middle not in there:
        detail = f"there is no piece for second {middle}; there are {len(there)}, of {min(there)} to {max(there)}"
        raise RejectedError(Reason.TOO_SHORT, detail)
    first = last = middle
    while first - 1 >= low and first - 1 in there:
        first -= 1
    while last + 1 <= high and last + 1 in there:
        last += 1
    with os.fdopen(os.memfd_create("pieces"), "r+b") as target:
        _join([os.path.join(folder, there[second]) for second in range(first, last + 1)], target)
        yield b"/proc/self/fd/%d" % target.fileno(), first


def _join(files: list[bytes], target: BinaryIO) -> None:
    """Each begins a second after the one before."""
    with av.open(f"/proc/self/fd/{target.fileno()}", "w", format="matroska") as output:
        copied = None
        for second, path in enumerate(files):
            with ExitStack() as opened:
                file = opened.enter_context(open(open_file(path), "rb", buffering=0))
                try:
                    container = opened.enter_context(open_container(file))
                    stream = video_stream(container)
                    coding = stream.codec_context.extradata, stream.codec.canonical_name, stream.width, stream.height
                    if copied is None:
                        copied, of_first = output.add_stream_from_template(stream), coding
                    elif coding != of_first:
                        name = os.fsdecode(os.path.basename(path))
                        raise RejectedError(Reason.UNSUPPORTED, f"piece {name} is coded in another way than the one before it")
                    assert stream.time_base
                    packets = [packet for packet in packets_of(container, stream) if packet.size]
                    stamps = [packet.pts for packet in packets if packet.pts is not None]
                    if len(stamps) < len(packets) or not packets:
                        raise RejectedError(Reason.DAMAGED, f"piece {os.fsdecode(os.path.basename(path))} has no time stamps")
                    moved = int(Fraction(second) / stream.time_base) - min(stamps)
                    for packet in packets:
                        assert packet.pts is not None
                        packet.pts += moved
                        packet.dts = packet.pts if packet.dts is None else packet.dts + moved
                        packet.stream = copied
                        output.mux(packet)
                except av.error.FFmpegError as error:
                    name = os.fsdecode(os.path.basename(path))
                    raise RejectedError(Reason.DAMAGED, f"piece {name}: joining it stops with: {error.strerror}") from None
