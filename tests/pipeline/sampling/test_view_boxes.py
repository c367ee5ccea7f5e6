"""Boxes in views: where the people are that a view shows, through the real loader."""

import itertools
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader import ClipLoader
from pipeline.sampling import EvaluationSampler, SamplingRecipe, view_boxes
from pipeline.sampling.draws import Draws
from pipeline.sampling.view_boxes import evaluation_boxes, inclusive, training_boxes, whole_frames_by_size
from pipeline.storage.key_frames import Action, KeyFrames
from pipeline.storage.manifest import Manifest
from tests.key_frame_tables import box, key_frame, write_tables

QUICK = settings(derandomize=True, database=None, deadline=None, max_examples=15)
RECIPE = SamplingRecipe(
    views_per_step=8,
    views_per_clip=2,
    masks=None,
    input_size=64,
    num_frames=4,
    sampling="stride:2",
    temporal="key_frame",
    crop="random_scale",
    short_sides=(64, 96),
    seed=3,
)


@pytest.fixture(scope="module")
def annotated(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips with a key frame, two people annotated in each, and three found."""
    folder = shutil.copytree(dataset, tmp_path_factory.mktemp("annotated") / "dataset")
    manifest = Manifest(folder)
    keys = [manifest.clip(row).key for row in range(len(manifest))]
    clips = [key_frame(key, second=902.0 + i, frame=5 + i) for i, key in enumerate(keys)]
    boxes = []
    for i, key in enumerate(keys):
        boxes += [box(key, "truth", (0.1, 0.2, 0.4, 0.9), (1,)), box(key, "truth", (0.5, 0.1, 0.6 + 0.01 * i, 0.3), (1, 2))]
        boxes += [box(key, "detection", (0.1, 0.2, 0.4, 0.8), score=score) for score in (0.7, 0.9, 0.99)]
    write_tables(folder, clips, boxes, [Action(1, "stand"), Action(2, "watch")])
    return folder


def in_a_pass(dataset: Path, world_size: int, steps: int, state: object = None) -> dict[tuple[int, int], tuple]:
    """(epoch, position) -> rows, crops, boxes, and labels of the views of the clip there."""
    found = {}
    for rank in range(world_size):
        with closing(ClipLoader(dataset, RECIPE, rank=rank, world_size=world_size, workers=1, state=state)) as loader:
            frames = KeyFrames(loader.manifest)
            for batch in itertools.islice(loader, steps):
                positions, rows, crops = batch.positions.numpy(), batch.rows.numpy(), batch.crops
                flips = Draws(RECIPE, batch.epoch, positions).flips(0.5)
                boxes = training_boxes(frames, RECIPE, batch.epoch, positions, rows, crops, flips)
                for clip, position in enumerate(positions.tolist()):
                    of = boxes.view // 2 == clip
                    labels = frames.labels(boxes.places[of]).tolist()
                    found[batch.epoch, position] = int(rows[clip]), crops[clip].tolist(), boxes.boxes[of].tolist(), labels
    return found


def test_boxes_are_the_same_on_any_ranks_and_after_a_restart(annotated: Path) -> None:
    alone = in_a_pass(annotated, 1, 5)
    assert in_a_pass(annotated, 2, 5) == alone
    with closing(ClipLoader(annotated, RECIPE, workers=1)) as loader:
        next(loader), next(loader)
        state = loader.state()
    later = in_a_pass(annotated, 1, 3, state)
    assert later == {where: alone[where] for where in later} and len(later) == 12
    boxes = np.array([one for *_, of_clip, _ in alone.values() for one in of_clip])
    assert boxes.min() >= 0 and boxes.max() <= 63 and (boxes[:, :2] < boxes[:, 2:]).all() and len(boxes) > 60


def test_a_run_does_not_go_on_with_other_annotations(annotated: Path, tmp_path: Path) -> None:
    """But with other detections it does."""
    folder = shutil.copytree(annotated, tmp_path / "dataset")
    with closing(ClipLoader(folder, RECIPE, workers=1)) as loader:
        state = loader.state()
    tables = {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("key_frames", "boxes")}
    actions = [Action(1, "stand"), Action(2, "watch")]

    def again(which: str, change: dict[str, Any], before: Any = state) -> None:
        boxes = [one | change if one["kind"] == which else one for one in tables["boxes"]]
        clips = [one | change for one in tables["key_frames"]] if which == "key_frames" else tables["key_frames"]
        write_tables(folder, clips, boxes, actions)
        ClipLoader(folder, RECIPE, workers=1, state=before).close()

    again("detection", {"score": 0.5})
    changes: list[tuple[str, dict[str, Any]]] = [
        ("truth", {"x1": 0.0}),
        ("truth", {"actions": [2]}),
        ("key_frames", {"frame": 9}),
    ]
    for which, change in changes:
        with pytest.raises(ValueError, match=r"other boxes, actions or key frames are annotated in .*restore its"):
            again(which, change)
    again("truth", {"actions": [2]}, {name: value for name, value in state.items() if name != "annotated"})  # of older code


def test_views_show_their_boxes(annotated: Path) -> None:
    """Without jitter and flip: a box in a view is the box in the frame, cut at the crop's edges and scaled."""
    manifest = Manifest(annotated)
    frames, positions = KeyFrames(manifest), np.arange(4)
    with closing(ClipLoader(annotated, RECIPE, workers=1)) as loader:
        batch = next(loader)
        rows, crops = batch.rows.numpy(), batch.crops
        samples = loader.sampler.clips(0, batch.positions.numpy(), np.zeros(4, int))
        assert (samples.boxes == crops).all() and (samples.frames[:, 2] == frames.frame[rows]).all()
    found = training_boxes(frames, RECIPE, 0, positions, rows, crops, jitter=False)
    for one, view, place in zip(found.boxes, found.view, found.places, strict=True):
        row = frames.row[place]
        assert row == rows[view // 2] and frames.is_truth[place]
        x, y, w, h = crops.reshape(-1, 4)[view]
        corners = frames.box[place] * np.tile([manifest.width[row], manifest.height[row]], 2) - [0, 0, 1, 1]
        wanted = (corners - [x, y, x, y]) * 64 / [w, h, w, h]
        assert np.allclose(one, wanted.clip(0, 63), atol=1e-4)
    mirrored = training_boxes(frames, RECIPE, 0, positions, rows, crops, np.ones(8, bool), jitter=False)
    assert (
        np.allclose(mirrored.boxes[:, [0, 2]], 63 - found.boxes[:, [2, 0]])
        and (mirrored.boxes[:, 1] == found.boxes[:, 1]).all()
    )


def test_what_a_view_does_not_show_is_left_out(annotated: Path) -> None:
    manifest = Manifest(annotated)
    frames, rows = KeyFrames(manifest), np.array([0])
    width, height = int(manifest.width[0]), int(manifest.height[0])
    left = np.array([[[0, 0, width // 10, height // 10]]])  # neither person is there
    whole = np.array([[[0, 0, width, height]]])
    both = np.concatenate([left, whole], axis=1)
    found = training_boxes(frames, RECIPE, 0, np.array([0]), rows, both)
    assert found.view.tolist() == [1, 1] and found.places.tolist() == [0, 1]
    assert len(training_boxes(frames, RECIPE, 0, np.array([0]), rows, both, most=1).boxes) == 1
    assert len(evaluation_boxes(frames, (64, 64), rows, left, "truth").boxes) == 2  # in a test each gets its scores


def test_whole_frames_are_evaluated_once_with_the_boxes_that_were_found(annotated: Path) -> None:
    manifest = Manifest(annotated)
    frames, taken = KeyFrames(manifest), []
    groups = whole_frames_by_size(manifest, np.arange(len(manifest)), 16, (64, 112))
    for size, rows in groups.items():
        recipe = replace(RECIPE, crop="none", input_size=size, views_per_clip=1, split="all")
        for rank in range(2):
            sampler = EvaluationSampler(rows=rows)
            with closing(ClipLoader(annotated, recipe, sampler=sampler, rank=rank, world_size=2, workers=1)) as loader:
                for batch in loader:
                    there = batch.weight.numpy() > 0
                    assert batch.views.shape[2:4] == size
                    taken += batch.rows.numpy()[there].tolist()
                    rows_and_crops = batch.rows.numpy(), batch.crops
                    found = evaluation_boxes(frames, size, *rows_and_crops, weight=batch.weight.numpy())
                    assert np.allclose(frames.score[found.places], [0.99, 0.9] * there.sum())
                    (high, wide), (x1, y1, x2, y2) = size, (0.1, 0.2, 0.4, 0.8)
                    out_x, out_y = 0.05 * (x2 - x1) * wide, 0.025 * (y2 - y1) * high  # on either side
                    wanted = x1 * wide - out_x, y1 * high - out_y, x2 * wide - 1 + out_x, y2 * high - 1 + out_y
                    assert np.allclose(found.boxes, wanted, atol=1), (found.boxes[0], wanted)
                    assert len(evaluation_boxes(frames, size, *rows_and_crops, at_least=0).boxes) == 3 * len(there)
    assert sorted(taken) == list(range(len(manifest))) and all(side % 16 == 0 for size in groups for side in size)


def test_a_dataset_without_key_frames_is_refused(dataset: Path, annotated: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no key frames"):
        ClipLoader(dataset, RECIPE)
    folder = shutil.copytree(annotated, tmp_path / "some")
    manifest = Manifest(folder)
    write_tables(folder, [key_frame(manifest.clip(0).key)], [], [Action(1, "stand")])
    with pytest.raises(ValueError, match=r"11 of 12 clips of .* have no key frame, such as"):
        ClipLoader(folder, RECIPE)
    with pytest.raises(ValueError, match=r"1 of 1 clips"):
        ClipLoader(folder, RECIPE, sampler=EvaluationSampler(rows=[3]))
    with pytest.raises(ValueError, match="has one view of a key frame"):
        ClipLoader(folder, RECIPE, sampler=EvaluationSampler(views="full", segments=1, crops=1, rows=[0]))


BOX = st.tuples(*[st.floats(0, 0.8)] * 2, *[st.floats(0.1, 0.2)] * 2).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@QUICK
@given(box=BOX, width=st.integers(16, 500), height=st.integers(16, 500), seed=st.integers(0, 1 << 30))
def test_boxes_stay_in_their_view(box: tuple, width: int, height: int, seed: int) -> None:
    boxes = inclusive(np.array([box]), width, height)
    uniform = np.random.default_rng(seed).random((1, 4))
    for changed in (
        view_boxes.enlarged(boxes, width, height),
        view_boxes.jittered(boxes, uniform, width, height),
        view_boxes.placed(boxes, np.array([1.3, 0.7]), np.array([5, 9]), width, height, np.array([bool(seed % 2)])),
    ):
        assert (changed[:, :2] <= changed[:, 2:]).all()
        assert (changed >= 0).all() and (changed <= np.array([width, height, width, height]) - 1).all()
    fractions = view_boxes.as_fractions(boxes, (width, height), width, height)
    assert np.allclose(fractions, box)
