import csv
import io
import os
import re
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from small_videos import X264, make_clip, make_clips, make_video, run_ffmpeg

from dataset_builders.media.clip import EncodedClip, Reject
from dataset_builders.media.ffmpeg_process import ffmpeg_path
from dataset_builders.media.presets import EncodeOptions
from dataset_builders.media.probe import probe
from dataset_builders.media.rejects import Reason

ENCODING = ["h264-fast", "vp9", "mjpeg"]  # h264-plain asks for less than h264-fast
CODECS = {"h264-fast": "h264", "vp9": "vp9", "mjpeg": "mjpeg"}


def taken(path: Path, **options: object) -> EncodedClip:
    clip = make_clip(path, **options)
    assert isinstance(clip, EncodedClip), clip
    return clip


def pictures(data: bytes) -> np.ndarray:
    """-> uint8 [frames, height, width, 3]"""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def count_frames(path: Path) -> int:
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("preset", ENCODING)
@pytest.mark.parametrize(
    ("name", "rate", "output"),
    [
        ("b-frames.mp4", "30000/1001", ["-c:v", "libx264", "-bf", "3"]),
        ("milliseconds.mkv", "24000/1001", ["-c:v", "libx264"]),
        ("no-pts.avi", "25", ["-c:v", "mpeg4", "-bf", "2"]),
        ("odd-rate.mp4", "2997/100", ["-c:v", "libx264"]),
        ("vp9.webm", "12", ["-c:v", "libvpx-vp9", "-b:v", "100k", "-cpu-used", "8"]),
        ("mpeg2.ts", "25", ["-c:v", "mpeg2video", "-bf", "2"]),
        ("huffyuv.avi", "30", ["-c:v", "huffyuv", "-pix_fmt", "yuv422p"]),
        ("rgb.mkv", "15", ["-c:v", "ffv1", "-pix_fmt", "bgr0"]),
        ("ten-bit.mp4", "30", ["-c:v", "libx264", "-pix_fmt", "yuv444p10le"]),
        ("animation.gif", "10", []),
        ("late.mkv", "30", ["-c:v", "libx264", "-output_ts_offset", "100"]),
    ],
)
def test_equally_spaced_frames_go_in_once_each(tmp_path: Path, name: str, rate: str, output: list[str], preset: str) -> None:
    path = tmp_path / name
    run_ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=112x80:rate={rate}", *output, "-frames:v", "50", path)
    row = taken(path, preset=preset, gop=12).row
    assert row["num_frames"] == 50 == count_frames(path)
    assert row["fps"] == pytest.approx(float(Fraction(rate)), rel=1e-6)
    assert row["pts_start"] == 0
    assert row["pts_step"] > 0
    assert row["keyframes"][0] == 0
    assert max(b - a for a, b in pairwise([*row["keyframes"], row["num_frames"]])) <= 12
    assert (row["width"], row["height"], row["codec"]) == (112, 80, CODECS[preset])
    assert (row["rotation"], row["matrix"], row["range"]) == (0, "bt601", "limited")


@pytest.mark.parametrize("preset", ENCODING)
def test_the_frames_are_the_sources_frames(tmp_path: Path, preset: str) -> None:
    """Each frame of the clip is nearest to the source's frame of the same number: none moved, none twice."""
    path = make_video(tmp_path / "x.avi", "-c:v", "mpeg4", "-bf", "2", "-q:v", "2", size="96x64", frames=40, source="testsrc2")
    with av.open(path) as container:
        source = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.float32)
    clip = pictures(taken(path, preset=preset).data).astype(np.float32)
    distances = ((clip[:, None] - source[None]) ** 2).mean(axis=(2, 3, 4))
    assert distances.argmin(axis=1).tolist() == list(range(40))


