import csv
import io
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.decoding.decode import DecodeError
from pipeline.decoding.video_file import read_video
from pipeline.sampling import segment_frames
from tests.pipeline.encoding import encode, numbered_frame, read_number

NUMBERED = [numbered_frame(number) for number in range(50)]
B_FRAMES = {"bf": "3", "x264-params": "bframes=3:b-adapt=0:scenecut=0"}


@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [
        ("libx264", "mp4", B_FRAMES),
        ("libx264", "matroska", B_FRAMES),
        ("libvpx-vp9", "webm", {}),
        ("mpeg4", "avi", {"bf": "2"}),
    ],
)
def test_frames_are_counted_and_found(codec: str, container: str, options: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encode(NUMBERED, codec, container, options=options))
    video = read_video(tmp_path / "x")
    assert (video.clip.num_frames, video.clip.width, video.clip.height) == (50, 128, 64)
    assert np.abs(np.diff(video.times) - 1 / 30).max() < 2e-3 and video.seconds == pytest.approx(50 / 30, abs=0.07)
    frames = segment_frames(50, 6, 4, 3)
    views = video.views(frames, np.tile([0, 0, 128, 64], (3, 1)), (64, 128))
    assert [[read_number(frame) for frame in view] for view in views] == frames.tolist()


def test_times_of_a_variable_rate(tmp_path: Path) -> None:
    stamps = np.cumsum([0, *([1] * 20), *([5] * 29)])
    (tmp_path / "x").write_bytes(encode(NUMBERED, stamps=stamps.tolist()))
    video = read_video(tmp_path / "x")
    assert np.allclose(video.times, stamps / 30) and video.clip.pts_step == 0
    assert [
        read_number(frame) for frame in video.views(np.array([[3, 30, 49]]), np.array([[0, 0, 128, 64]]), (64, 128))[0]
    ] == [*(3, 30, 49)]


def test_crops_are_of_what_is_shown(tmp_path: Path) -> None:
    """Of pixels twice as wide as high a crop that is shown as a square is half as wide as high."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        output.mux(stream.encode(av.VideoFrame.from_ndarray(NUMBERED[0], format="rgb24")))
        output.mux(stream.encode())
    (tmp_path / "x").write_bytes(buffer.getvalue())
    video = read_video(tmp_path / "x")
    assert video.pixel_aspect == 2 and video.clip.num_frames == 1
    assert video.boxes((32, 32), 1).tolist() == [[48, 0, 32, 64]]
    assert video.boxes((32, 32), 3).tolist() == [[0, 0, 32, 64], [48, 0, 32, 64], [96, 0, 32, 64]]
    assert replace(video, pixel_aspect=1.0).boxes((32, 32), 1).tolist() == [[32, 0, 64, 64]]


def test_a_mirrored_video_is_seen_as_players_show_it(tmp_path: Path) -> None:
    """By the matrix of its track header (ISO 14496-12, 8.3.2), as front cameras write it."""
    data = bytearray(encode([numbered_frame(37)] * 3))
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 4] = (-(1 << 16)).to_bytes(4, "big", signed=True)
    (path := tmp_path / "x.mp4").write_bytes(data)
    video = read_video(path)
    assert (video.clip.rotation, video.clip.width, video.clip.height) == (360, 128, 64)
    frame = video.views(np.array([[1]]), np.array([[0, 0, 128, 64]]), (64, 128))[0, 0]
    assert read_number(frame[:, ::-1]) == 37


def test_what_is_no_video_or_is_damaged(tmp_path: Path) -> None:
    whole = encode(NUMBERED, options=B_FRAMES)
    damaged = bytearray(whole)
    end = whole.index(b"moov") - 4
    damaged[end - 300 : end] = np.random.default_rng(0).bytes(300)
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(NUMBERED[0]).save(picture, "png")
    with av.open(sound, "w", format="wav") as output:
        output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        output.mux(output.streams[0].encode(frame))  # type: ignore[attr-defined]
    small = encode([np.zeros((8, 64, 3), np.uint8)] * 3)
    for data, told in (
        (b"", "the file is empty"),
        (b"a text, and no video " * 50, "FFmpeg finds no video in it"),
        (whole[: len(whole) // 2], "without its index"),
        (picture.getvalue(), "a still image"),
        (sound.getvalue(), "no video stream"),
        (bytes(damaged), "packets do not decode"),
        (small, "64 x 8 pixels"),
    ):
        (tmp_path / "x.mp4").write_bytes(data)
        with pytest.raises(DecodeError, match=told):
            read_video(tmp_path / "x.mp4")
    with pytest.raises(OSError, match="nowhere"):
        read_video(tmp_path / "nowhere.mp4")


@pytest.mark.slow
def test_real_videos_have_as_many_frames_as_decode(shared: Path) -> None:
    with (shared / "clips" / "INDEX.tsv").open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened, delimiter="\t") if not row["path"].endswith("corrupted.mp4")]
    assert len(rows) > 50
    for row in rows:
        video = read_video(shared / "clips" / row["path"])
        assert video.clip.num_frames == int(row["frames_decoded"]), row["path"]
        frames = np.unique(np.linspace(0, video.clip.num_frames - 1, 4).astype(int))[None]
        assert video.views(frames, video.boxes((64, 64), 1), (64, 64)).std() > 3, row["path"]
