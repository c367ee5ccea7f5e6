"""One bit is flipped: a video of which a packet then gives no frame is no clip, whatever libav makes of the rest."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from small_videos import make_clips

from dataset_builders.media.clip import EncodedClip, Reject
from dataset_builders.media.decode_check import verify
from dataset_builders.media.presets import EncodeOptions
from dataset_builders.media.rejects import Reason, RejectedError
from tests.pipeline.encoding import encode, numbered_frame

FRAMES = [numbered_frame(number) for number in range(24)]
QUIET = "log-level=none:keyint=8:min-keyint=8:scenecut=0:"
CODECS = {
    "hevc": ("libx265", "matroska", {"x265-params": QUIET + "bframes=3"}),
    "hevc with open groups": ("libx265", "mpegts", {"x265-params": QUIET + "bframes=3:open-gop=1"}),
    "h264": ("libx264", "matroska", {"bf": "3"}),
    "vp9": ("libvpx-vp9", "matroska", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", "matroska", {"preset": "13"}),
    "mpeg4": ("mpeg4", "matroska", {"bf": "2"}),
    "mpeg2": ("mpeg2video", "mpegts", {"bf": "2"}),
}


def decoded(data: bytes) -> tuple[list[int], list[int], bool, int]:
    """Stamps of packets, of frames, whether the decoder says anything, packets that fail: the slow and certain way."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as lines, av.open(io.BytesIO(data)) as container:
            packets, frames, failed = [], [], 0
            lines.clear()
            for packet in container.demux(video=0):
                packets += [packet.pts] * (packet.size > 0)
                try:
                    frames += [frame.pts for frame in packet.decode()]
                except av.FFmpegError:
                    failed += 1
            return packets, frames, bool(lines), failed
    finally:
        av.logging.set_level(None)


