from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from small_videos import X264, make_clip, make_video, run_ffmpeg
from test_delivery import described

from dataset_builders.media.clip import EncodedClip, Reject
from dataset_builders.media.decode_check import verify
from dataset_builders.media.geometry import geometry
from dataset_builders.media.presets import EncodeOptions
from dataset_builders.media.probe import VideoInfo
from pipeline.decoding.decode import decode_frames
from pipeline.decoding.orientation import upright


def test_timing(tmp_path: Path) -> None:
    clip = verify(make_video(tmp_path / "x.mp4", rate="30000/1001", frames=33).read_bytes())
    assert (clip.num_frames, clip.pts_start, clip.pts_step) == (33, 0, 1001)
    assert clip.fps == 30000 / 1001
    assert clip.duration == pytest.approx(33 * 1001 / 30000)
    milliseconds = verify(make_video(tmp_path / "x.mkv", rate="30", frames=33).read_bytes())
    assert (milliseconds.pts_step, milliseconds.fps) == (0, 30.0)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_only_closed_gops_count(tmp_path: Path, codec: str) -> None:
    """Key frames every 10 frames; in the open form, leading B-frames and recovery points cannot be started at."""
    parameters = "keyint=10:min-keyint=10:scenecut=0:bframes=3"
    name = "x264-params" if codec == "libx264" else "x265-params"
    for form, expected in (("open-gop=0", [0, 10, 20, 30]), ("open-gop=1", [0])):
        path = tmp_path / f"{form}.mp4"
        make_video(path, "-c:v", codec, f"-{name}", f"{parameters}:{form}:log-level=none", size="96x64", frames=40)
        assert verify(path.read_bytes()).keyframes == expected


def test_keyframes_can_be_started_at(tmp_path: Path) -> None:
    """Decoding from each of them on gives the frames that decoding from the beginning gives."""
    path = make_video(tmp_path / "x.mp4", "-c:v", "libx264", "-g", "8", "-bf", "3", size="96x64", frames=40)
    clip = verify(path.read_bytes())
    assert len(clip.keyframes) >= 5
    with av.open(path) as container:
        linear = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for keyframe in clip.keyframes:
        with av.open(path) as container:
            stream = container.streams.video[0]
            container.seek(clip.pts_start + keyframe * clip.pts_step, stream=stream)
            frame = next(container.decode(stream))
            assert frame.pts == clip.pts_start + keyframe * clip.pts_step
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), linear[keyframe])


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("flip", [[], ["-display_hflip"]], ids=["", "mirrored"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_turns_a_decoded_frame_as_players_show_it(
    tmp_path: Path, rotation: int, flip: list[str], container: str
) -> None:
    """What training gets of a copy is what FFmpeg shows, which turns by itself."""
    plain, turned = make_video(tmp_path / "plain.mp4", size="96x64"), tmp_path / f"turned.{container}"
    run_ffmpeg("-display_rotation", str(rotation), *flip, "-i", plain, "-c", "copy", turned)
    run_ffmpeg("-i", turned, "-c:v", "ffv1", "-pix_fmt", "yuv420p", tmp_path / "shown.mkv")
    built = make_clip(turned, preset="copy")
    assert isinstance(built, EncodedClip)
    assert (built.row["rotation"] >= 360, built.row["rotation"] % 180) == (bool(flip), rotation % 180)
    assert flip or built.row["rotation"] == rotation
    with av.open(turned) as stored, av.open(tmp_path / "shown.mkv") as shown:
        decoded = next(stored.decode(video=0)).to_ndarray(format="gray")
        frame = next(shown.decode(video=0))
        expected = frame.to_ndarray(format="gray")
        colours = frame.to_ndarray(format="rgb24").astype(int)
    assert (built.row["width"], built.row["height"]) == expected.shape[::-1]
    np.testing.assert_array_equal(upright(decoded, built.row["rotation"]), expected)
    (delivered,) = decode_frames(described(built), built.data, np.array([0]))
    assert np.abs(delivered - colours).mean() < 3


def test_a_frame_that_is_turned_otherwise_is_no_copy(tmp_path: Path) -> None:
    """Photographs in a row, of which some lie on their side."""
    for number in range(20):
        exif = Image.Exif()
        exif[0x112] = 7 if number < 18 else 1
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / f"{number}.jpg", exif=exif)
    run_ffmpeg("-framerate", "10", "-i", tmp_path / "%d.jpg", "-c", "copy", tmp_path / "x.mov")
    reject = make_clip(tmp_path / "x.mov", preset="copy")
    assert isinstance(reject, Reject)
    assert reject.detail == "its orientation changes from 630 to 0 in frame 18"


def test_rotation_of_real_phone_videos(shared: Path, tmp_path: Path) -> None:
    for name in ("video_90.mov", "video_180.mov", "video_270.mov"):
        path = shared / "clips" / "videos" / "decord" / name
        run_ffmpeg("-i", path, "-c:v", "ffv1", "-pix_fmt", "yuv420p", tmp_path / "shown.mkv")
        rotation = verify(path.read_bytes()).rotation
        with av.open(path) as turned, av.open(tmp_path / "shown.mkv") as shown:
            decoded = next(turned.decode(video=0)).to_ndarray(format="gray")
            expected = next(shown.decode(video=0)).to_ndarray(format="gray")
        np.testing.assert_array_equal(np.rot90(decoded, rotation // 90), expected)


@pytest.mark.parametrize(("tag", "name"), [("bt709", "bt709"), ("smpte170m", "bt601"), ("bt2020nc", "bt2020")])
def test_colour_tags(tmp_path: Path, tag: str, name: str) -> None:
    for colour_range, expected in (("tv", "limited"), ("pc", "full")):
        filters = f"scale=out_range={colour_range},setparams=colorspace={tag}:range={colour_range}"
        path = make_video(tmp_path / "x.mp4", "-vf", filters, *X264)
        clip = verify(path.read_bytes())
        assert (clip.matrix, clip.range) == (name, expected)


def test_defaults_make_what_the_loader_expects() -> None:
    options = EncodeOptions()
    info = VideoInfo(0, "", "", 1920, 1080, Fraction(1), 0, "", True, "bt709", Fraction(30), True, 1)
    assert geometry(info, options)[1] == (448, 256)