def test_three_of_four_frames_can_be_left_out(tmp_path: Path) -> None:
    """And the others are the same to the bit, at a scene cut and in clips that were cut, too."""
    scenes = "testsrc2=size=96x64:rate=30:duration=1.5[a];mandelbrot=size=96x64:rate=30,trim=duration=2[b];[a][b]concat"
    run_ffmpeg("-f", "lavfi", "-i", scenes, *X264, tmp_path / "x.mp4")
    for clip in make_clips(tmp_path / "x.mp4", EncodeOptions(max_seconds=2.0)):
        assert isinstance(clip, EncodedClip)
        with av.open(io.BytesIO(clip.data)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            # H.264, 7.3.1: nal_ref_idc, of the picture, which is the last unit of a packet
            kept = [packet for packet in packets if _last_unit(bytes(packet))[0] & 0x60]
            assert 0.6 < 1 - len(kept) / len(packets) <= 0.75
            decoder = av.CodecContext.create("h264", "r")
            decoder.extradata = stream.codec_context.extradata
            frames = [frame for packet in [*kept, None] for frame in decoder.decode(packet)]
        whole = pictures(clip.data)
        assert len(frames) == len(kept)
        for frame in frames:
            assert np.array_equal(frame.to_ndarray(format="rgb24"), whole[frame.pts // clip.row["pts_step"]])


def _last_unit(packet: bytes) -> bytes:
    """Of an MP4 file's packet: units with their lengths before them."""
    while packet:
        end = 4 + int.from_bytes(packet[:4], "big")
        unit, packet = packet[4:end], packet[end:]
    return unit


@pytest.mark.parametrize("preset", ENCODING)
def test_variable_rate_is_resampled_in_time(tmp_path: Path, preset: str) -> None:
    path = tmp_path / "x.mkv"  # frames 0-29 at 30 per second, then every third
    thinned = "select='lt(n,30)+not(mod(n,3))'"
    run_ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=30", "-vf", thinned, "-fps_mode", "vfr", *X264, "-frames:v", "50", path
    )
    row = taken(path, preset=preset).row
    assert row["fps"] == pytest.approx(30, rel=0.002)  # or 30000/1001: milliseconds do not tell
    assert 88 <= row["num_frames"] <= 92  # 30 frames in the first second, 20 in the next two
    assert row["pts_step"] > 0


@pytest.mark.parametrize("preset", ENCODING)
@pytest.mark.parametrize("rotation", [90, 180, 270, 360, 450, 540, 630])
def test_rotation_is_applied(tmp_path: Path, rotation: int, preset: str) -> None:
    plain = make_video(tmp_path / "plain.mp4", size="96x64")
    # FFmpeg mirrors what it has turned; the other way round it is turned the other way
    turn = ["-display_rotation", str(rotation if rotation < 360 else -rotation), *["-display_hflip"] * (rotation >= 360)]
    run_ffmpeg(*turn, "-i", plain, "-c", "copy", tmp_path / "turned.mp4")
    info = probe(os.fsencode(tmp_path / "turned.mp4"))
    assert info.rotation == rotation
    clip = taken(tmp_path / "turned.mp4", preset=preset)
    upright = pictures(clip.data)
    stored = pictures(plain.read_bytes())
    stored = stored[:, :, ::-1] if rotation >= 360 else stored
    expected = np.rot90(stored, rotation // 90, axes=(1, 2))  # counter-clockwise
    assert upright.shape == expected.shape
    assert clip.row["rotation"] == 0
    assert np.abs(upright.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("preset", ENCODING)
def test_pixels_become_square(tmp_path: Path, preset: str) -> None:
    clip = taken(make_video(tmp_path / "x.mp4", "-vf", "setsar=2/1", *X264, size="64x64"), preset=preset)
    assert (clip.row["width"], clip.row["height"]) == (128, 64)
    with av.open(io.BytesIO(clip.data)) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 0, 1)


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc", "unknown"])
@pytest.mark.parametrize("colour_range", ["tv", "pc"])
@pytest.mark.parametrize(("height", "preset"), [(64, "h264-fast"), (720, "h264-fast"), (64, "vp9"), (64, "mjpeg")])
def test_colours_survive(tmp_path: Path, matrix: str, colour_range: str, height: int, preset: str) -> None:
    """The picture's RGB colours come out again whatever the source's matrix and range were; untagged: by the height."""
    meant = {"unknown": "bt709" if height >= 720 else "bt601", "bt2020nc": "bt2020", "smpte170m": "bt601"}.get(matrix, matrix)
    colour = (200, 60, 40)
    filters = f"scale=out_color_matrix={meant}:out_range={colour_range}:flags=accurate_rnd,format=yuv444p"
    tags = f"setparams=colorspace={matrix}:range={colour_range}"
    source = f"color=0x{bytes(colour).hex()}:size=64x{height},format=rgb24"
    run_ffmpeg("-f", "lavfi", "-i", source, "-vf", f"{filters},{tags}", *X264, "-frames:v", "16", tmp_path / "x.mp4")
    clip = taken(tmp_path / "x.mp4", preset=preset)
    assert (clip.row["matrix"], clip.row["range"]) == ("bt601", "limited")
    with av.open(io.BytesIO(clip.data)) as container:
        frame = next(container.decode(video=0))
        # tagged as smpte170m, limited; libavcodec's JPEG decoder has a tag of its own for the same matrix
        assert (frame.colorspace, frame.color_range) == (5 if preset == "mjpeg" else 6, 1)
        assert frame.format.name == "yuv420p"
        rgb = frame.to_ndarray(format="rgb24")
    np.testing.assert_allclose(rgb.mean(axis=(0, 1)), colour, atol=5)  # 8-bit YCbCr twice; the wrong matrix is off by 15


@pytest.mark.parametrize("preset", ENCODING)
def test_interlaced_video_is_deinterlaced(tmp_path: Path, preset: str) -> None:
    """A picture that jumps sideways between two fields has combs, which are differences from line to line."""

    def combing(data: bytes) -> float:
        lines = pictures(data)[5:-5, :, :, 1].astype(float)
        return float(np.abs(lines[:, 1:-1] - (lines[:, :-2] + lines[:, 2:]) / 2).mean())

    source = "gradients=size=128x128:rate=60:speed=0.3:type=linear:nb_colors=8:seed=1"
    weave = "tinterlace=interleave_top,setfield=tff"
    coding = [*X264, "-flags", "+ilme+ildct", "-x264-params", "tff=1"]
    run_ffmpeg("-f", "lavfi", "-i", source, "-vf", weave, *coding, "-frames:v", "40", tmp_path / "x.mp4")
    clip = taken(tmp_path / "x.mp4", preset=preset)
    assert clip.row["num_frames"] == 40
    assert combing(clip.data) < 0.5 * combing((tmp_path / "x.mp4").read_bytes())


def joined(path: Path, *parts: Path) -> Path:
    """Files of a kind that can follow one another, in one."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("preset", [*ENCODING, "copy"])
@pytest.mark.parametrize("size", ["64x64", "192x128"])
@pytest.mark.parametrize("kind", ["h264", "ts"])
def test_a_change_of_size_in_the_middle_is_named(tmp_path: Path, preset: str, size: str, kind: str) -> None:
    """By all presets: also where the shape is the same, and where the container calls the splice corrupt."""
    first, second = (make_video(tmp_path / f"{of}.{kind}", size=of) for of in ("96x64", size))
    reject = make_clip(joined(tmp_path / f"joined.{kind}", first, second), preset=preset)
    assert reject == Reject(Reason.UNSUPPORTED, f"its size changes from 96x64 to {size} in frame 20")


@pytest.mark.parametrize("matrix", ["smpte170m", "bt709"])
def test_a_change_of_the_colour_matrix_is_named(tmp_path: Path, matrix: str) -> None:
    tag = ["-vf", f"setparams=colorspace={matrix}", *X264]
    first, second = make_video(tmp_path / "a.h264"), make_video(tmp_path / "b.h264", *tag)
    path = joined(tmp_path / "joined.h264", first, second)
    for preset in ("h264-fast", "copy"):
        made = make_clip(path, preset=preset)
        if matrix == "bt709":
            assert made == Reject(Reason.UNSUPPORTED, "its colour matrix changes from bt601 to bt709 in frame 20")
        else:  # what small pictures are taken for without a tag
            assert isinstance(made, EncodedClip)
            assert made.row["num_frames"] == 40


def test_a_part_is_as_large_as_its_own_frames(tmp_path: Path) -> None:
    """Whatever comes before it, since a key frame, and after it."""
    first = make_video(tmp_path / "a.ts", size="96x64")
    second = make_video(tmp_path / "b.ts", *X264, "-output_ts_offset", "0.666667", size="128x64")
    path = joined(tmp_path / "joined.ts", first, second)
    options = EncodeOptions(min_frames=8)
    for start, end, number, size in ((0.0, 0.6, 18, (96, 64)), (0.7, 1.3, 18, (128, 64))):
        (clip,) = make_clips(path, options, start=start, end=end)
        assert isinstance(clip, EncodedClip), clip
        assert (clip.row["num_frames"], clip.row["width"], clip.row["height"]) == (number, *size)
    (reject,) = make_clips(path, options, start=0.3, end=1.0)
    assert isinstance(reject, Reject)
    assert reject.detail == "its size changes from 96x64 to 128x64 in frame 11"


def test_damage_is_a_reject_not_a_patch(tmp_path: Path) -> None:
    path = make_video(tmp_path / "x.mp4", "-c:v", "libx264", size="160x128", frames=60)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(data)
    for preset in [*ENCODING, "copy"]:
        reject = make_clip(path, preset=preset)
        assert isinstance(reject, Reject), preset
        assert reject.reason is Reason.DAMAGED, preset


@pytest.mark.parametrize("preset", [*ENCODING, "copy"])
def test_short_and_small_ones_are_rejected(tmp_path: Path, preset: str) -> None:
    short = make_clip(make_video(tmp_path / "short.mp4", frames=15), preset=preset)
    small = make_clip(make_video(tmp_path / "small.mp4", size="64x14"), preset=preset)
    assert short == Reject(Reason.TOO_SHORT, "15 frames decode; --min-frames is 16")
    assert small == Reject(Reason.TOO_SMALL, "64x14 pixels; at least 16x16 are needed")
    smallest = make_clip(make_video(tmp_path / "smallest.mkv", "-c:v", "ffv1", size="1x1", source="color"), preset=preset)
    assert smallest == Reject(Reason.TOO_SMALL, "1x1 pixels; at least 16x16 are needed")
    taken(make_video(tmp_path / "enough.mp4", frames=16), preset=preset)


@pytest.mark.parametrize("preset", ENCODING)
@pytest.mark.parametrize("max_seconds", [60.0, 0.7])
def test_bytes_are_the_same_again(tmp_path: Path, preset: str, max_seconds: float) -> None:
    path = make_video(tmp_path / "x.mp4", "-metadata", "title=x", size="96x64", frames=50)
    options = EncodeOptions(preset, max_seconds=max_seconds)
    first, second = ([clip.data for clip in make_clips(path, options)] for _ in range(2))
    assert first == second
    assert len(first) == (1 if max_seconds > 50 / 30 else 3)
    for data in first:
        assert b"title" not in data
        assert not re.search(rb"Lav[fc]\d", data)  # no version, which would change with the tools
        assert data.index(b"moov") < data.index(b"mdat")


def test_a_canvas_makes_the_coded_sizes_few(tmp_path: Path) -> None:
    sizes = {"160x90": (112, 64), "96x128": (64, 96), "60x60": (48, 48), "112x64": (112, 64)}
    for size, expected in sizes.items():
        row = taken(make_video(tmp_path / f"{size}.mp4", size=size), canvas="112x64,64x96").row
        assert (row["width"], row["height"]) == expected, size


@pytest.mark.parametrize(
    "preset",
    ["h264-fast", *(pytest.param(name, marks=pytest.mark.slow) for name in (*ENCODING, "copy") if name != "h264-fast")],
)
def test_broken_files_are_clips_or_rejects(shared: Path, preset: str) -> None:
    """What MANIFEST.tsv says of them: no crash, no hang, no clip with frames missing."""
    folder = shared / "clips" / "broken"
    rejected = {
        "MANIFEST.tsv": {Reason.NOT_VIDEO},
        "audio_only.mp4": {Reason.NO_VIDEO_STREAM},
        "decord_corrupted.mp4": {Reason.DAMAGED},
        "five_frames.mp4": {Reason.TOO_SHORT},
        "jpeg_renamed.mp4": {Reason.NOT_VIDEO},
        "midfile_garbage_64k.mp4": {Reason.DAMAGED},
        "one_frame.mp4": {Reason.TOO_SHORT},
        "text_renamed.mp4": {Reason.NOT_VIDEO},
        "truncated_faststart_half.mp4": {Reason.TRUNCATED},
        "truncated_moov_missing.mp4": {Reason.TRUNCATED},
        "zero_bytes.mp4": {Reason.NOT_VIDEO},
    }
    with open(folder / "MANIFEST.tsv", encoding="utf-8") as file:
        frames = {row["file"]: int(row["pyav_frames"] or 0) for row in csv.DictReader(file, delimiter="\t")}
    options = EncodeOptions(preset, short_side=64)  # quick: what is wrong with them is not their size
    for path in sorted(folder.iterdir()):
        (made,) = make_clips(path, options)
        if path.name in rejected:
            assert isinstance(made, Reject), path.name
            assert made.reason in rejected[path.name], path.name
            continue
        assert isinstance(made, EncodedClip), (path.name, made)
        if preset == "copy" or path.name not in ("vfr.mp4", "rotated_90.mp4"):  # these are resampled
            assert made.row["num_frames"] == frames[path.name], path.name
        assert preset == "copy" or made.row["rotation"] == 0


def test_copy_keeps_the_bytes(tmp_path: Path) -> None:
    for name, extension in (("x.mov", "mov"), ("x.MKV", "mkv"), ("noextension", "mp4"), ("strange.name", "mp4")):
        path = tmp_path / name
        make_video(tmp_path / "made.mkv" if extension == "mkv" else tmp_path / "made.mov").rename(path)
        clip = taken(path, preset="copy")
        assert clip.data == path.read_bytes()
        assert clip.extension == extension


def test_too_little_memory_is_a_reject(tmp_path: Path) -> None:
    """The limit is set as the pool sets it, in a process of its own."""
    path = make_video(tmp_path / "x.mp4", size="2048x2048")
    code = (
        "import resource, os, sys\n"
        "from dataset_builders.media.probe import probe\n"
        "from dataset_builders.media.presets import EncodeOptions\n"
        "from dataset_builders.media.transcode import Wanted, transcode\n"
        "from dataset_builders.media.rejects import RejectedError\n"
        "info = probe(os.fsencode(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]) << 20,) * 2)\n"
        "try: print(next(transcode(os.fsencode(sys.argv[1]), info, EncodeOptions(), Wanted())).num_frames)\n"
        "except RejectedError as error: print(error.reason)\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "IMAGEIO_FFMPEG_EXE": ffmpeg_path()}
    said = set()
    for megabytes in (200, 260, 330, 4000):
        command = [sys.executable, "-c", code, path, str(megabytes)]
        said.add(subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment).stdout.strip())
    assert said == {"out_of_memory", "20"}  # never a clip with frames missing
