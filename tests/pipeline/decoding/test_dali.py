"""What DALI is sent, what it is not sent, and what a bad clip costs. How its pixels compare is in test_decoder_parity.py."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.decoding.dali import DaliDecoder, colour_transform, decode_dali
from pipeline.decoding.decode import ClipRequest, DecodeError, Failure, decode_libav
from pipeline.decoding.trim import TrimmedClip, trim
from pipeline.loader import ClipLoader
from pipeline.sampling import SamplingRecipe
from pipeline.storage.manifest import Clip, content_hash
from tests.manifest_rows import row, write_rows
from tests.pipeline.encoding import HEIGHT, WIDTH, describe, encode, encode_vp9_with_hidden_frames, numbered_frame, read_number

pytest.importorskip("nvidia.dali")

FRAMES = 50
NUMBERED = [numbered_frame(i) for i in range(FRAMES)]
VP9 = ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8"})
WHOLE = np.array([[0, 0, WIDTH, HEIGHT]])


@pytest.fixture(scope="module")
def vp9() -> bytes:
    return encode(NUMBERED, VP9[0], VP9[1], options=VP9[2])


@pytest.fixture(scope="module")
def decoder() -> DaliDecoder:
    return DaliDecoder("cpu", threads=2, size=64)


def request(clip: Clip, data: bytes, *frames: int) -> ClipRequest:
    return ClipRequest(clip, data, np.array(frames), WHOLE)


def test_hidden_frames_are_not_counted(decoder: DaliDecoder, tmp_path: Path) -> None:
    hidden = encode_vp9_with_hidden_frames([numbered_frame(i, 256, 128) for i in range(FRAMES)], tmp_path)
    clip = describe(hidden, "vp9")
    views, failures = decoder([ClipRequest(clip, hidden, np.array([7, 8, 49]), np.array([[0, 0, 256, 128]]))])
    assert not failures  # libavcodec counts what it shows
    assert [read_number(frame) for frame in views[0, 0].numpy()] == [7, 8, 49]


COLOURS = [
    (200, 40, 40),
    (40, 160, 60),
    (50, 60, 180),
    (180, 170, 60),
    (30, 30, 30),
    (128, 128, 128),
    (225, 225, 225),
    (90, 60, 130),
]


@pytest.mark.parametrize("color_range", ["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colour_bars_follow_the_manifest(decoder: DaliDecoder, matrix: str, color_range: str) -> None:
    bars = np.repeat(np.array(COLOURS, np.uint8)[None], HEIGHT, 0).repeat(WIDTH // 8, 1)
    options = {**VP9[2], "crf": "4", "b": "0"}
    data = encode([bars] * 2, VP9[0], VP9[1], options=options, matrix=matrix, full_range=color_range == "full")
    clip = describe(data, "vp9", matrix=matrix, color_range=color_range)
    other = replace(clip, matrix="bt709" if matrix == "bt601" else "bt601")
    views, failures = decoder([request(clip, data, 0), request(other, data, 0)])
    assert not failures
    right, wrong = views[:, 0, 0, 32, 4::8].numpy().astype(int)
    assert np.abs(right - COLOURS).max() <= 5
    assert np.abs(wrong - COLOURS).max() > 10


def test_correcting_the_matrix_keeps_grey() -> None:
    for matrix in ("bt601", "bt709", "bt2020"):
        for full_range in (False, True):
            correction, offset = colour_transform(matrix, full_range)
            np.testing.assert_allclose(correction.sum(axis=1), 1, atol=1e-6)
            assert (offset < 0).all()
    np.testing.assert_allclose(colour_transform("bt601", False)[0], np.eye(3), atol=1e-6)


def test_every_view_may_have_its_own_frames(decoder: DaliDecoder, vp9: bytes) -> None:
    wanted = np.array([[3, 5, 7], [30, 30, 31]])
    clip = ClipRequest(describe(vp9, "vp9"), vp9, wanted, np.concatenate([WHOLE, WHOLE]))
    views, failures = decoder([clip])
    assert not failures
    assert [[read_number(frame) for frame in view] for view in views[0].numpy()] == wanted.tolist()


def test_a_batch_mixes_sizes_rotations_and_codecs(decoder: DaliDecoder, vp9: bytes) -> None:
    mjpeg = encode([numbered_frame(i, 200, 120) for i in range(20)], "mjpeg", "avi")
    small, large = describe(vp9, "vp9"), describe(mjpeg, "mjpeg", rotation=90, color_range="full")
    boxes = np.array([[0, 0, large.width, large.height]])
    views, failures = decoder([request(small, vp9, 7, 40), ClipRequest(large, mjpeg, np.array([1, 18]), boxes)])
    assert not failures
    assert views.shape == (2, 1, 2, 64, 64, 3)
    assert [read_number(frame) for frame in views[0, 0].numpy()] == [7, 40]
    assert [read_number(np.rot90(frame, -1)) for frame in views[1, 0].numpy()] == [1, 18]
    others = [request(small, vp9, 7, 40), ClipRequest(large, mjpeg, np.array([1, 18]), boxes), request(small, b"", 7, 40)]
    views, failures = DaliDecoder("cpu", threads=2, size=(96, 48))([*others, request(replace(small, rotation=180), vp9, 7, 40)])
    assert views.shape == (4, 1, 2, 96, 48, 3) and [index for index, _ in failures] == [2]
    assert [read_number(frame) for frame in views[0, 0].numpy()] == [7, 40]
    assert [read_number(np.rot90(frame, -1)) for frame in views[1, 0].numpy()] == [1, 18]
    assert [read_number(np.rot90(frame, 2)) for frame in views[3, 0].numpy()] == [7, 40]


def test_views_of_16_bits_are_what_libav_makes(vp9: bytes) -> None:
    clip, box = describe(vp9, "vp9"), np.array([[10, 5, 90, 50]])
    asked, libav = ClipRequest(clip, vp9, np.array([3, 7]), box), np.zeros((1, 2, 40, 30, 3), np.int16)
    views, failures = DaliDecoder("cpu", 1, (40, 30), np.int16)([asked])
    decode_libav(asked, libav)
    assert not failures and views.dtype == torch.int16
    assert np.abs(views[0].numpy().astype(int) - libav).mean() < 3 * 128  # as in test_decoder_parity
    assert (views.numpy() % 128 > 0).mean() > 0.1, "not whole levels"


def test_a_bad_clip_costs_only_itself(decoder: DaliDecoder, vp9: bytes) -> None:
    clip = describe(vp9, "vp9")
    good = [request(clip, vp9, 3 + i, 40) for i in range(5)]
    unopened = replace(trim(good[0]), data=bytes(1000))  # passes what can be checked without decoding
    bad: dict[int, ClipRequest | TrimmedClip] = {
        1: request(clip, b"no video at all", 3, 40),
        4: unopened,
        6: request(replace(clip, codec="h264"), vp9, 3, 40),
    }
    batch = [bad.get(i) or good.pop(0) for i in range(8)]
    views, failures = decoder(batch)
    assert [index for index, _ in failures] == [1, 4, 6]
    assert [getattr(error, "reason", None) for _, error in failures] == [Failure.DAMAGED, Failure.DAMAGED, None]
    assert [read_number(views[i, 0, 0].numpy()) for i in (0, 2, 3, 5, 7)] == [3, 4, 5, 6, 7]
    assert not views[list(bad)].any()
    alone, _ = decoder([request(clip, vp9, 5, 40)])
    torch.testing.assert_close(views[3], alone[0], rtol=0, atol=0)


def failure(data: bytes, clip: Clip) -> DecodeError:
    views = np.empty((1, 2, 32, 32, 3), np.uint8)
    with pytest.raises(DecodeError) as caught:
        decode_dali(request(clip, data, 2, 40), views)
    return caught.value


def test_what_cannot_be_delivered_is_named(vp9: bytes) -> None:
    clip = describe(vp9, "vp9")
    assert failure(b"no video at all", clip).reason == Failure.DAMAGED
    assert failure(b"", clip).reason == Failure.DAMAGED
    assert failure(vp9[: len(vp9) // 2], clip).reason == Failure.MISSING_FRAMES
    assert failure(vp9, replace(clip, width=640)).detail == "frames are coded as 128 x 64, by the manifest they are 640 x 64"
    # DALI itself delivers black frames for this, without a word
    third = len(vp9) // 3
    assert failure(vp9[:third] + bytes(third) + vp9[2 * third :], clip).reason == Failure.MISSING_FRAMES


def test_a_stream_that_ends_early_is_named(vp9: bytes) -> None:
    short = encode(NUMBERED[:20], VP9[0], VP9[1], options=VP9[2])
    assert failure(short, replace(describe(vp9, "vp9"), pts_step=33)).reason == Failure.MISSING_FRAMES


@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
def test_damage_has_the_outcome_that_it_has_with_libav(codec: str) -> None:
    """Nothing that libav refuses comes out of DALI as black or repeated frames. DALI refuses a little more: it is sent all
    from the first wanted frame to the last, where libav leaves out groups of pictures without a wanted frame."""
    data = encode(NUMBERED, *(VP9[:2] if codec == "vp9" else ("mjpeg", "avi")), options=VP9[2] if codec == "vp9" else {})
    clip = describe(data, codec, color_range="limited" if codec == "vp9" else "full")
    rng, outcomes = np.random.default_rng(0), Counter()
    for attempt in range(60):
        damaged, at = bytearray(data), int(rng.integers(len(data) - 16))
        if attempt % 3 == 0:
            damaged[at : at + 16] = rng.bytes(16)
        elif attempt % 3 == 1:
            damaged[at : at + len(data) // 5] = bytes(len(damaged[at : at + len(data) // 5]))
        else:
            del damaged[at:]
        delivered = []
        for decode in (decode_libav, decode_dali):
            try:
                decode(request(clip, bytes(damaged), 2, 20, 40), np.empty((1, 3, 32, 32, 3), np.uint8))
                delivered.append(True)
            except DecodeError:
                delivered.append(False)
        outcomes[tuple(delivered)] += 1
    assert not outcomes[False, True], outcomes
    assert min(outcomes[True, True], outcomes[False, False]) > 4 * outcomes[True, False], outcomes


def test_the_loader_runs_on_dali(tmp_path: Path) -> None:
    """Batches by DALI's CPU decoder in the sidecar's threads: the clips and frames that stand there."""
    rows, shard = [], bytearray()
    for number in range(8):
        greys = [np.full((HEIGHT, WIDTH, 3), 20 + 24 * number + 6 * (i % 4), np.uint8) for i in range(40)]  # survive any crop
        data = encode(greys, VP9[0], VP9[1], options={**VP9[2], "crf": "8", "b": "0"})
        clip = describe(data, "vp9")
        facts = {name: getattr(clip, name) for name in ("num_frames", "width", "height", "pts_start", "pts_step")}
        place = {"offset": len(shard), "size": len(data), "content_hash": content_hash(data), "codec": "vp9"}
        rows.append(row(number, keyframes=list(clip.keyframes), sampling="stride:2", **facts, **place))
        shard += data
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "made-up-000000.tar").write_bytes(shard)
    write_rows(tmp_path, rows)
    recipe = SamplingRecipe(views_per_step=8, views_per_clip=2, num_frames=4, input_size=64)
    loader = ClipLoader(tmp_path, recipe, decoder=decode_dali, workers=2)
    for _ in range(2):
        batch = next(loader)
        numbers = np.rint((batch.views.numpy().mean(axis=(2, 3, 4)) - 20) / 6).astype(int)
        assert (numbers // 4 == batch.rows.numpy().repeat(2)[:, None]).all()
        assert (np.diff(numbers) % 4 == 2).all()  # stride 2
    assert not loader.failures
    loader.close()
