"""What the builder takes as it is, training gets: every frame, by its number, alone, scattered and in a row."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from made_dataset import make_dataset
from small_videos import make_clip, make_video, run_ffmpeg

from dataset_builders.checking.shard_checker import Checker, ClipTask, Fault
from dataset_builders.media import decode_check as verify_file
from dataset_builders.media.clip import EncodedClip, Reject
from dataset_builders.media.rejects import Reason
from pipeline.decoding.decode import ClipRequest, DecodeError, Failure, decode_frames
from pipeline.decoding.trim import UnsupportedClipError, trim
from pipeline.stage_meters import ClipMeter
from pipeline.storage.manifest import Clip
from tests.pipeline.encoding import numbered_frame, read_number

FRAMES, SIZE = 30, (192, 160)
X264 = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 6 -bf 2 -sc_threshold 0"
X265 = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -x265-params log-level=none:keyint=6:min-keyint=6:scenecut=0"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 500k -g 6"
MPEG4 = "-c:v mpeg4 -g 6 -q:v 2"
VARIABLE = "-vf setpts=PTS+floor(N/5)*2/25/TB -fps_mode passthrough"


@pytest.fixture(scope="session")
def pixels() -> bytes:
    return b"".join(numbered_frame(number, *SIZE).tobytes() for number in range(FRAMES))


@pytest.fixture(scope="session")
def source(pixels: bytes, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Numbered frames, encoded with FFmpeg's options; made once."""
    folder = tmp_path_factory.mktemp("numbered")
    (folder / "pixels").write_bytes(pixels)

    def make(name: str, options: str = X264, *more: str) -> Path:
        path = folder / name
        if not path.exists():
            raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE[0]}x{SIZE[1]}", "-r", "25", "-i", folder / "pixels"]
            run_ffmpeg(*raw, *options.split(), *more, path)
        return path

    return make


def copied(target: Path, *arguments: str | Path) -> Path:
    run_ffmpeg(*arguments, "-c", "copy", target)
    return target


def with_picture(target: Path, film: Path, *arguments: str) -> Path:
    """A JPEG of frame 0 as video stream 0, the film as stream 1."""
    picture = target.with_name("picture.jpg")
    run_ffmpeg("-i", film, "-frames:v", "1", "-update", "1", picture)
    return copied(target, "-i", picture, "-i", film, "-map", "0", "-map", "1", *arguments)


def with_other_film(target: Path, film: Path, *arguments: str) -> Path:
    """A film of other frames as video stream 0."""
    other = target.with_name("other.mp4")
    make_video(other, *X264.split(), "-crf", "51", size="192x160", rate="25", frames=FRAMES)
    return copied(target, "-i", other, "-i", film, "-map", "0", "-map", "1", *arguments)


def all_called_key(target: Path, film: Path) -> Path:
    """Every packet flagged as a key frame."""
    with av.open(film) as old, av.open(target, "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream, packet.is_keyframe = stream, True
                new.mux(packet)
    return target


SHIFTED = ["-bsf:v", "setts=pts=PTS-10000:dts=DTS-10000", "-avoid_negative_ts", "disabled"]
CASES: dict[str, Callable[[Path, Callable[..., Path]], Path]] = {
    "cover first": lambda t, s: with_picture(t / "x.mkv", s("f.mp4"), "-disposition:v:0", "attached_pic"),
    "cover last": lambda t, s: with_picture(t / "x.mp4", s("f.mp4"), "-disposition:v:0", "attached_pic"),
    "JPEG track first": lambda t, s: with_picture(t / "x.mov", s("f.mp4")),
    "second film by default": lambda t, s: with_other_film(
        t / "x.mkv", s("f.mp4"), "-disposition:v:0", "0", "-disposition:v:1", "default"
    ),
    "bare H.264": lambda t, s: s("x.h264"),
    "bare HEVC": lambda t, s: s("x.hevc", X265),
    "bare MPEG-1": lambda t, s: s("x.m1v", "-c:v mpeg1video -q:v 2"),
    "negative stamps": lambda t, s: copied(t / "x.mkv", "-i", s("f.mp4"), *SHIFTED),
    "hidden first key frame": lambda t, s: copied(t / "x.mp4", "-ss", "0.1", "-i", s("vp9.mp4", VP9)),
    "hidden first key frame, MPEG-4": lambda t, s: copied(t / "x.mov", "-ss", "0.1", "-i", s("m4.mov", MPEG4)),
    "begins without a key frame": lambda t, s: copied(
        t / "x.mkv", "-i", s("m4.mkv", MPEG4 + " -bf 2"), "-copyinkf", "-bsf:v", "noise=drop='lt(n\\,3)'"
    ),
    "palette": lambda t, s: s("pal.avi", "-c:v rawvideo -pix_fmt pal8"),
    "grey palette": lambda t, s: s("grey.mov", "-c:v rawvideo -pix_fmt gray"),
    "coded palette": lambda t, s: s("smc.mov", "-c:v smc"),
    "key frames that are none": lambda t, s: s("rpza.mov", "-c:v rpza -pix_fmt rgb555"),
    "key frames that are none, MS-MPEG-4": lambda t, s: all_called_key(t / "x.avi", s("ms.avi", "-c:v msmpeg4 -g 6 -q:v 2")),
    "stamps in the order of decoding": lambda t, s: copied(t / "x.mp4", "-i", s("f.mp4"), "-bsf:v", "setts=pts=DTS"),
    "stamps in the order of decoding, MXF": lambda t, s: s("x.mxf"),
    "a transport stream of variable rate": lambda t, s: s("v.ts", X264, *VARIABLE.split()),
    "open groups, cut": lambda t, s: copied(t / "x.ts", "-ss", "0.4", "-i", s("o.mp4", X265 + ":open-gop=1:bframes=3")),
}


def whole(data: bytes, clip: Clip) -> list[np.ndarray]:
    """All frames, by decoding the stream that has as many from its beginning to its end."""
    with av.open(io.BytesIO(data), metadata_errors="replace") as container:
        number = container.streams.best("video").index
    with av.open(io.BytesIO(data), metadata_errors="replace") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams[number])]
    assert len(frames) == clip.num_frames
    return frames


