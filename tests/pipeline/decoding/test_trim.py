"""What of a clip a hardware decoder is sent, and which clips it is not sent. libav looks inside; no DALI is needed."""

import io
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.decoding.decode import ClipRequest, decode_frames
from pipeline.decoding.trim import TrimmedClip, UnsupportedClipError, can_decode, pack, trim, unpack
from pipeline.storage.manifest import Clip
from tests.heap import left_behind
from tests.pipeline.encoding import HEIGHT, WIDTH, describe, encode, encode_vp9_with_hidden_frames, numbered_frame, read_number

FRAMES = 50
NUMBERED = [numbered_frame(i) for i in range(FRAMES)]
VP9 = ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8"})
WHOLE = np.array([[0, 0, WIDTH, HEIGHT]])


@pytest.fixture(scope="module")
def vp9() -> bytes:
    return encode(NUMBERED, VP9[0], VP9[1], options=VP9[2])


def request(clip: Clip, data: bytes, *frames: int) -> ClipRequest:
    return ClipRequest(clip, data, np.array(frames), WHOLE)


def frames_inside(trimmed: TrimmedClip) -> list[np.ndarray]:
    """All frames of what DALI is sent, by libav, which decodes what DALI's CPU decoder cannot."""
    with av.open(io.BytesIO(trimmed.data), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


VARIABLE = [i + 3 * (i // 5) for i in range(FRAMES)]
NO_LOG = "log-level=none:"
STREAMS = {
    "h264": ("h264", "libx264", "mp4", {"bf": "0"}, None),
    "h264 with B-frames": ("h264", "libx264", "mp4", {"bf": "3"}, None),
    "h264 with B-frames, variable rate": ("h264", "libx264", "matroska", {"bf": "3"}, VARIABLE),
    "h264 with open GOPs": ("h264", "libx264", "mp4", {"bf": "3", "x264-params": "open-gop=1"}, None),
    "h264 in a transport stream": ("h264", "libx264", "mpegts", {"bf": "3"}, None),
    "hevc with open GOPs": ("hevc", "libx265", "mp4", {"x265-params": NO_LOG + "open-gop=1:bframes=3"}, None),
    "vp8 with hidden frames": ("vp8", "libvpx", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}, None),
    "vp9": ("vp9", *VP9, None),
    "vp9, variable rate": ("vp9", *VP9, VARIABLE),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_needed_packets_are_sent_and_frames_counted_anew(name: str) -> None:
    codec, encoder, container, options, stamps = STREAMS[name]
    frames = [numbered_frame(i, 192, 160) for i in range(FRAMES)]  # NVDEC takes HEVC from 144 x 144 on
    data = encode(frames, encoder, container, options=options, stamps=stamps)
    clip = describe(data, codec)
    for wanted in ([0, 1, 2], [7, 8, 9], [17, 33, 34], [34, 34, 34], [49]):
        trimmed = trim(request(clip, data, *wanted), "cuda")
        inside = frames_inside(trimmed)
        assert [read_number(inside[i]) for i in trimmed.frames[trimmed.places[0]]] == wanted
        assert trimmed.frames.dtype == np.int32
        if "open" not in name and "transport" not in name:  # those may begin a GOP or more earlier
            start = max(k for k in clip.keyframes if k <= wanted[0])
            assert len(inside) <= wanted[-1] - start + 1 + 3, "frames of other GOPs were sent"  # 3: what B-frames refer to
            assert read_number(inside[0]) == start


def test_edit_lists_do_not_shift_frames(tmp_path: Path) -> None:
    """Cut without encoding, between key frames: the first frames are in the file and not shown."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    whole.write_bytes(encode(NUMBERED, options={"bf": "2"}))
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", "0.4", "-i", str(whole), "-c", "copy", str(cut)]
    subprocess.run(ffmpeg, check=True)
    data = cut.read_bytes()
    clip = describe(data, "h264")
    assert clip.num_frames == FRAMES - 12
    for wanted in ([0, 1, 2], [0, 20, 37], [7, 8], [30]):
        assert [read_number(frame) for frame in decode_frames(clip, data, np.array(wanted))] == [12 + i for i in wanted]
        trimmed = trim(request(clip, data, *wanted), "cuda")
        inside = frames_inside(trimmed)
        assert [read_number(inside[i]) for i in trimmed.frames] == [12 + i for i in wanted]


def test_what_dali_would_not_give_exactly_is_left_to_libav(vp9: bytes, tmp_path: Path) -> None:
    full_chroma = io.BytesIO()
    with av.open(full_chroma, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        for pixels in NUMBERED[:4]:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv444p")))
        output.mux(stream.encode())
    data = full_chroma.getvalue()
    with pytest.raises(UnsupportedClipError, match="pixel format is yuv444p"):
        trim(request(describe(data, "h264"), data, 0, 1), "cuda")

    avi = encode(NUMBERED, container="avi", options={"bf": "3"})
    with pytest.raises(UnsupportedClipError, match="AVI"):
        trim(request(describe(avi, "h264"), avi, 0, 1), "cuda")

    hidden = encode_vp9_with_hidden_frames([numbered_frame(i, 256, 128) for i in range(FRAMES)], tmp_path)
    clip = describe(hidden, "vp9")
    with pytest.raises(UnsupportedClipError, match="hidden frames"):
        trim(request(clip, hidden, 0, 40), "cuda")

    interlaced = encode(NUMBERED, options={"x264-params": "tff=1", "flags": "+ildct+ilme"})
    with pytest.raises(UnsupportedClipError, match="interlaced"):
        trim(request(describe(interlaced, "h264"), interlaced, 0, 1), "cuda")

    with pytest.raises(UnsupportedClipError, match="on a CPU, not h264"):
        trim(request(replace(describe(vp9, "vp9"), codec="h264"), vp9, 0))


def test_capabilities_by_codec_size_and_device(vp9: bytes) -> None:
    clip = describe(vp9, "vp9")
    small = replace(clip, width=144, height=96)
    table = {
        ("vp9", "cpu"): None,
        ("mjpeg", "cpu"): None,
        ("h264", "cpu"): "DALI decodes vp8, vp9, mjpeg on a CPU, not h264",
        ("h264", "cuda"): None,
        ("mjpeg", "cuda"): "DALI decodes h264, hevc, vp8, vp9 on a GPU, not mjpeg",
        ("av1", "cuda"): "DALI decodes h264, hevc, vp8, vp9 on a GPU, not av1",
        ("vp9", "cuda"): "NVDEC decodes vp9 from 128 x 128 to 8192 x 8192 pixels",
    }
    for (codec, device), reason in table.items():
        assert can_decode(replace(small, codec=codec), device) == reason
    upright = replace(clip, codec="h264", width=16, height=48, rotation=90)  # 48 x 16 as coded
    assert can_decode(upright, "cuda") is None
    assert can_decode(replace(upright, rotation=0), "cuda") is not None


def test_a_trimmed_clip_through_memory(vp9: bytes) -> None:
    trimmed = trim(ClipRequest(describe(vp9, "vp9"), vp9, np.arange(3, 30, 3), np.array([[0, 0, 50, 40], [3, 4, 50, 40]])))
    memory = np.zeros((2, 9, 64, 64, 3), np.uint8)
    size = pack(trimmed, memory)
    back = unpack(memory, size)
    assert (back.clip, back.data) == (trimmed.clip, trimmed.data)
    for name in ("frames", "places", "boxes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(trimmed, name))
    with av.open(io.BytesIO(back.data)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 9
    with pytest.raises(UnsupportedClipError, match=f"takes {size} bytes, more than the 100 of its views"):
        pack(trimmed, np.zeros(100, np.uint8))


def test_trimming_leaves_nothing_in_the_heap(vp9: bytes) -> None:
    clip = describe(vp9, "vp9")
    assert left_behind(lambda: trim(request(clip, vp9, 11, 14))) < 50
