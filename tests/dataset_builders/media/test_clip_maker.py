"""From requests to clips. The pictures show their own number, so that frames are known by what is in them."""

import io
import os
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from small_videos import X264, make_clips, run_ffmpeg

from dataset_builders.media.clip import ClipRequest, EncodedClip, Reject
from dataset_builders.media.clip_maker import ClipMaker
from dataset_builders.media.presets import EncodeOptions
from dataset_builders.media.rejects import Reason

BITS = 10
ENCODING = ["h264-fast", "vp9", "mjpeg"]


def numbered_video(path: Path, *output: str, rate: str = "25", frames: int = 100) -> Path:
    """Frame n shows n in binary, a bar of 16 pixels a digit."""
    bars = "geq=lum='if(mod(floor(N/pow(2,floor(X/16))),2),200,40)':cb=128:cr=128"
    source = f"color=size={16 * BITS}x32:rate={rate},format=yuv420p,{bars}"
    run_ffmpeg("-f", "lavfi", "-i", source, "-frames:v", str(frames), *(output or X264), path)
    return path


def numbers(clip: EncodedClip | bytes) -> list[int]:
    """What the frames of a clip show."""
    with av.open(io.BytesIO(clip.data if isinstance(clip, EncodedClip) else clip)) as container:
        pictures = [frame.to_ndarray(format="gray")[:32, : 16 * BITS] for frame in container.decode(video=0)]
    bars = np.stack(pictures).reshape(len(pictures), 32, BITS, 16).mean(axis=(1, 3)) > 120
    return (bars @ (1 << np.arange(BITS))).tolist()


def taken(made: list[EncodedClip | Reject]) -> list[EncodedClip]:
    assert all(isinstance(clip, EncodedClip) for clip in made), made
    return [clip for clip in made if isinstance(clip, EncodedClip)]


def rejected(made: list[EncodedClip | Reject]) -> Reject:
    (reject,) = made
    assert isinstance(reject, Reject), reject
    return reject