def described(built: EncodedClip) -> Clip:
    columns = {name: built.row[name] for name in Clip.__dataclass_fields__ if name in built.row}
    return Clip(row=0, shard="", offset=0, size=len(built.data), **columns | {"keyframes": tuple(built.row["keyframes"])})


@pytest.mark.parametrize("name", CASES)
def test_what_is_copied_is_delivered(name: str, tmp_path: Path, source: Callable[..., Path]) -> None:
    built = make_clip(CASES[name](tmp_path, source), preset="copy", min_frames=1)
    assert isinstance(built, EncodedClip), built
    clip = described(built)
    right = [read_number(frame) for frame in whole(built.data, clip)]
    assert len(right) >= 16
    if "order" not in name:
        assert right[-1] == FRAMES - 1
        assert right == sorted(right)
    count = clip.num_frames
    for wanted in ([0], [1], [7], [count // 2], [count - 2], [0, count - 1], [3, 14], [1, 8, count - 3], list(range(count))):
        decoded = decode_frames(clip, built.data, np.array(wanted))
        assert [read_number(frame) for frame in decoded] == [right[number] for number in wanted]
        try:
            trimmed = trim(ClipRequest(clip, built.data, np.array(wanted), np.array([[0, 0, *SIZE]])), "cuda")
        except UnsupportedClipError:
            continue
        with av.open(io.BytesIO(trimmed.data)) as container:
            inside = [read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        assert [inside[number] for number in trimmed.frames] == [right[number] for number in wanted]


def test_what_training_gets_otherwise_is_not_taken(
    tmp_path: Path, source: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever may part the two ways to decode, the builder sees it, and so does the recheck of a dataset built before."""
    data, right = source("f.mp4").read_bytes(), verify_file.decoded_frames
    (row, *_) = make_dataset(tmp_path / "dataset", [data])
    check = Checker(str(tmp_path / "dataset"), True)
    assert not list(check(ClipTask(row)))

    def next_ones(clip: Clip, data: bytes, wanted: np.ndarray, meter: ClipMeter) -> Iterator[tuple[int, av.VideoFrame]]:
        yield from right(clip, data, np.minimum(wanted + 1, clip.num_frames - 1), meter)

    def next_references(clip: Clip, data: bytes, wanted: np.ndarray, meter: ClipMeter) -> Iterator[tuple[int, av.VideoFrame]]:
        return (next_ones if len(wanted) > 2 else right)(clip, data, wanted, meter)

    def none(*_: object) -> Iterator[tuple[int, av.VideoFrame]]:
        raise DecodeError(Failure.MISSING_FRAMES, "as if")

    others = "sought, it gives other frames"
    for fault, detail in (
        (next_ones, others),
        (next_references, others),
        (none, "training could not decode it: missing_frames"),
    ):
        monkeypatch.setattr(verify_file, "decoded_frames", fault)
        reject = make_clip(source("f.mp4"), preset="copy")
        assert isinstance(reject, Reject)
        assert reject.reason == Reason.UNSUPPORTED
        assert detail in reject.detail
        assert "use a preset that encodes" in reject.detail
        (finding,) = check(ClipTask(row))
        assert finding.what == Fault.DECODING
        assert detail in finding.found
