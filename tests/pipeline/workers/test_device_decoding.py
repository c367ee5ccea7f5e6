"""The loader with decoder="dali", on DALI's CPU decoder: the same code decodes on NVDEC in the trainer's process."""

import gc
import json
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.decoding.dali import DaliDecoder
from pipeline.decoding.decode import ClipRequest, DecodeError, Failure, decode_libav
from pipeline.decoding.trim import TrimmedClip, trim
from pipeline.loader import ClipLoader, LoaderError, LoaderState
from pipeline.sampling import EvaluationSampler, sample_clips
from pipeline.sampling.sampler import Sampler, TrainingSampler
from pipeline.stage_meters import StageMeters
from pipeline.storage.manifest import content_hash
from pipeline.workers.delivery import FailedClip
from pipeline.workers.device_decoding import BATCHES_AHEAD
from tests.manifest_rows import row, write_rows
from tests.pipeline.encoding import describe, encode
from tests.pipeline.test_loader import RECIPE, STEPS, digest, take

pytest.importorskip("nvidia.dali")

CLIPS, FRAMES, WIDTH, HEIGHT = 12, 40, 96, 64
H264_ROWS, BAD_ROWS = (2, 5, 9), (3, 7)
SYNC_CODE = b"\x49\x83\x42"  # of a VP9 key frame, behind its first byte; each clip has one for eight frames