@pytest.mark.parametrize("preset", ENCODING)
@pytest.mark.parametrize("frames", [100, 103])
def test_a_long_video_is_cut_into_equal_clips(tmp_path: Path, preset: str, frames: int) -> None:
    path = numbered_video(tmp_path / "x.mp4", "-c:v", "libx264", "-bf", "3", frames=frames)
    options = EncodeOptions(preset, gop=7, max_seconds=1.0)
    clips = taken(make_clips(path, options))
    assert [clip.row["key"] for clip in clips] == [f"key-{number:03d}" for number in range(len(clips))]
    lengths = [clip.row["num_frames"] for clip in clips]
    assert len(clips) == -(-frames // 25)
    assert max(lengths) - min(lengths) <= 1
    assert list(chain.from_iterable(numbers(clip) for clip in clips)) == list(range(frames))
    edges = np.cumsum([0, *lengths]) / 25
    for clip, start, end in zip(clips, edges[:-1], edges[1:], strict=True):
        row = clip.row
        assert (row["start"], row["end"]) == pytest.approx((start, end))
        assert (row["pts_start"], row["fps"], row["keyframes"][0]) == (0, 25.0, 0)
        assert row["pts_step"] > 0
        assert max(b - a for a, b in pairwise([*row["keyframes"], row["num_frames"]])) <= 7
        assert (row["matrix"], row["range"], row["width"], row["height"]) == ("bt601", "limited", 160, 32)
        assert clip.data.index(b"moov") < clip.data.index(b"mdat")
    assert [clip.data for clip in taken(make_clips(path, options))] == [clip.data for clip in clips]


def test_a_video_as_long_as_a_clip_may_be_is_not_cut(tmp_path: Path) -> None:
    (clip,) = taken(make_clips(numbered_video(tmp_path / "x.mp4"), EncodeOptions(max_seconds=4.0), source_id="id"))
    row = clip.row
    assert (row["key"], row["start"], row["end"], row["source_id"], row["num_frames"]) == ("key", None, None, "id", 100)


def test_a_cut_video_of_variable_rate(tmp_path: Path) -> None:
    thinned = "select='lt(n,60)+not(mod(n,3))'"
    run_ffmpeg("-i", numbered_video(tmp_path / "x.mp4", frames=160), "-vf", thinned, "-fps_mode", "vfr", tmp_path / "v.mkv")
    clips = taken(make_clips(tmp_path / "v.mkv", EncodeOptions(max_seconds=2.0)))
    seen = list(chain.from_iterable(numbers(clip) for clip in clips))
    assert len(clips) == 4
    assert seen[:60] == list(range(60))
    assert sorted(set(seen[60:])) == list(range(60, 160, 3))
    assert all(shown == pytest.approx(place, abs=2) for place, shown in enumerate(seen))
    assert len({clip.row["num_frames"] for clip in clips[:-1]}) == 1
    assert abs(clips[-1].row["num_frames"] - clips[0].row["num_frames"]) <= 2


@pytest.mark.parametrize("preset", ["h264-fast", "copy"])
def test_spliced_transport_streams(tmp_path: Path, preset: str) -> None:
    """Their packets' numbers do not follow on, which FFmpeg calls corrupt, and their clocks fall back or leap; all decodes."""
    parts = []
    for number, offset in enumerate((0.0, 0.0, 40.0)):
        coding = ["-c:v", "libx264", "-bf", "2", "-output_ts_offset", str(offset)]
        parts.append(numbered_video(tmp_path / f"{number}.ts", *coding, frames=20 + number).read_bytes())
    (path := tmp_path / "x.ts").write_bytes(b"".join(parts))
    (clip,) = taken(make_clips(path, EncodeOptions(preset)))
    assert numbers(clip) == [*range(20), *range(21), *range(22)]
    assert (clip.row["fps"], clip.row["num_frames"]) == (25.0, 63)
    if preset == "copy":
        return
    reject = rejected(make_clips(path, start=0.0, end=0.5))
    assert (reject.reason, reject.detail) == (
        Reason.UNSUPPORTED,
        "its time stamps begin anew in the middle: no part can be cut from it",
    )


@pytest.mark.parametrize("preset", ["h264-fast", "copy"])
def test_a_transport_stream_that_lost_something(tmp_path: Path, preset: str) -> None:
    """A packet of its 188 bytes out of the middle of a frame."""
    data = numbered_video(tmp_path / "x.ts", "-c:v", "libx264", "-vf", "noise=alls=40:allf=t", frames=40).read_bytes()
    at = len(data) // 188 // 2 * 188
    (tmp_path / "x.ts").write_bytes(data[:at] + data[at + 188 :])
    assert rejected(make_clips(tmp_path / "x.ts", EncodeOptions(preset))).reason is Reason.DAMAGED


def test_clips_of_equal_length_leave_out_the_remainder(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "x.mp4")
    clips = taken(make_clips(path, clip_frames=30))
    assert [numbers(clip) for clip in clips] == [list(range(first, first + 30)) for first in (0, 30, 60)]
    (clip,) = taken(make_clips(path, clip_frames=60))
    assert (clip.row["key"], clip.row["start"], clip.row["end"]) == ("key", 0.0, 2.4)
    reject = rejected(make_clips(path, clip_frames=101))
    assert (reject.reason, reject.detail) == (Reason.TOO_SHORT, "100 frames at 25 per second; a clip is 101")


WINDOW_SOURCES = {
    "closed.mp4": ["-c:v", "libx264", "-g", "30"],
    "open.mp4": ["-c:v", "libx264", "-x264-params", "keyint=30:open-gop=1:bframes=3"],
    "open.mkv": ["-c:v", "libx264", "-x264-params", "keyint=30:open-gop=1:bframes=3"],
    "hevc.mp4": ["-c:v", "libx265", "-x265-params", "keyint=30:open-gop=1:log-level=none"],
    "late.mkv": ["-c:v", "libx264", "-g", "30", "-output_ts_offset", "100"],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-bf", "2", "-g", "15"],
    "h264.ts": ["-c:v", "libx264", "-g", "30"],
    "mpeg2.mpg": ["-c:v", "mpeg2video", "-bf", "2", "-g", "15"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-g", "30", "-q:v", "2"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-b:v", "200k", "-cpu-used", "8", "-deadline", "realtime", "-g", "30"],
    "flash.flv": ["-c:v", "flv", "-g", "30", "-q:v", "2"],
    "one-gop.mp4": ["-c:v", "libx264", "-g", "9999"],
}


@pytest.mark.parametrize("name", WINDOW_SOURCES)
def test_a_window_holds_the_frames_that_are_shown_in_it(tmp_path: Path, name: str) -> None:
    path = numbered_video(tmp_path / name, *WINDOW_SOURCES[name], frames=500)
    for start, end, first, last in (
        (8.0, 12.0, 200, 299),
        (7.99, 12.02, 200, 300),
        (0.0, 2.0, 0, 49),
        (None, 1.0, 0, 24),
        (19.0, 99.0, 475, 499),
        (18.0, None, 450, 499),
    ):
        (clip,) = taken(make_clips(path, start=start, end=end))
        assert numbers(clip) == list(range(first, last + 1)), (start, end)
        assert (clip.row["start"], clip.row["end"]) == pytest.approx((first / 25, (last + 1) / 25), abs=0.002)
        assert clip.row["pts_step"] > 0
    reject = rejected(make_clips(path, start=21.0, end=30.0))
    assert (reject.reason, reject.start, reject.end) == (Reason.TOO_SHORT, 21.0, 30.0)


def test_avi_has_no_time_stamps(tmp_path: Path) -> None:
    """With B-frames FFmpeg's guess of them is off, by less than OFF: every frame of the window comes once, in order."""
    path = numbered_video(tmp_path / "x.avi", "-c:v", "mpeg4", "-bf", "2", "-g", "30", "-q:v", "2", frames=300)
    for start, end, first, last in ((4.0, 6.0, 100, 149), (0.0, 2.0, 0, 49), (10.0, None, 250, 299)):
        (clip,) = taken(make_clips(path, start=start, end=end))
        seen = numbers(clip)
        assert seen == list(range(seen[0], seen[-1] + 1))
        assert abs(seen[0] - first) <= 3 and abs(seen[-1] - last) <= 3


def test_the_sound_begins_first(tmp_path: Path) -> None:
    """Seconds count from what a player calls 0."""
    path = numbered_video(tmp_path / "picture.mp4", frames=200)
    sound = ["-f", "lavfi", "-i", "sine=duration=10"]
    run_ffmpeg(*sound, "-itsoffset", "1", "-i", path, "-map", "0", "-map", "1", "-c:v", "copy", tmp_path / "x.mkv")
    (clip,) = taken(make_clips(tmp_path / "x.mkv", start=3.0, end=5.0))
    assert numbers(clip) == list(range(50, 100))
    assert (clip.row["start"], clip.row["end"]) == pytest.approx((3, 5), abs=0.002)


def test_a_window_of_a_video_of_variable_rate(tmp_path: Path) -> None:
    thinned = "select='lt(n,250)+not(mod(n,3))'"
    path = numbered_video(tmp_path / "x.mp4", "-c:v", "libx264", "-vf", thinned, "-fps_mode", "vfr", "-g", "30", frames=400)
    (clip,) = taken(make_clips(path, start=8.0, end=12.0))
    seen = numbers(clip)
    assert seen[:50] == list(range(200, 250))
    assert all(shown == pytest.approx(place, abs=2) for place, shown in enumerate(seen, start=200))
    assert len(seen) == pytest.approx(100, abs=2)


@pytest.mark.parametrize("rate", ["24", "30000/1001", "25"])
def test_a_window_is_retimed_and_cut(tmp_path: Path, rate: str) -> None:
    """AVA: 900 s of a film at 30 per second are 27,000 frames, whatever the film's rate; here 10 s are 300."""
    path = numbered_video(tmp_path / "x.mkv", "-c:v", "libx264", "-g", "40", rate=rate, frames=400)
    clips = taken(make_clips(path, start=2.0, end=12.0, rate=30.0, clip_frames=60))
    assert [clip.row["num_frames"] for clip in clips] == [60] * 5
    assert [clip.row["start"] for clip in clips] == pytest.approx([2, 4, 6, 8, 10])
    assert {clip.row["fps"] for clip in clips} == {30.0}
    seen = list(chain.from_iterable(numbers(clip) for clip in clips))
    source = float(Fraction(rate))
    assert all(abs(shown - (2 + place / 30) * source) <= 1 for place, shown in enumerate(seen))


def test_a_whole_video_is_retimed(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "x.mp4", rate="50", frames=100)
    (clip,) = taken(make_clips(path, rate=12.5))
    assert (clip.row["num_frames"], clip.row["fps"], clip.row["start"]) == (25, 12.5, None)
    assert all(abs(shown - 4 * place) <= 2 for place, shown in enumerate(numbers(clip)))
    (same,) = taken(make_clips(path, rate=50.0))
    assert numbers(same) == list(range(100))


def test_a_window_beyond_what_is_left_of_a_file_is_truncated(tmp_path: Path) -> None:
    whole = numbered_video(tmp_path / "x.mp4", *X264, "-movflags", "+faststart", "-g", "25", frames=500).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    assert rejected(make_clips(tmp_path / "half.mp4", start=4.0, end=18.0)).reason is Reason.TRUNCATED
    assert rejected(make_clips(tmp_path / "half.mp4")).reason is Reason.TRUNCATED
    (clip,) = taken(make_clips(tmp_path / "half.mp4", start=2.0, end=4.0))
    assert numbers(clip) == list(range(50, 100))


def test_damage_outside_of_a_window_does_not_matter(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "x.mp4", *X264, "-g", "25", frames=400)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat")
    middle = begin + (len(data) - begin) * 6 // 10
    data[middle : middle + 300] = np.random.default_rng(0).bytes(300)
    path.write_bytes(data)
    assert rejected(make_clips(path)).reason is Reason.DAMAGED
    assert len(taken(make_clips(path, start=1.0, end=4.0))) == 1


def test_copy_says_what_it_cannot(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "x.mp4")
    copy = EncodeOptions("copy", max_seconds=1.0)
    (clip,) = taken(make_clips(path, copy))
    assert (clip.data, clip.row["key"]) == (path.read_bytes(), "key")
    for request in ({"start": 1.0}, {"end": 2.0}, {"rate": 12.0}, {"clip_frames": 20}, {"kind": "frames", "rate": 25.0}):
        reject = rejected(make_clips(path, copy, **request))
        assert reject.reason is Reason.UNSUPPORTED
        assert "h264-fast, h264-plain, vp9, mjpeg can" in reject.detail


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a cut is finished, given up after its first clip, or fails."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    path = numbered_video(tmp_path / "x.mp4")
    before = set(os.listdir("/proc/self/fd"))
    options = EncodeOptions(max_seconds=1.0)
    assert len(make_clips(path, options)) == 4
    unfinished = ClipMaker(options)(ClipRequest(os.fsencode(tmp_path), b"x.mp4", "test", "key"))
    assert isinstance(next(unfinished), EncodedClip)
    assert not list((tmp_path / "scratch").iterdir())
    unfinished.close()
    assert set(os.listdir("/proc/self/fd")) == before
