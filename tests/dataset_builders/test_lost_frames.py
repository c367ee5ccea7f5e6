"""One bit is flipped: a video of which a packet then gives no frame is no clip, whatever libav makes of the rest."""

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from small_videos import make_clips

from dataset_builders.clips import Clip, Reject
from dataset_builders.presets import EncodeOptions
from dataset_builders.rejects import Reason, RejectedError
from dataset_builders.verify import verify
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
        assert isinstance(clip, Clip)


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