def film(number: int) -> list[np.ndarray]:
    """Soft waves that drift, with a grain: no edges sharper than a camera's."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grain = np.random.default_rng(number).normal(0, 4, (HEIGHT, WIDTH, 1))
    frames = []
    for t in range(FRAMES):
        waves = [np.sin((x * (1 + c) + y * (2 - c) + 3 * t + 9 * number) / 23) for c in range(3)]
        frames.append((128 + 50 * np.stack(waves, -1) + grain).clip(0, 255).astype(np.uint8))
    return frames


@pytest.fixture(scope="module")
def encoded() -> dict[str, list[bytes]]:
    films = [film(number) for number in range(CLIPS)]
    options = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}
    return {
        "vp9": [encode(frames, "libvpx-vp9", "webm", options=options) for frames in films],
        "h264": [encode(films[number], options={"bf": "0"}) for number in range(CLIPS)],
    }


def build(folder: Path, clips: list[tuple[str, bytes, bytes]], rotations: Sequence[int] = (0,)) -> Path:
    """A dataset of (codec, clip as it was, clip as it is found on the disk, whose hash is right), turned in turns."""
    rows, shard = [], bytearray()
    for number, (codec, whole, data) in enumerate(clips):
        clip = describe(whole, codec, rotations[number % len(rotations)])
        facts = {name: getattr(clip, name) for name in ("num_frames", "width", "height", "pts_start", "pts_step")}
        place = {"offset": len(shard), "size": len(data), "content_hash": content_hash(data), "codec": codec}
        about = {"rotation": clip.rotation, "label": f"{number % 3}", "sampling": "stride:2"}
        rows.append(row(number, keyframes=list(clip.keyframes), **facts, **place, **about))
        shard += data
    (folder / "shards").mkdir()
    (folder / "shards" / "made-up-000000.tar").write_bytes(shard)
    write_rows(folder, rows)
    return folder


def damaged(data: bytes) -> bytes:
    """Packets as before, whose frames cannot be decoded."""
    begin = data.index(SYNC_CODE) + 3  # the first says what the frames are
    return data[:begin] + data[begin:].replace(SYNC_CODE, bytes(3))


@pytest.fixture(scope="module")
def vp9(encoded: dict[str, list[bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vp9"), [("vp9", data, data) for data in encoded["vp9"]])


@pytest.fixture(scope="module")
def mixed(encoded: dict[str, list[bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    codecs = ["h264" if number in H264_ROWS else "vp9" for number in range(CLIPS)]
    clips = [(codec, encoded[codec][number], encoded[codec][number]) for number, codec in enumerate(codecs)]
    return build(tmp_path_factory.mktemp("mixed"), clips)


def run(
    dataset: Path, steps: int, after: dict[int, Callable[[ClipLoader], None]] | None = None, **options: Any
) -> tuple[list[dict[int, str]], torch.Tensor, torch.Tensor, ClipLoader]:
    """Per step: position -> digest of all that the model is given there; all views and rows; the loader, closed. `after` step
    n something may happen, with the batch still in our hands."""
    loader = ClipLoader(dataset, RECIPE, **options)
    taken, views, rows = [], [], []
    for number in range(steps):
        batch = next(loader)
        if after and number in after:
            after[number](loader)
        parts = batch.views, batch.visible, batch.decoded, batch.loss_weight
        taken.append({p: digest(*(part[2 * i : 2 * i + 2] for part in parts)) for i, p in enumerate(batch.positions.tolist())})
        views.append(batch.views.clone())
        rows.append(batch.rows)
    loader.close()
    return taken, torch.cat(views), torch.cat(rows), loader


@pytest.fixture(scope="module")
def by_dali(vp9: Path) -> tuple[list[dict[int, str]], torch.Tensor, torch.Tensor, ClipLoader]:
    """Over two epochs."""
    return run(vp9, STEPS, decoder="dali")


@pytest.fixture(scope="module")
def expected(by_dali: tuple[list[dict[int, str]], torch.Tensor, torch.Tensor, ClipLoader]) -> list[dict[int, str]]:
    taken, _, _, loader = by_dali
    assert str(loader.decoder_choice) == "dali" and not loader.failures
    assert [sorted(step) for step in taken[:4]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]
    return taken


def restored(state: LoaderState) -> LoaderState:
    """Through JSON, as a checkpoint keeps it."""
    saved = json.loads(json.dumps(asdict(state)))
    return LoaderState(**{**saved, "ledger": tuple(map(tuple, saved["ledger"]))})


def kill(loader: ClipLoader) -> None:
    time.sleep(0.3)  # it fills the ring meanwhile
    loader._process.kill()


def test_batches_do_not_depend_on_ranks_restarts_and_killed_sidecars(vp9: Path, expected: list[dict[int, str]]) -> None:
    first, state, _ = take(vp9, 3, world_size=2, decoder="dali", clips_per_batch=1, prefetch=1)
    rest, _, _, loader = run(vp9, STEPS - 3, {1: kill}, state=restored(state), decoder="dali", workers=3)
    assert first + rest == expected
    assert not loader.failures
    alone, _, _, _ = run(vp9, 4, rank=3, world_size=4, decoder="dali", workers=1)
    assert alone == [{p: value for p, value in step.items() if p % 4 == 3} for step in expected[:4]]


def test_whole_batches_agree_with_libav(vp9: Path, by_dali: tuple) -> None:
    """The bars of the decoders' parity, for batches of the loader: 1.2 in the mean, 4 for 99 %, no bias over 0.5."""
    _, libav, rows, loader = run(vp9, STEPS, decoder="auto")
    assert str(loader.decoder_choice).startswith("libav: libav takes 12 clips (the batch is wanted on a CPU); crops: ")
    assert loader._device_decoding is None
    assert torch.equal(rows, by_dali[2])
    check_near(by_dali[1], libav)


