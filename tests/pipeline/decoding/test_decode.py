import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.decoding.decode import ClipRequest, DecodeError, Failure, decode_each, decode_frames, decode_libav
from pipeline.stage_meters import ClipMeter
from pipeline.storage.manifest import Clip
from tests.heap import left_behind
from tests.pipeline.encoding import HEIGHT, WIDTH, encode, numbered_frame, read_number

FRAMES = 50


def facts(data: bytes) -> Clip:
    """A manifest row for a clip, read the slow and certain way."""
    with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
        keyframes = [packet.pts for packet in container.demux(video=0) if packet.is_keyframe and packet.pts is not None]
    steps = set(np.diff(stamps).tolist())  # Matroska rounds to milliseconds: 33, 34, 33 ...
    return Clip(
        row=0,
        key="clip",
        shard="",
        offset=0,
        size=len(data),
        num_frames=len(stamps),
        width=WIDTH,
        height=HEIGHT,
        codec="",
        rotation=0,
        matrix="bt601",
        range="limited",
        pts_start=stamps[0],
        pts_step=steps.pop() if len(steps) == 1 else 0,
        keyframes=tuple(sorted(stamps.index(pts) for pts in keyframes if pts in stamps)),
        content_hash="",
    )


def numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


NUMBERED = [numbered_frame(i) for i in range(FRAMES)]
CODECS = {
    "h264": ("libx264", "mp4", {"bf": "0"}),
    "h264 with B-frames": ("libx264", "mp4", {"bf": "3"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "vp9 with hidden frames": ("libvpx-vp9", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}),
    "mjpeg": ("mjpeg", "avi", {}),
    "mpeg4 with B-frames": ("mpeg4", "avi", {"bf": "2"}),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("wanted", [[0, 1, 2], [0, 4, 8, 12, 49], [7, 8, 9], [17, 33, 34], [49]], ids=str)
def test_frames_are_the_ones_asked_for(name: str, wanted: list[int]) -> None:
    codec, container, options = CODECS[name]
    data = encode(NUMBERED, codec, container, options=options)
    clip = facts(data)
    clip = replace(clip, range="full") if codec == "mjpeg" else clip
    assert clip.num_frames == FRAMES
    assert numbers(decode_frames(clip, data, np.array(wanted))) == wanted


LONG = pytest.param("ud810_ps7/PS7A1P2T1.avi", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [LONG, "ut_interaction/set1/12_3_4.avi"])
def test_old_avi_files_number_their_frames_wrongly(shared: Path, name: str) -> None:
    """MPEG-4 with B-frames: the stamps come out as 1, 4, 6, 5, 7 ..., and some belong to packets that only hold a place."""
    data = (shared / "clips" / "videos" / name).read_bytes()
    with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    height, width, _ = frames[0].shape
    clip = replace(facts(data), width=width, height=height)
    assert clip.pts_step == 0
    wanted = np.array([0, 1, 2, 3, 5, 17, len(frames) - 1])
    decoded = decode_frames(clip, data, wanted)
    for number, frame in zip(wanted.tolist(), decoded, strict=True):
        difference = [np.abs(frame - other).mean() for other in frames]
        assert difference[number] == min(difference) < 2  # some are alike


def test_frames_of_variable_rate_are_counted_not_timed() -> None:
    stamps = [i + 3 * (i // 5) for i in range(FRAMES)]
    data = encode(NUMBERED, container="matroska", stamps=stamps)
    clip = facts(data)
    assert clip.pts_step == 0
    assert numbers(decode_frames(clip, data, np.array([3, 20, 21, 45]))) == [3, 20, 21, 45]


def test_repeated_frames_fill_short_clips() -> None:
    data = encode(NUMBERED[:3])
    views = np.zeros((1, 4, HEIGHT, HEIGHT, 3), np.uint8)
    decode_libav(ClipRequest(facts(data), data, np.array([0, 2, 2, 2]), np.array([[0, 0, WIDTH, HEIGHT]])), views)
    assert (views[0, 1] == views[0, 3]).all()
    assert (views[0, 0] != views[0, 1]).any()


@pytest.mark.parametrize("rotation", [90, 180, 270, 360, 450, 540, 630])
def test_rotation_turns_frames_counter_clockwise(rotation: int) -> None:
    """And mirrors them before, from 360 on."""
    data = encode(NUMBERED[:2])
    upright = facts(data)
    turned = replace(upright, rotation=rotation)
    if rotation % 180:
        turned = replace(turned, width=upright.height, height=upright.width)
    plain = decode_frames(upright, data, np.array([1]))[0]
    plain = np.fliplr(plain) if rotation >= 360 else plain
    np.testing.assert_array_equal(decode_frames(turned, data, np.array([1]))[0], np.rot90(plain, rotation // 90))
    view = np.empty((1, 1, 32, 32, 3), np.uint8)
    decode_libav(ClipRequest(turned, data, np.array([1]), np.array([[0, 0, turned.width, turned.height]])), view)


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colours_follow_the_manifest(matrix: str, full_range: bool) -> None:
    colours = [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
        (16, 16, 16),
        (128, 128, 128),
        (255, 255, 255),
        (0, 90, 160),
    ]
    bars = np.repeat(np.array(colours, np.uint8)[None], HEIGHT, 0).repeat(WIDTH // 8, 1)
    data = encode([bars] * 2, options={"crf": "1"}, matrix=matrix, full_range=full_range)
    clip = replace(facts(data), matrix=matrix, range="full" if full_range else "limited")
    decoded = decode_frames(clip, data, np.array([0]))[0]
    middles = decoded[HEIGHT // 2, WIDTH // 16 :: WIDTH // 8].astype(int)
    assert np.abs(middles - colours).max() <= 4
    wrong = replace(clip, matrix="bt709" if matrix == "bt601" else "bt601")
    assert np.abs(decode_frames(wrong, data, np.array([0]))[0].astype(int) - decoded).max() > 10


def test_crop_and_resize_agree_with_pil() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (8, 16, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    data = encode([picture] * 2)
    clip = facts(data)
    frame = decode_frames(clip, data, np.array([0]))[0]
    boxes = np.array([[3, 5, 50, 40], [0, 0, 128, 64], [64, 10, 20, 54], [40, 8, 32, 32]])
    views = np.empty((len(boxes), 1, 32, 32, 3), np.uint8)
    decode_libav(ClipRequest(clip, data, np.array([0]), boxes), views)
    for view, (x, y, w, h) in zip(views, boxes.tolist(), strict=True):
        expected = np.asarray(Image.fromarray(frame[y : y + h, x : x + w]).resize((32, 32), Image.Resampling.BILINEAR))
        difference = np.abs(view[0].astype(int) - expected)
        assert difference.max() <= 1, (x, y, w, h)


def failure(clip: Clip, data: bytes, first: int = 2) -> DecodeError:
    views = np.empty((1, 2, 32, 32, 3), np.uint8)
    with pytest.raises(DecodeError) as caught:
        decode_libav(ClipRequest(clip, data, np.array([first, 40]), np.array([[0, 0, 32, 32]])), views)
    return caught.value


def test_what_cannot_be_delivered_is_named() -> None:
    data = encode(NUMBERED, container="matroska")
    clip = facts(data)
    assert failure(clip, b"no video at all").reason == Failure.DAMAGED
    assert failure(clip, data[: len(data) // 2]).reason == Failure.MISSING_FRAMES
    assert failure(replace(clip, num_frames=500), encode(NUMBERED[:20], container="matroska")).reason == Failure.MISSING_FRAMES
    wrong_size = failure(replace(clip, width=640), data)
    assert wrong_size.reason == Failure.DAMAGED
    assert "128 x 64" in wrong_size.detail
    assert "640 x 64" in wrong_size.detail


def test_truncated_clips_of_variable_rate_are_named() -> None:
    data = encode(NUMBERED, container="matroska", stamps=[i + 3 * (i // 5) for i in range(FRAMES)])
    clip = facts(data)
    assert clip.pts_step == 0
    assert failure(clip, data[: len(data) // 2], first=39).reason == Failure.MISSING_FRAMES


def test_random_damage_costs_a_decode_error_at_most() -> None:
    data = encode(NUMBERED, options={"bf": "0"})
    clip, rng = facts(data), np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data)
        at = int(rng.integers(len(data) - 16))
        damaged[at : at + 16] = rng.bytes(16)
        try:
            decode_libav(
                ClipRequest(clip, bytes(damaged), np.array([2, 40]), np.array([[0, 0, 32, 32]])),
                np.empty((1, 2, 32, 32, 3), np.uint8),
            )
            outcomes.add("decoded")
        except DecodeError as error:
            outcomes.add(error.reason)
    assert Failure.DAMAGED in outcomes


@pytest.mark.parametrize(("name", "options", "decoded"), [("mjpeg", {}, 3), ("h264", {"g": "8", "sc_threshold": "0"}, 18)])
def test_groups_without_a_wanted_frame_are_not_decoded(name: str, options: dict[str, str], decoded: int) -> None:
    codec, container, usual = CODECS[name]
    data = encode(NUMBERED, codec, container, options=usual | options)
    meter = ClipMeter()
    clip = replace(facts(data), range="full" if name == "mjpeg" else "limited")
    assert numbers(decode_frames(clip, data, np.array([1, 33, 49]))) == [1, 33, 49]
    decode_each(clip, data, np.array([1, 33, 49]), lambda place, rows: None, meter)
    assert meter.frames_decoded == decoded


def test_a_clip_leaves_nothing_in_the_heap() -> None:
    """However it ends: at the last wanted frame, with a damaged packet, or with a frame that is not there."""
    data = encode(NUMBERED, options={"bf": "0"})
    uneven = encode(NUMBERED, container="matroska", stamps=[i + i // 5 for i in range(FRAMES)])
    views, whole = np.empty((1, 2, 32, 32, 3), np.uint8), np.array([[0, 0, WIDTH, HEIGHT]])

    def attempt(clip: Clip, data: bytes, *frames: int) -> Callable[[], None]:
        def once() -> None:
            with suppress(DecodeError):
                decode_libav(ClipRequest(clip, data, np.array(frames), whole), views)

        return once

    damaged = data[: len(data) // 2] + bytes(len(data) // 2)
    for clip, bits, last in ((facts(data), data, 30), (facts(uneven), uneven, 30), (facts(data), damaged, FRAMES - 1)):
        assert left_behind(attempt(clip, bits, 2, last)) < 50
    assert left_behind(attempt(replace(facts(data), num_frames=FRAMES + 2), data, 2, FRAMES + 1)) < 50
