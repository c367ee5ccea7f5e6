"""What a decoder is not given, and that nobody can tell: frames are those of the whole, bit for bit."""

import io
import random
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builders.media.decode_check import verify
from dataset_builders.media.rejects import RejectedError
from pipeline.decoding.decode import ClipRequest, _is_indexed, decoded_frames, video_stream
from pipeline.decoding.nal_units import DroppablePictures, FrameNumError, _Bits, read_sequence
from pipeline.decoding.trim import UnsupportedClipError, trim
from pipeline.stage_meters import ClipMeter
from pipeline.storage.manifest import Clip
from tests.pipeline.encoding import encode

NOISE = np.random.default_rng(0).integers(0, 256, (3, 6, 16, 3)).astype(np.uint8)
THREE = "bframes=3:ref=1:b-adapt=0:b-pyramid=none"


def h264(count: int, params: str, container: str = "mp4", gop: int = 16, cut: int = 1000) -> bytes:
    """64 x 48 pixels of something that moves, another one after every `cut`."""
    pictures = [np.roll(np.kron(NOISE[i // cut % 3], np.ones((8, 8, 1), np.uint8)), 3 * i, 1)[:, :64] for i in range(count)]
    options = {"preset": "ultrafast", "threads": "1", "crf": "20", "x264-params": f"scenecut=40:log-level=none:{params}"}
    data = encode(pictures, container=container, gop=gop, options=options)
    return index_first(data) if container == "mp4" else data


def index_first(data: bytes) -> bytes:
    """An MP4 file as the builder has them, which is opened without a look at its frames."""
    boxes: dict[bytes, bytes] = {}
    while at := sum(map(len, boxes.values())) - len(data):
        boxes[data[at:][4:8]] = data[at:][: int.from_bytes(data[at:][:4], "big")]
    index = bytearray(boxes.pop(b"moov"))
    at = index.index(b"stco") + 12
    assert list(boxes) == [b"ftyp", b"free", b"mdat"] and int.from_bytes(index[at - 4 : at], "big") == 1
    index[at : at + 4] = (int.from_bytes(index[at : at + 4], "big") + len(index)).to_bytes(4, "big")
    return boxes.pop(b"ftyp") + bytes(index) + b"".join(boxes.values())


def row_of(data: bytes) -> Clip:
    found = asdict(verify(data))
    columns = {name: found[name] for name in Clip.__dataclass_fields__ if name in found}
    columns["keyframes"] = tuple(found["keyframes"])
    return Clip(row=0, key="", shard="", offset=0, size=len(data), content_hash="", **columns)


def mark(frame: av.VideoFrame) -> int:
    known = frame.format
    bits = 8 * -(-known.components[0].bits // 8) if known.is_planar else known.padded_bits_per_pixel
    digest = xxhash.xxh3_64()
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)  # type: ignore[call-overload]
        digest.update(rows[:, : plane.width * bits // 8].tobytes())
    return digest.intdigest()


def whole(data: bytes) -> list[int]:
    with av.open(io.BytesIO(data), metadata_errors="replace") as container:
        return [mark(frame) for frame in container.decode(video_stream(container))]


def assert_exact(clip: Clip, data: bytes, wanted: Sequence[int], expected: list[int]) -> tuple[ClipMeter, ClipMeter]:
    """By libav, and as DALI is sent it -> what either notes; nothing where DALI is not sent it."""
    meter, sent = ClipMeter(), ClipMeter()
    got = {place: mark(frame) for place, frame in decoded_frames(clip, data, np.array(wanted), meter)}
    assert [got[place] for place in range(len(wanted))] == [expected[number] for number in wanted]
    try:
        trimmed = trim(ClipRequest(clip, data, np.array(wanted), np.array([[0, 0, 16, 16]]), sent), "cuda")
    except UnsupportedClipError:
        return meter, ClipMeter()
    inside = whole(trimmed.data)
    assert [inside[number] for number in trimmed.frames] == [expected[number] for number in wanted]
    assert sent.frames_decoded <= len(inside)
    return meter, sent


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """H.264 as encoders make it, and frames that are wanted of it."""
    pyramid, count = draw(st.sampled_from(["none", "strict", "normal"])), draw(st.integers(12, 36))
    container, few = draw(st.sampled_from(["mp4", "matroska", "mpegts"])), st.integers(0, 1)
    params = f"bframes={draw(st.integers(1, 7))}:ref={draw(st.integers(1, 4))}:b-adapt={draw(few)}:b-pyramid={pyramid}"
    params += f":open-gop={draw(few)}:slices={draw(st.integers(1, 3))}:cabac={draw(few)}:weightp={draw(few)}:direct=auto"
    params += f":weightb={draw(few)}:intra-refresh={draw(few)}" + ":tff=1:interlaced=1" * draw(st.sampled_from([0, 0, 0, 1]))
    data = h264(count, params, container, draw(st.integers(4, 30)), draw(st.integers(5, 40)))
    return data, sorted(draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=6)))


@settings(deadline=None, max_examples=30)
@given(streams())
def test_frames_are_those_of_the_whole(drawn: tuple[bytes, list[int]]) -> None:
    data, wanted = drawn
    meter, sent = assert_exact(row_of(data), data, wanted, whole(data))
    assert not sent.restarts
    assert not meter.restarts or data[0] == 0x47  # MPEG-TS has no index, and seeking goes astray


STREAMS = {
    # I16 P20 B17 P24 B21 P28 B25 P31; I32 P36 P40 B38, where DALI is asked for no more than frame 38 as the last but one
    "three droppable": (THREE, "mp4", (12, 11)),
    "the same in milliseconds": (THREE, "matroska", (23, 23)),  # 33 or 34 from frame to frame
    "slices, with delimiters": (f"{THREE}:slices=4:aud=1", "mp4", (12, 11)),
    "seven droppable": ("bframes=7:ref=1:b-adapt=0:b-pyramid=none", "mp4", (9, 8)),
    "a pyramid": ("bframes=3:ref=2:b-adapt=0:b-pyramid=strict", "mp4", (17, 16)),  # B18, B22, B26, B30 and B34, too
    "no B-frames": ("bframes=0", "mp4", (23, 23)),
    "interlaced": (f"{THREE}:tff=1:interlaced=1", "mp4", (23, 0)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_is_decoded(name: str) -> None:
    """For frames 17, 21, 25 and 38 of 48, with key frames at 0, 16 and 32."""
    params, container, decoded = STREAMS[name]
    data = h264(48, params, container)
    clip = row_of(data)
    assert clip.keyframes == (0, 16, 32)
    assert _is_indexed(data) == (container == "mp4")
    meter, sent = assert_exact(clip, data, [17, 21, 25, 38], whole(data))
    assert (meter.frames_decoded, sent.frames_decoded, meter.restarts) == (*decoded, 0)


def unmarked(data: bytes, stamp: int) -> bytes:
    """The same file, in which the P-frame of that time stamp says, as the standard has it, that nothing refers to it."""
    with av.open(io.BytesIO(data)) as container:
        sps = read_sequence(container.streams.video[0].codec_context.extradata).sps  # type: ignore[union-attr]
        (packet,) = (packet for packet in container.demux(video=0) if packet.pts == stamp)
        unit, begin = bytes(packet)[4:], packet.pos + 4  # type: ignore[operator]
    assert unit[0] & 0x7F == 0x41
    bits = _Bits(sps[1:])
    bits.fixed(24), bits.coded()
    frame_num = bits.coded() + 4
    assert bits.coded() == 0 and sps[1] in (66, 77)  # profiles whose slices have nothing in between
    order = bits.coded() + 4
    old = unit[1:].replace(b"\0\0\3", b"\0\0")
    bits = _Bits(old)
    bits.coded(), bits.coded(), bits.coded(), bits.fixed(frame_num + order)
    assert bits.fixed(3) == 0  # as many references as usual, in the usual order; marked in the usual way: this bit goes
    behind = bits._left + 1
    new = (int.from_bytes(old, "big") >> behind << behind | bits._rest << 1).to_bytes(len(old), "big")
    new = bytes([unit[0] & 0x1F]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", new.rstrip(b"\0"))
    assert len(new) <= len(unit)
    return data[:begin] + new.ljust(len(unit), b"\0") + data[begin + len(unit) :]


def test_a_reference_that_says_it_is_none_is_missed() -> None:
    """What refers to it has wrong pixels when it is decoded whole, without a word, and must have the same wrong ones."""
    data = h264(32, THREE, gop=32)
    lying = unmarked(data, 8 * 512)
    clip, expected = row_of(lying), whole(lying)
    assert {*range(9, 32)} <= {i for i, (a, b) in enumerate(zip(whole(data), expected, strict=True)) if a != b}
    for wanted, restarts in (([2, 3], 0), ([6], 1), ([8], 0), ([8, 10], 1), ([20, 31], 1)):
        meters = assert_exact(clip, lying, wanted, expected)
        assert [meter.restarts for meter in meters] == [restarts] * 2, wanted


def test_units_that_decide() -> None:
    with av.open(io.BytesIO(h264(4, THREE))) as container:
        sequence = read_sequence(container.streams.video[0].codec_context.extradata)
    assert sequence and sequence.length_size == 4 and sequence.frame_num_bits == 4

    def packet(*units: bytes) -> bytes:
        return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)

    def picture(kind: int, frame_num: int) -> bytes:  # a P slice from the first macroblock on, with the first parameters
        return bytes([kind, *int(f"1001101{frame_num:04b}10000", 2).to_bytes(2, "big")])

    idr, reference, other = picture(0x65, 0), [picture(0x41, number) for number in range(16)], picture(0x01, 2)
    beside, parameters = (b"\6\1\1\0\x80", b"\x09\xf0"), b"\x68\xee"

    def left_out(*packets: bytes, wanted: int = -1) -> list[int]:
        droppable = DroppablePictures(sequence)
        return [number for number, data in enumerate(packets) if droppable.leaves_out(data, number == wanted)]

    start = packet(idr), packet(reference[1])
    assert left_out(*start, packet(other), packet(*beside, other, other), packet(reference[2]), packet(reference[3])) == [2, 3]
    assert left_out(*start, packet(other), packet(other), packet(other), wanted=3) == [2, 4]
    assert left_out(*start, packet(other), packet(parameters, other), packet(other, reference[2])) == [2]
    assert left_out(packet(reference[7]), packet(picture(0x01, 8)), packet(reference[8])) == [1]  # it begins in the middle
    assert left_out(*(packet(reference[i % 16]) for i in range(20)), packet(picture(0x01, 4)), packet(reference[4])) == [20]
    for unknown in (b"\x14\0\0", b"\x02\0\0", b"\x67\x42"):  # a layer, a partition, other parameters of the sequence
        assert left_out(*start, packet(other, unknown), packet(other)) == []
    for missing in (packet(reference[3]), packet(picture(0x01, 3)), packet(b"\x14\0\0"), packet(b"\x41")):
        with pytest.raises(FrameNumError):
            left_out(*start, packet(other), missing, wanted=3)
    assert read_sequence(b"") is None and read_sequence(b"\1\x64\0\x15\xff") is None


ENCODINGS = {
    "three droppable": f"-c:v libx264 -preset veryfast -tune fastdecode -g 24 -x264-params open-gop=0:{THREE} x.mp4",
    "seven": "-c:v libx264 -preset veryfast -g 24 -bf 7 -x264-params open-gop=0:ref=1:b-adapt=0:b-pyramid=none x.mp4",
    "x264's defaults": "-c:v libx264 x.mp4",
    "open": "-c:v libx264 -preset veryfast -g 24 -bf 3 -x264-params open-gop=1 x.mp4",
    "fields": "-c:v libx264 -preset veryfast -g 24 -bf 3 -flags +ilme+ildct x.mp4",
    "slices": "-c:v libx264 -preset veryfast -g 24 -bf 3 -x264-params slices=4 x.mp4",
    "start codes": "-c:v libx264 -preset veryfast -g 24 -bf 3 x.ts",
    "hevc": "-c:v libx265 -preset ultrafast -g 24 -x265-params log-level=none:bframes=4 x.mp4",
    "vp9": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 24 x.webm",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["as it is", *ENCODINGS])
def test_real_clips(shared: Path, tmp_path: Path, name: str) -> None:
    draws, checked, left_out = random.Random(name), 0, 0
    for source in sorted((shared / "clips" / "videos").rglob("*.*")):
        file = source
        if name in ENCODINGS:
            *options, target = ENCODINGS[name].split()
            file = tmp_path / target
            command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "quiet", "-y", "-i", source, "-an", "-frames:v", "80"]
            command += ["-vf", "scale=160:96", "-pix_fmt", "yuv420p", "-threads", "1", *options]
            command += [*["-movflags", "+faststart"] * target.endswith("mp4"), file]
            if subprocess.run(command, check=False).returncode:
                continue
        data = file.read_bytes()
        try:
            clip = row_of(data)
        except RejectedError:
            continue
        expected = whole(data)
        for _ in range(8):
            stride, first = draws.randint(1, 6), draws.randrange(clip.num_frames)
            wanted = range(first, clip.num_frames, stride)[: draws.randint(1, 16)]
            meter, _ = assert_exact(clip, data, wanted, expected)
            left_out += meter.frames_decoded < wanted[-1] - wanted[0] + 1
        checked += 1
    assert checked > 50
    assert (left_out > checked / 2) == (name not in ("as it is", "fields", "hevc", "vp9"))