@pytest.fixture(scope="module")
def turned(encoded: dict[str, list[bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled clips, wide and high, half of them turned for display; and some that only decoding finds bad."""
    clips = [("vp9", data, damaged(data) if number in BAD_ROWS else data) for number, data in enumerate(encoded["vp9"])]
    return build(tmp_path_factory.mktemp("turned"), clips, rotations=[0, 90, 0, 180, 0, 270])


FULL = EvaluationSampler(views="full", segments=2, crops=3)


@pytest.mark.parametrize(
    ("sampler", "views"),
    [
        pytest.param(TrainingSampler(pairs=True), {"temporal": "linspace", "crop": "random_resized"}, id="fine-tuning"),
        pytest.param(
            TrainingSampler(),
            {"temporal": "tsn", "crop": "multi_scale", "views_per_clip": 1, "views_per_step": 4},
            id="probing",
        ),
        pytest.param(EvaluationSampler(), {"masks": "tube", "views_per_clip": 1}, id="held out, with masks"),
        pytest.param(FULL, {"crop": "center"}, id="2 x 3 views"),
        pytest.param(FULL, {"temporal": "tsn", "crop": "center"}, id="2 x 3 sparse views"),
    ],
)
def test_so_do_those_of_every_sampler(turned: Path, sampler: Sampler, views: dict[str, Any]) -> None:
    """The same clips, labels and masks, and near views; what fails is replaced, or left out, and put down the same way."""
    recipe = replace(RECIPE, **{"masks": None, **views})
    found, pixels = [], []
    for decoder in ("dali", "libav"):
        with closing(ClipLoader(turned, recipe, sampler=sampler, decoder=decoder, clips_per_batch=4)) as loader:  # type: ignore[arg-type]
            assert loader.decoder_choice.name == decoder
            facts: list[Any] = []
            for batch in loader.epochs(1):
                pixels.append(batch.views.clone())
                masks = [mask.tolist() for mask in (batch.visible, batch.decoded, batch.loss_weight) if mask is not None]
                facts += [batch.rows, batch.weight, batch.labels, batch.keys, masks]
            # without those of the next epoch, which is decoded ahead
            failed = sorted((each.epoch, each.position, each.attempt, each.row) for each in loader.failures if not each.epoch)
            found.append(f"{facts} {failed} {[clip.key for clip in loader.missing]} {loader.label_map}")
            assert {row for *_, row in failed} == set(BAD_ROWS)
    assert found[0] == found[1]
    dali, libav = (torch.cat(each) for each in (pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]))
    assert torch.equal(dali.flatten(1).any(1), libav.flatten(1).any(1))  # a clip that is missing is black
    check_near(dali, libav)


def check_near(dali: torch.Tensor, libav: torch.Tensor) -> None:
    difference = dali.numpy().astype(int) - libav.numpy()
    assert difference.any(), "one decoder did both"
    figures = np.abs(difference).mean(), np.percentile(np.abs(difference), 99), difference.mean(axis=(0, 1, 2, 3))
    print(figures)
    assert figures[0] <= 1.2 and figures[1] <= 4 and np.abs(figures[2]).max() <= 0.5, figures


def test_what_dali_does_not_take_is_decoded_by_libav(mixed: Path, encoded: dict[str, list[bytes]], by_dali: tuple) -> None:
    _, ours, rows, loader = run(mixed, 3, decoder="dali")
    assert loader.decoder_choice.name == "both"
    assert loader.decoder_choice.reasons == {"DALI decodes vp8, vp9, mjpeg on a CPU, not h264": len(H264_ROWS)}
    assert set(rows.tolist()) == set(range(CLIPS)) and not loader.failures
    samples = sample_clips(loader.manifest, RECIPE, 0, np.arange(CLIPS), np.zeros(CLIPS, np.int64))
    for i, number in enumerate(rows.tolist()):
        mine = ours[2 * i : 2 * i + 2]
        if number in H264_ROWS:
            libav = np.empty(tuple(mine.shape), np.uint8)
            clip = loader.manifest.clip(number)
            decode_libav(ClipRequest(clip, encoded["h264"][number], samples.frames[i], samples.boxes[i]), libav)
            assert torch.equal(mine, torch.from_numpy(libav)), number
        else:
            assert torch.equal(mine, by_dali[1][2 * i : 2 * i + 2]), number


def test_dali_is_refused_where_it_takes_nothing(encoded: dict[str, list[bytes]], tmp_path: Path) -> None:
    dataset = build(tmp_path, [("h264", data, data) for data in encoded["h264"]])
    with pytest.raises(ValueError, match=r"DALI takes none of the 12 clips: .* not h264"):
        ClipLoader(dataset, RECIPE, decoder="dali")
    with pytest.raises(ValueError, match="decoder 'nvdec' is not known; allowed are 'auto', 'libav', 'dali'"):
        ClipLoader(dataset, RECIPE, decoder="nvdec")  # type: ignore[arg-type]
    augmented = replace(RECIPE, randaugment="rand-m7-n4-mstd0.5-inc1")
    with pytest.raises(ValueError, match=r"decoder 'dali' gives no whole frames for RandAugment .* --augment.randaugment-by"):
        ClipLoader(dataset, augmented, decoder="dali")


def check_substitutes(taken: list[dict[int, str]], failures: list[FailedClip], expected: list[dict[int, str]]) -> None:
    """The failed clips are named, their positions have something else, and all other positions what they always have."""
    assert {(failure.row, failure.key) for failure in failures} == {(row, f"clip-{row}") for row in BAD_ROWS}
    assert {failure.reason for failure in failures} == {Failure.DAMAGED}
    failed = {(failure.epoch, failure.position) for failure in failures}
    for number, step in enumerate(taken):
        for position, value in step.items():
            assert (value == expected[number][position]) == ((0, position) not in failed)


def test_clips_that_only_decoding_finds_bad_are_replaced(
    encoded: dict[str, list[bytes]], expected: list[dict[int, str]], tmp_path: Path
) -> None:
    """Damage from before the dataset was built: the hash is right, so are the packets; the decoder refuses the frames."""
    clips = [("vp9", data, data) for data in encoded["vp9"]]
    for number in BAD_ROWS:
        data = clips[number][1]
        bad = damaged(data)
        clip = describe(data, "vp9")
        trimmed = trim(ClipRequest(clip, bad, np.arange(0, 16, 2), np.array([[0, 0, WIDTH, HEIGHT]])))  # nothing to see yet
        assert DaliDecoder("cpu", 1, 32)([trimmed])[1]
        clips[number] = ("vp9", data, bad)
    dataset = build(tmp_path, clips)
    taken, _, loaders = take(dataset, 3, 2, decoder="dali")
    check_substitutes(taken, [failure for loader in loaders for failure in loader.failures], expected)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI fails on some clips today."""
    decode = DaliDecoder.__call__

    def fail(self: DaliDecoder, clips: list[TrimmedClip]) -> Any:
        views, failures = decode(self, clips)
        bad = [i for i, clip in enumerate(clips) if clip.clip.row in BAD_ROWS]
        views[bad] = 0
        return views, sorted([*failures, *((i, DecodeError(Failure.DAMAGED, "made to fail")) for i in bad)])

    monkeypatch.setattr(DaliDecoder, "__call__", fail)


def test_a_finite_pass_of_rectangles_leaves_out_what_dali_cannot_decode(mixed: Path, failing: None) -> None:
    recipe = replace(RECIPE, masks=None, input_size=(32, 48), num_frames=5)
    sampler = EvaluationSampler(views="full", segments=2, crops=1)
    loader = ClipLoader(mixed, recipe, sampler=sampler, decoder="dali", clips_per_batch=5)
    libav = ClipLoader(mixed, recipe, sampler=sampler, clips_per_batch=4)
    for _ in range(2):  # passes
        seen, difference = {}, []
        for batch in loader:
            assert batch.visible is None
            for number, weight, views in zip(batch.rows.tolist(), batch.weight, batch.views.unflatten(0, (5, 2)), strict=True):
                assert bool(weight) == bool(views.any())
                if weight:
                    seen[number] = views.clone()
        assert set(seen) == set(range(CLIPS)) - set(BAD_ROWS) and sorted(clip.row for clip in loader.missing) == list(BAD_ROWS)
        for batch in libav:
            for number, views in zip(batch.rows.tolist(), batch.views.unflatten(0, (4, 2)), strict=True):
                if number in seen:
                    difference.append((views.int() - seen[number].int()).abs().float())
        assert len(difference) == CLIPS - len(BAD_ROWS) and torch.stack(difference).mean() <= 1.2
    loader.close()
    libav.close()


def test_the_ledger_replays_what_failed_in_dali(
    vp9: Path, expected: list[dict[int, str]], failing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the sidecar dies before it answers to the first failure: its successor is asked again."""
    ask, deaths = ClipLoader._ask_again, []

    def kill_first(self: ClipLoader, place: int) -> None:
        if not deaths:
            deaths.append(place)
            self._process.kill()
            self._process.wait()
        ask(self, place)

    monkeypatch.setattr(ClipLoader, "_ask_again", kill_first)
    taken, state, (loader,) = take(vp9, 3, decoder="dali")
    assert deaths
    check_substitutes(taken, loader.failures, expected)
    attempts: dict[tuple[int, int], int] = {}
    for failure in loader.failures:
        where = failure.epoch, failure.position
        assert failure.attempt == attempts.get(where, 0)
        attempts[where] = failure.attempt + 1
    monkeypatch.undo()  # tomorrow they decode
    ledger = tuple((*where, n) for where, n in sorted(attempts.items()))
    again, _, (loader,) = take(vp9, 3, state=restored(replace(state, epoch=0, step=0, ledger=ledger)), decoder="dali")
    assert again == taken and not loader.failures


def test_memory_that_runs_out_is_no_clips_fault(encoded: dict[str, list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(self: DaliDecoder, clips: list[TrimmedClip]) -> None:
        raise RuntimeError("Critical error in pipeline:\nCUDA allocation failed\nCan't allocate 9633792 bytes on device 0.")

    monkeypatch.setattr(DaliDecoder, "_decode", run_out)
    data = encoded["vp9"][0]
    with pytest.raises(RuntimeError, match="Can't allocate 9633792 bytes on device 0"):
        DaliDecoder("cpu", 1, 32)([ClipRequest(describe(data, "vp9"), data, np.arange(8), np.array([[0, 0, 50, 40]]))] * 2)


def test_batches_ahead_are_bounded_and_a_device_that_fails_ends_the_run(vp9: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ClipLoader(vp9, RECIPE, decoder="dali", clips_per_batch=1, prefetch=8)
    loader.meters = StageMeters()
    made: list[weakref.ref] = []
    alive = []
    for _ in range(30):
        next(loader)
        assert loader._batch is not None
        made.append(weakref.ref(loader._batch.views))
        time.sleep(0.02)
        assert loader._device_decoding is not None
        assert len(loader._device_decoding._batches) <= BATCHES_AHEAD
        alive.append(sum(reference() is not None for reference in made))
    assert max(alive) == 1
    records = loader.meters.records()
    assert len(records) == 30
    assert (records["decode"] > 0).all() and (records["demux"] > 0).all() and (records["frames_kept"] <= 8).all()
    assert (records["bytes_used"] > 0).all() and (records["frames_decoded"] >= records["frames_kept"]).all()

    def fail(self: DaliDecoder, clips: list[TrimmedClip]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(DaliDecoder, "__call__", fail)
    with pytest.raises(LoaderError, match=r"cpu failed while it decoded a batch of rank 0: CUDA error: an illegal"):
        for _ in range(BATCHES_AHEAD + 1):
            next(loader)
    assert not loader.failures
    process, thread = loader._process, next(t for t in threading.enumerate() if t.name == "device decoding")
    del loader
    gc.collect()
    thread.join(timeout=5)
    assert not thread.is_alive() and process.poll() is not None