def flipped(data: bytes, flips: int) -> Iterator[bytes]:
    """The video with one bit changed, somewhere behind its first group of pictures."""
    rng = np.random.default_rng(0)
    for at in rng.integers(len(data) * 4 // 10, len(data) * 9 // 10, flips).tolist():
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        yield bytes(damaged)


@pytest.mark.parametrize("name", CODECS)
def test_a_clip_that_lost_frames_is_damaged(name: str) -> None:
    codec, container, options = CODECS[name]
    data = encode(FRAMES, codec, container, options=options)
    assert verify(data).num_frames == len(FRAMES)
    judged = 0
    for damaged in flipped(data, 24):
        try:
            packets, frames, said, failed = decoded(damaged)
        except (av.FFmpegError, IndexError):
            continue  # the container is hit
        judged += 1
        lost = len(frames) < len(packets)
        try:
            taken = verify(damaged).num_frames
        except RejectedError as error:
            assert error.reason == Reason.DAMAGED
            continue
        assert taken == len(frames)
        assert not failed
        assert not (lost and (said or name == "av1")), "frames were lost in silence"
    assert judged > 12


@pytest.fixture(scope="module")
def silent_loss() -> tuple[bytes, list[float]]:
    """HEVC of which frames are missing, and no packet fails and no frame is marked; and their times in seconds."""
    codec, container, options = CODECS["hevc"]
    for damaged in flipped(encode(FRAMES, codec, container, options=options), 100):
        packets, frames, said, failed = decoded(damaged)
        if said and not failed and len(frames) < len(packets):
            return damaged, sorted(stamp / 1000 for stamp in set(packets) - set(frames))
    raise AssertionError("no such bit was found")


def test_a_source_that_lost_frames_is_damaged(tmp_path: Path, silent_loss: tuple[bytes, list[float]]) -> None:
    """Copied or encoded, whole, in parts and at another rate; a part that none is missing of is taken."""
    data, lost = silent_loss
    path = tmp_path / "x.mkv"
    path.write_bytes(data)
    hit = {"start": lost[0] - 0.1, "end": lost[-1] + 0.1}
    for preset, request in (
        ("copy", {}),
        ("h264-fast", {}),
        ("h264-fast", {"rate": 10.0}),
        ("h264-fast", hit),
        ("vp9", hit | {"rate": 15.0}),
    ):
        (reject,) = make_clips(path, EncodeOptions(preset=preset, min_frames=1), **request)
        assert isinstance(reject, Reject)
        assert reject.reason == Reason.DAMAGED
        assert "give no frame; hevc: " in reject.detail
    for request in ({}, {"rate": 15.0}):
        (clip,) = make_clips(path, EncodeOptions(min_frames=1), start=0.0, end=lost[0] - 0.05, **request)
        assert isinstance(clip, EncodedClip)


@pytest.mark.parametrize("name", ["hevc with open groups", "h264", "mpeg4", "mpeg2"])
def test_what_begins_in_the_middle_is_no_damage(name: str) -> None:
    """Of pictures that refer to what was before a video's first key frame none comes out, and decoders complain."""
    codec, _, options = CODECS[name]
    data = encode(FRAMES, codec, "matroska", options=options)
    for dropped in range(5, 12, 2):
        cut = io.BytesIO()
        with av.open(io.BytesIO(data)) as whole, av.open(cut, "w", format="matroska") as output:
            stream = output.add_stream_from_template(whole.streams.video[0])
            for packet in list(whole.demux(video=0))[dropped:-1]:
                packet.stream = stream
                output.mux(packet)
        assert 8 <= verify(cut.getvalue()).num_frames <= len(FRAMES) - dropped
    if name == "mpeg2":
        stream = encode(FRAMES, codec, "mpegts", options=options)
        assert 8 <= verify(stream[188 * 9 :]).num_frames < len(FRAMES)


def remuxed(data: bytes, change: Callable[[bytes], bytes] = bytes, cluster: int = 5000) -> bytes:
    """Matroska with other packets, and clusters of so many milliseconds."""
    target, muxing = io.BytesIO(), {"cluster_time_limit": str(cluster)}
    with av.open(io.BytesIO(data)) as whole, av.open(target, "w", format="matroska", options=muxing) as output:
        stream = output.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                changed = av.Packet(change(bytes(packet)))
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe, changed.stream = packet.is_keyframe, stream
                output.mux(changed)
    return target.getvalue()


def nal_places(data: bytes) -> list[int]:
    """Where the NAL units of Annex B begin, behind their start codes."""
    places, at = [], data.find(b"\0\0\1")
    while at >= 0:
        places.append(at + 3)
        at = data.find(b"\0\0\1", at + 3)
    return places


def nal_type(data: bytes, place: int) -> int:
    return data[place] >> 1 & 63


def from_key_frame(data: bytes, number: int) -> bytes:
    """Raw HEVC from its key frame of that number on, with the parameter sets of its beginning."""
    places = nal_places(data)
    keys = [place for place in places if 16 <= nal_type(data, place) <= 21]
    return data[: keys[0] - 3].rstrip(b"\0") + b"\0" + data[keys[number] - 3 :]


@pytest.fixture(scope="module")
def raw_open_groups() -> bytes:
    codec, _, options = CODECS["hevc with open groups"]
    return encode(FRAMES, codec, "hevc", options=options)


def test_raw_hevc_that_lost_frames_is_damaged(raw_open_groups: bytes) -> None:
    """No packet has a time stamp. The number of a picture that others refer to is changed, so that they do not find it."""
    assert verify(raw_open_groups).num_frames == len(FRAMES)
    judged = 0
    for place in nal_places(raw_open_groups):
        if nal_type(raw_open_groups, place) not in (1, 9):
            continue
        damaged = bytearray(raw_open_groups)
        damaged[place + 2] ^= 2  # slice_pic_order_cnt_lsb, H.265 section 7.3.6.1
        packets, frames, said, failed = decoded(bytes(damaged))
        if said and not failed and len(frames) < len(packets):
            judged += 1
            with pytest.raises(RejectedError, match="give no frame; hevc: ") as caught:
                verify(bytes(damaged))
            assert caught.value.reason == Reason.DAMAGED
    assert judged > 1


def test_raw_hevc_that_begins_or_goes_on_with_an_open_group_is_no_damage(raw_open_groups: bytes) -> None:
    cut = from_key_frame(raw_open_groups, 1)
    packets, frames, _, _ = decoded(cut)
    assert 8 <= len(frames) < len(packets)
    assert verify(cut).num_frames == len(frames)
    end_of_sequence = b"\0\0\1\x48\1"
    joined = cut + end_of_sequence + cut + end_of_sequence
    packets, frames, said, _ = decoded(joined)
    assert len(frames) < len(packets) - 3  # it may leave out what it has not shown by then
    assert not said
    assert verify(joined).num_frames == len(frames)


@pytest.mark.parametrize("open_groups", [0, 1])
def test_a_unit_that_the_decoder_skips_is_damage(open_groups: int) -> None:
    """Each bit of the header of each NAL unit in the middle, its type and layer among them, is flipped."""
    options = {"x265-params": f"{QUIET}bframes=3:open-gop={open_groups}"}
    data = encode(FRAMES, "libx265", "matroska", options=options)
    with av.open(io.BytesIO(data)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    silent = 0
    for packet in packets[9:14]:
        place = data.index(packet) + 4
        for bit in range(16):
            damaged = bytearray(data)
            damaged[place + bit // 8] ^= 1 << bit % 8
            _, frames, said, failed = decoded(bytes(damaged))
            if len(frames) < len(FRAMES):
                silent += not said and not failed
                with pytest.raises(RejectedError) as caught:
                    verify(bytes(damaged))
                assert caught.value.reason == Reason.DAMAGED, (place, bit)
    assert silent > 5


def test_pictures_of_another_layer_are_no_damage() -> None:
    """A second view, or transparency: its units come beside those that are shown."""
    codec, container, options = CODECS["hevc"]

    def add_layer(packet: bytes) -> bytes:
        size = int.from_bytes(packet[:4], "big") + 4
        unit, rest = packet[:size], packet[size:]
        other = unit[:5] + bytes([unit[5] | 8]) + unit[6:] if unit[4] >> 1 < 32 else b""
        return unit + (add_layer(rest) if rest else b"") + other

    layered = remuxed(encode(FRAMES, codec, container, options=options), add_layer)
    assert len(layered) > 2000
    assert verify(layered).num_frames == len(FRAMES)


@pytest.mark.parametrize("fps", [25, 30])
def test_a_packet_that_the_demuxer_lost_is_damage(tmp_path: Path, fps: int) -> None:
    """One bit of its track's number; where nothing is said, a gap is what a recorder left out."""
    data = remuxed(encode(FRAMES, "mpeg4", "matroska", fps=fps, options={"bf": "0"}), cluster=400)
    with av.open(io.BytesIO(data)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][10]
    damaged = bytearray(data)
    damaged[data.index(packet) - 4] ^= 0x40
    path = tmp_path / "x.mkv"
    path.write_bytes(damaged)
    for preset in ("copy", "h264-fast"):
        (reject,) = make_clips(path, EncodeOptions(preset=preset, min_frames=1))
        assert isinstance(reject, Reject)
        assert reject.reason == Reason.DAMAGED
        assert reject.detail.endswith("packets are missing; matroska,webm: Invalid track number 65")
    stamps = [number + (number > 9) for number in range(len(FRAMES))]
    assert verify(encode(FRAMES, "mpeg4", "matroska", fps=fps, stamps=stamps)).num_frames == len(FRAMES)
