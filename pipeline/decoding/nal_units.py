"""What H.264 says of its pictures without decoding them: which of them nothing refers to, and no decoder need be given.

A picture whose `nal_ref_idc` is 0 enters no decoder's list of references (H.264, 8.2.5), whatever the encoder meant: with three
such B-frames between two others 16 frames at stride 4 take 33 decoded ones instead of 74 (at stride 2 25 instead of 43); with
seven 26 (21). Decoders keep `frame_num` besides, and fill its gaps with pictures of their own. So where pictures are left out,
the `frame_num` of those that are not must go on as if there had been no others: then a decoder is in the same state with and
without them. To look costs 2 us a packet, where decoding one takes 150.

Others are decoded whole. HEVC marks such pictures, too (sub-layer non-reference ones), but its decoders go by the list in
every slice, so that a wrong mark would show in wrong pixels only; VP8 and VP9 as the usual encoders make them have none, and
a frame that refreshes no buffer may still refresh the probabilities of those that follow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

SLICE, IDR, SPS, PPS = 1, 5, 7, 8  # types of NAL units (H.264, table 7-1)
BESIDE = (6, 9, 12)  # SEI, delimiter, filler: what they say is of their own picture
ENDS = (10, 11)  # of a sequence, of the stream
HIGH = (100, 110, 122, 244, 44)  # profiles whose parameters say more (7.3.2.1.1)


class FrameNumError(Exception):
    """A picture was left out that is missed."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """What is the same for all pictures of a stream that some may be left out of."""

    length_size: int  # bytes of the length before a unit; 0: there is a start code (Annex B)
    sps: bytes
    frame_num_bits: int


class DroppablePictures:
    """Goes along with the packets of a stream that a decoder is given, and finds those that nobody would miss."""

    __slots__ = ("_mask", "_next", "_sequence", "_sparse")

    def __init__(self, sequence: Sequence) -> None:
        self._sequence: Sequence | None = sequence
        self._mask = (1 << sequence.frame_num_bits) - 1
        self.restart()

    def restart(self) -> None:
        """The next packet does not follow the last one."""
        self._next = -1  # frame_num of the next picture; -1: whatever it is
        self._sparse = False  # pictures were left out since

    def leaves_out(self, data: bytes, wanted: bool) -> bool:
        """Whether the next packet can be left out: nobody wants it, and nothing refers to it.

        Raises FrameNumError if it misses something that was left out before.
        """
        if (sequence := self._sequence) is None:
            return False
        header = head = 0
        droppable, size = True, sequence.length_size
        single = 0 < int.from_bytes(data[:size], "big") == len(data) - size  # mostly
        for position in (size,) if single else unit_positions(data, size):
            kind = (unit := data[position]) & 31
            if kind in (SLICE, IDR):
                header, head = header or position + 1, head | unit
                if unit & 0x60:
                    break
            elif kind == SPS:
                droppable = False
                if not data.startswith(sequence.sps, position):
                    self._sequence = None
                    return False
            elif kind in (PPS, *ENDS):
                droppable = False
            elif kind not in BESIDE:  # partitions, layers, views
                self._sequence = None
                if self._sparse:
                    raise FrameNumError(f"a NAL unit has type {kind}")
                return False
        if not header:
            return False
        if droppable and not wanted and not head & 0x60:
            self._sparse = True
            return True
        if head & 31 == IDR:
            self._next, self._sparse = 0, False
        elif self._sparse or self._next < 0:
            number = _frame_num(data[header : header + 12], sequence.frame_num_bits)
            if number != self._next >= 0:
                raise FrameNumError(f"frame_num is {number} where {self._next} is due")
            self._next = number
        if head & 0x60:
            self._next = self._next + 1 & self._mask
        return False


def unit_positions(data: bytes, length_size: int) -> Iterator[int]:
    """Where the NAL units of a packet begin, of H.264 or HEVC: each is preceded by its length, or (0) by a start code."""
    position = 0
    while True:
        if length_size:
            size = int.from_bytes(data[position : position + length_size], "big")
            position += length_size
        else:
            position, size = data.find(b"\0\0\1", position) + 3, 0
            if position < 3:
                return
        if position >= len(data):
            return
        yield position
        position += size


@lru_cache(1024)  # clips of one preset and size have the same
def read_sequence(extradata: bytes) -> Sequence | None:
    """What precedes a stream of H.264 (avcC, or Annex B) -> what there is to know; None where no picture may be left out:
    it has fields, gaps in `frame_num`, planes or scaling matrices of its own, counts its pictures in a rare way, or is damaged.
    """
    try:
        length_size, parameters = 0, extradata
        if extradata[:1] == b"\1":
            length_size, end = (extradata[4] & 3) + 1, 8 + int.from_bytes(extradata[6:8], "big")
            parameters = extradata[6:end] if extradata[5] & 31 == 1 else b""
        starts = [start for start in unit_positions(parameters, 2 if length_size else 0) if parameters[start] & 31 == SPS]
        if len(starts) != 1:
            return None
        sps = parameters[starts[0] :]
        if not length_size and (end := sps.find(b"\0\0\1")) > 0:
            sps = sps[:end].rstrip(b"\0")
        number = _frame_num_bits(sps)
        return Sequence(length_size, sps, number) if number else None
    except (IndexError, ValueError):
        return None


def _frame_num_bits(sps: bytes) -> int:
    """Its length (7.3.2.1.1); 0 where no picture may be left out."""
    bits = _Bits(sps[1:])
    profile, _, _ = bits.fixed(8), bits.fixed(16), bits.coded()
    if profile in HIGH:
        if bits.coded() == 3 and bits.fixed(1):  # planes
            return 0
        bits.coded(), bits.coded()  # bits of a sample
        if bits.fixed(2) & 1:  # scaling matrices
            return 0
    elif profile not in (66, 77):
        return 0
    number = bits.coded() + 4
    if (order := bits.coded()) == 1:
        return 0
    if order == 0:
        bits.coded()
    bits.coded()  # references
    gaps = bits.fixed(1)
    bits.coded(), bits.coded()  # sizes
    return number if bits.fixed(1) and not gaps else 0  # frames only


def _frame_num(header: bytes, size: int) -> int:
    """Of a slice (7.3.3); -1 if there is none."""
    try:
        bits = _Bits(header)
        bits.coded(), bits.coded(), bits.coded()  # place, type, picture parameters
        return bits.fixed(size)
    except ValueError:
        return -1


class _Bits:
    """Reads a NAL unit's fields. Raises ValueError at its end."""

    __slots__ = ("_left", "_rest")

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")
        self._rest, self._left = int.from_bytes(data, "big"), 8 * len(data)  # bits

    def fixed(self, size: int) -> int:
        self._left -= size
        value = self._rest >> self._left  # raises ValueError if it is negative
        self._rest -= value << self._left
        return value

    def coded(self) -> int:
        """Exp-Golomb (9.1)."""
        return self.fixed(2 * (self._left - self._rest.bit_length()) + 1) - 1
