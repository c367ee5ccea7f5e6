import os
import random
from fractions import Fraction
from pathlib import Path

import pytest
from small_videos import X264, make_video, run_ffmpeg

from dataset_builders.media.frame_rate import continued, frame_rate
from dataset_builders.media.probe import probe
from dataset_builders.media.rejects import Reason, RejectedError
from tests.heap import left_behind


def rejection(path: Path) -> RejectedError:
    with pytest.raises(RejectedError) as caught:
        probe(os.fsencode(path))
    return caught.value


def test_equally_spaced_frames_are_recognised() -> None:
    thirty = [n / 30 for n in range(300)]
    assert frame_rate(thirty, []) == (Fraction(30), True)
    assert frame_rate([round(t, 3) for t in thirty], []) == (Fraction(30), True)  # Matroska's milliseconds
    assert frame_rate([n * 1001 / 30000 for n in range(3000)], [Fraction(30)]) == (Fraction(30000, 1001), True)
    assert frame_rate([n / 29.97 for n in range(100)], [Fraction(2997, 100)]) == (Fraction(2997, 100), True)
    assert frame_rate([t + 0.01 * (n % 3) for n, t in enumerate(thirty)], []) == (Fraction(30), True)  # jitter
    rate, constant = frame_rate([n / 13.7 for n in range(200)], [])
    assert constant
    assert float(rate) == pytest.approx(13.7, rel=1e-4)


def test_gaps_make_a_source_variable() -> None:
    thirty = [n / 30 for n in range(300)]
    assert frame_rate(thirty[:100] + thirty[101:], []) == (Fraction(30), False)  # a dropped frame
    slower = thirty[:200] + [thirty[200] + n / 10 for n in range(30)]
    assert frame_rate(slower, []) == (Fraction(30), False)
    bursts = [second + burst / 1000 for second in range(20) for burst in range(5)]  # 1000 per second, then a pause
    rate, constant = frame_rate(bursts, [])
    assert not constant
    assert rate <= 21  # four times the mean, so that the number of frames stays bounded


def test_spliced_streams_go_on() -> None:
    """Where decoding times fall back, or pause for too long; not where frames are only put in order."""
    one = [(0, -2), (3, -1), (1, 0), (2, 1), (4, 2)]
    late = [(shown + 500, decoded + 500) for shown, decoded in one]
    assert continued(one, Fraction(1, 25)) == ([0, 0.04, 0.08, 0.12, 0.16], False)
    assert continued([*one, *one], Fraction(1, 25)) == (pytest.approx([place / 25 for place in range(10)]), True)
    assert continued([*one, *late], Fraction(1, 25), 10.0) == (pytest.approx([place / 25 for place in range(10)]), True)
    assert continued([*one, *late], Fraction(1, 25)) == (
        pytest.approx([*(n / 25 for n in range(5)), *(20 + n / 25 for n in range(5))]),
        False,
    )
    assert continued([*one, (None, None)], Fraction(1, 25)) == ([], False)


def test_without_times_the_nominal_rate_counts() -> None:
    assert frame_rate([], [Fraction(24)]) == (Fraction(24), True)
    assert frame_rate([0.0, 0.0, 0.0], []) == (Fraction(25), True)


def test_what_a_file_is(tmp_path: Path) -> None:
    info = probe(os.fsencode(make_video(tmp_path / "x.mp4", size="82x66", rate="24000/1001", frames=30)))
    assert (info.codec, info.width, info.height, info.rotation) == ("h264", 82, 66, 0)
    assert (info.rate, info.constant_rate, info.num_packets) == (Fraction(24000, 1001), True, 30)


def test_hidden_frames_of_vp8_are_no_jitter(tmp_path: Path) -> None:
    options = ["-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-b:v", "200k", "-deadline", "good"]
    info = probe(os.fsencode(make_video(tmp_path / "x.webm", *options, frames=90)))
    assert (info.codec, info.rate, info.constant_rate, info.num_packets) == ("vp8", Fraction(30), True, 90)


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("a text\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(100_000))  # FFmpeg takes 1 % of such for H.263 or lyrics
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2", "-frames:v", "1", tmp_path / "image.jpg")
    run_ffmpeg("-f", "lavfi", "-i", "sine", "-t", "1", tmp_path / "sound.wav")
    for name in ("empty.mp4", "text.mp4", "noise.mp4", "image.jpg"):
        assert rejection(tmp_path / name).reason is Reason.NOT_VIDEO, name
    assert rejection(tmp_path / "sound.wav").reason is Reason.NO_VIDEO_STREAM


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("broken", "vanished", "pipe", "."):
        assert rejection(tmp_path / name).reason is Reason.UNREADABLE, name


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_a_file_that_ends_early_is_truncated(tmp_path: Path, container: str) -> None:
    flags = ["-movflags", "+faststart"] if container == "mp4" else []
    whole = make_video(tmp_path / f"x.{container}", "-c:v", "mpeg4", *flags, frames=90).read_bytes()
    (tmp_path / f"half.{container}").write_bytes(whole[: len(whole) // 2])
    error = rejection(tmp_path / f"half.{container}")
    assert error.reason is Reason.TRUNCATED
    assert "the data end after" in error.detail


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "x.mp4", frames=90).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    error = rejection(tmp_path / "half.mp4")
    assert error.reason is Reason.TRUNCATED
    assert "moov" in error.detail


def test_sound_that_goes_on_does_not_make_a_video_truncated(tmp_path: Path) -> None:
    picture = make_video(tmp_path / "picture.mp4", frames=30)
    for name in ("long.mp4", "long.mkv"):
        run_ffmpeg(
            "-i", picture, "-f", "lavfi", "-i", "sine", "-map", "0", "-map", "1", "-c:v", "copy", "-t", "9", tmp_path / name
        )
        assert probe(os.fsencode(tmp_path / name)).num_packets == 30


def test_a_playlist_cannot_pull_in_other_files(tmp_path: Path) -> None:
    other = make_video(tmp_path / "x.mp4", frames=30)
    run_ffmpeg("-i", other, "-c", "copy", tmp_path / "x.ts")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {other.name}\n")
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n" + str(tmp_path / "x.ts") + "\n#EXT-X-ENDLIST\n"
    )
    for name in ("list.mp4", "list.m3u8"):
        assert rejection(tmp_path / name).reason is Reason.NOT_VIDEO, name


def test_probing_a_window_leaves_nothing_in_the_heap(tmp_path: Path) -> None:
    path = os.fsencode(make_video(tmp_path / "x.mp4", *X264, "-g", "10", frames=90))
    assert left_behind(lambda: probe(path, 1.0, 1.5)) < 50
