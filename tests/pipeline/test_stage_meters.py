import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.decoding.decode import ClipRequest, decode_libav
from pipeline.loader import ClipLoader
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.randaugment import OPERATIONS
from pipeline.stage_meters import RECORD, STAGES, BatchMeter, ClipMeter, StageMeters
from tests.pipeline import encoding, faulty_decoders

RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=32, patch_size=8, num_frames=8)  # 4 clips, 3 steps


def test_a_decoder_notes_what_it_does() -> None:
    data = encoding.encode([encoding.numbered_frame(i) for i in range(40)], gop=8, options={"bf": "0"})
    clip = encoding.describe(data, "h264")
    first = max(key for key in clip.keyframes if key <= 18)
    meter, record = ClipMeter(), np.zeros(1, RECORD)
    meter.fetched(len(data))
    views = np.zeros((1, 4, 32, 32, 3), np.uint8)
    frames = np.array([18, 21, 24, 24])
    sharpened = np.array([[[OPERATIONS.index("SharpnessIncreasing"), 1.9]]])
    before = time.perf_counter_ns()
    decode_libav(ClipRequest(clip, data, frames, np.array([[0, 0, 64, 64]]), meter, sharpened), views)
    passed = time.perf_counter_ns() - before
    meter.write(record[0], 3)
    (noted,) = record
    assert (noted["frames_kept"], noted["frames_spanned"]) == (3, 7)
    assert noted["frames_decoded"] == 24 - first + 1
    assert noted["bytes_read"] == len(data)
    assert 0 < noted["bytes_used"] < len(data)
    assert all(noted[stage] > 0 for stage in STAGES)
    work = sum(int(noted[stage]) for stage in STAGES[1:])
    assert work <= passed
    assert work > 0.8 * passed  # nothing of importance goes unnoticed
    assert noted["worker"] == 3
    assert noted["ended"] - noted["began"] >= work + noted["fetch"]


def test_attempts_in_vain_are_counted_apart() -> None:
    meter, record = ClipMeter(), np.zeros(1, RECORD)
    meter.fetched(10)
    meter.decode += 5_000_000
    time.sleep(0.02)
    meter.failed()
    meter.fetched(7)
    meter.write(record[0], 0)
    (noted,) = record
    assert (noted["failures"], noted["bytes_read"], noted["decode"]) == (1, 7, 0)
    assert noted["lost"] >= 20_000_000 > noted["ended"] - noted["began"]


def test_the_last_clips_are_kept_and_all_are_counted() -> None:
    meters = StageMeters(most_clips=10)
    for number in range(7):
        rows = np.full(4, number)
        meters.add(BatchMeter(2, number, number + 1, 0, rows + 100, rows, np.zeros(4, RECORD)))
    assert (meters.clips, meters.batches_seen) == (28, 7)
    assert meters.rows().tolist() == [5] * 4 + [6] * 4
    assert meters.positions().tolist() == [[2, 105]] * 4 + [[2, 106]] * 4
    assert meters.records().shape == (8,)
    nothing = StageMeters()
    assert (len(nothing.records()), len(nothing.rows()), nothing.positions().shape) == (0, 0, (0, 2))


@pytest.fixture
def watched(dataset: Path) -> ClipLoader:
    loader = ClipLoader(dataset, RECIPE, workers=2, prefetch=3)
    assert loader.meters is None  # nobody asked
    loader.meters = StageMeters()
    return loader


def check(loader: ClipLoader, rows: list[list[int]]) -> None:
    assert loader.meters is not None
    assert [batch.rows.tolist() for batch in loader.meters.batches] == rows
    for batch in loader.meters.batches:
        noted = batch.records
        assert (noted["submitted"] <= noted["began"]).all() and (noted["began"] < noted["ended"]).all()
        assert (noted["ended"] <= batch.got).all() and batch.asked <= batch.got
        assert set(noted["worker"].tolist()) <= {0, 1}
        assert (noted["plan"] > 0).all() and (noted["cpu"] >= noted["fetch_cpu"]).all()
        assert (noted["frames_decoded"] >= noted["frames_kept"]).all() and (noted["frames_kept"] >= 1).all()
        sizes = [loader.manifest.clip(row).size for row in batch.rows.tolist()]
        assert noted["bytes_read"].tolist() == sizes
        assert 0 <= batch.ready <= 3


def test_a_loader_hands_out_the_notes_of_its_batches(watched: ClipLoader) -> None:
    rows = [next(watched).rows.tolist() for _ in range(6)]
    waits = sum(batch.got - batch.asked for batch in watched.meters.batches) / 1e9  # type: ignore[union-attr]
    watched.close()
    check(watched, rows)
    assert waits == pytest.approx(watched.wait_seconds)


def test_a_queue_that_is_full_is_seen_so(dataset: Path) -> None:
    loader = ClipLoader(dataset, RECIPE, workers=2, prefetch=3)
    loader.meters = StageMeters()
    for _ in range(4):
        next(loader)
        time.sleep(0.5)
    assert loader.meters.batches[-1].ready == 3
    loader.close()


def test_notes_outlive_a_killed_sidecar(watched: ClipLoader) -> None:
    rows = [next(watched).rows.tolist()]
    time.sleep(0.5)  # the next ones get ready
    os.kill(watched._process.pid, signal.SIGKILL)
    rows += [next(watched).rows.tolist() for _ in range(6)]
    watched.close()
    check(watched, rows)


def test_failed_attempts_are_in_the_notes(dataset: Path) -> None:
    loader = ClipLoader(dataset, RECIPE, workers=1, prefetch=3, decoder=faulty_decoders.refusing)
    loader.meters = StageMeters()
    for _ in range(3):
        next(loader)
    loader.close()
    failed = [failure for failure in loader.failures if failure.epoch == 0]  # of those handed out; more were decoded ahead
    assert loader.meters.records()["failures"].sum() == len(failed) >= 2
