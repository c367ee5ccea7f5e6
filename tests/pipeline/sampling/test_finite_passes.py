"""Finite passes: every clip once, through the real loader."""

import itertools
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from pipeline.decoding.decode import ClipRequest, decode_frames, decode_libav
from pipeline.loader import Batch, ClipLoader, LoaderState
from pipeline.sampling import EvaluationSampler, SamplingRecipe, multi_view_clips, sample_clips, sample_masks, validation_clips
from pipeline.sampling.sampler import NOBODY
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader
from tests.pipeline import faulty_decoders

SIZES: dict[str, Any] = {"input_size": 32, "patch_size": 8, "num_frames": 8, "sampling": "stride:2"}
PLAIN = SamplingRecipe(views_per_step=4, views_per_clip=1, masks=None, **SIZES)
Taken = dict[int, torch.Tensor]
"""Row -> the views of a clip."""


def take(loaders: Sequence[ClipLoader], steps: int | None = None) -> tuple[Taken, list[list[Batch]]]:
    """A pass of these ranks, or its next batches; every clip comes once, and what is no clip is black."""
    taken: Taken = {}
    batches: list[list[Batch]] = []
    for loader in loaders:
        batches.append([])
        for batch in itertools.islice(loader, steps):
            views = batch.views.unflatten(0, (len(batch.rows), -1)).clone()
            masks = {name: getattr(batch, name) for name in ("visible", "decoded", "loss_weight")}
            kept = {name: part if part is None else part.clone() for name, part in masks.items()}
            batches[-1].append(replace(batch, views=views, **kept))
            for of_clip, row, weight in zip(views, batch.rows.tolist(), batch.weight.tolist(), strict=True):
                assert weight in (0, 1) and bool(of_clip.any()) == bool(weight)
                if weight:
                    assert row not in taken
                    taken[row] = of_clip
    return taken, batches


def evaluated(dataset: Path, ranks: int, recipe: SamplingRecipe = PLAIN, decoder: Any = decode_libav, **options: Any) -> Any:
    """-> (row -> views, batches of each rank, the loaders, closed)."""
    sampler = EvaluationSampler(**options)
    loaders = [
        ClipLoader(dataset, recipe, sampler=sampler, rank=r, world_size=ranks, workers=1, decoder=decoder) for r in range(ranks)
    ]
    taken, batches = take(loaders)
    assert len({len(loader) for loader in loaders}) == 1
    assert [len(of_rank) for of_rank in batches] == [len(loader) for loader in loaders]
    for loader in loaders:
        loader.close()
    return taken, batches, loaders


def equal(one: Taken, other: Taken) -> bool:
    return one.keys() == other.keys() and all(torch.equal(views, other[row]) for row, views in one.items())


def alone(dataset: Path, recipe: SamplingRecipe, views: str = "centre") -> Taken:
    """The same without a loader."""
    manifest, taken = Manifest(dataset), {}
    rows = np.arange(len(manifest))
    samples = validation_clips(manifest, recipe, rows) if views == "centre" else multi_view_clips(manifest, recipe, rows, 2, 3)
    reader = ShardReader(manifest.root)
    for row, frames, boxes in zip(rows.tolist(), samples.frames, samples.boxes, strict=True):
        clip = manifest.clip(row)
        filled = np.empty((len(boxes), recipe.num_frames, 32, 32, 3), np.uint8)
        decode_libav(ClipRequest(clip, reader.read(clip), frames, boxes), filled)
        taken[row] = torch.from_numpy(filled)
    reader.close()
    return taken


@pytest.mark.parametrize(("clips", "ranks"), [(7, 1), (7, 3), (1, 2)])
def test_every_clip_comes_once(dataset: Path, clips: int, ranks: int) -> None:
    taken, batches, loaders = evaluated(dataset, ranks, rows=range(clips))
    assert equal(taken, {row: views for row, views in alone(dataset, PLAIN).items() if row < clips})
    assert loaders[0].num_clips == clips
    assert len({tuple(batch.views.shape) for of_rank in batches for batch in of_rank}) == 1
    assert all(batch.visible is None for of_rank in batches for batch in of_rank)


@settings(derandomize=True, database=None, deadline=None)
@given(clips=st.integers(1, 60), ranks=st.integers(1, 12), step=st.integers(1, 40), asked=st.none() | st.integers(1, 9))
def test_ranks_share_a_pass_evenly(clips: int, ranks: int, step: int, asked: int | None) -> None:
    recipe = replace(PLAIN, views_per_step=step)
    sampler = EvaluationSampler(rows=np.arange(clips) * 3).of(range(200), recipe)  # type: ignore[arg-type]
    (share,) = {sampler.share(rank, ranks, asked) for rank in range(ranks)}
    assert share <= max(1, step // ranks) if asked is None else share <= asked
    marks = range(0, sampler.epoch_end, sampler.stride(share, ranks))
    positions = np.array([[sampler.positions(mark, rank, ranks, share) for mark in marks] for rank in range(ranks)])
    assert sorted(positions[positions != NOBODY].tolist()) == list(range(clips))
    assert ((positions != NOBODY).sum((0, 2)) > 0).all(), "no step is empty on all ranks"
    assert np.ptp((positions != NOBODY).sum((1, 2))) <= 1


def test_all_views_of_a_clip_are_one_decode(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUBECELL_TEST_MARKS", str(tmp_path))
    recipe = replace(PLAIN, views_per_step=12)
    taken, batches, (loader,) = evaluated(dataset, 1, recipe, faulty_decoders.writing_down, views="full", segments=2, crops=3)
    assert batches[0][0].views.shape == (2, 6, 8, 32, 32, 3) and len(loader) == 6
    assert equal(taken, alone(dataset, recipe, "full"))
    samples = multi_view_clips(loader.manifest, recipe, np.arange(12), 2, 3)
    given = {int(file.name): json.loads(file.read_text()) for file in tmp_path.iterdir()}
    assert given == {row: [np.unique(samples.frames[row]).tolist()] for row in range(12)}
    assert loader.sampled_frames == samples.frames.size


@pytest.mark.parametrize("name", ["refusing", "crashing"])
def test_a_clip_that_fails_is_named_and_leaves_its_place_empty(dataset: Path, name: str) -> None:
    bad = faulty_decoders.BAD_ROWS
    taken, batches, loaders = evaluated(dataset, 2, decoder=getattr(faulty_decoders, name), rows=range(8))
    assert equal(taken, {row: views for row, views in alone(dataset, PLAIN).items() if row < 8 and row not in bad})
    missing = [clip for loader in loaders for clip in loader.missing]
    assert sorted(clip.row for clip in missing) == sorted(bad)
    assert all(clip.key == loaders[0].manifest.clip(clip.row).key for clip in missing)
    assert sum(len(loader.missing) for loader in loaders) + len(taken) == loaders[0].num_clips
    weights = {row: w for b in itertools.chain(*batches) for row, w in zip(b.rows.tolist(), b.weight.tolist(), strict=True)}
    assert weights == {row: float(row not in bad) for row in range(8)}  # rows stay those of the clips


def test_nothing_but_failures_is_a_result_too(dataset: Path) -> None:
    options = {"decoder": faulty_decoders.refusing_all, "max_failure_share": 0.0, "clips_per_batch": 5}
    with closing(ClipLoader(dataset, PLAIN, sampler=EvaluationSampler(), **options)) as loader:  # type: ignore[arg-type]
        taken, batches = take([loader])
        assert taken == {} and sorted(clip.row for clip in loader.missing) == list(range(12))
        assert [len(batch.rows) for batch in batches[0]] == [5, 5, 5] and loader.num_failures == 12


def test_a_pass_ends_another_begins_and_each_can_be_resumed(dataset: Path) -> None:
    expected = alone(dataset, PLAIN)
    options: dict[str, Any] = {"sampler": EvaluationSampler(), "world_size": 2, "clips_per_batch": 1, "workers": 1}
    loaders = [ClipLoader(dataset, PLAIN, rank=r, **options) for r in range(2)]
    first, batches = take(loaders)
    assert equal(first, expected) and [batch.epoch for batch in batches[0]] == [0] * 6
    for loader in loaders:
        with pytest.raises(StopIteration):
            next(loader)
    begun, _ = take(loaders, 1)
    assert len(begun) == 2
    loaders[1]._process.kill()
    state = LoaderState.merged([loader.state() for loader in loaders])
    rest, batches = take(loaders)
    assert equal(begun | rest, expected) and [(batch.epoch, batch.step) for batch in batches[1]] == [
        (1, n) for n in range(1, 6)
    ]
    assert loaders[0].keys(1, 2) == [loaders[0].manifest.clip(row).key for row in batches[0][1].rows.tolist()]
    for loader in loaders:
        loader.close()
    with closing(ClipLoader(dataset, PLAIN, state=state, sampler=EvaluationSampler())) as loader:  # of another number of ranks
        again, batches = take([loader])
        assert equal(again, rest) and [batch.weight.sum() for batch in batches[0]] == [4, 4, 2]
        for batch in batches[0]:
            assert loader.keys(1, batch.step) == [loader.manifest.clip(row).key for row in batch.rows.tolist()]
        assert equal(take([loader])[0], expected)
        for _ in range(2):
            assert equal(take([loader.epochs(1)])[0], expected)  # type: ignore[list-item]
        two = loader.epochs(2)
        assert [batch.epoch for batch in two] == [5] * 3 + [6] * 3 and list(two) == []
    with pytest.raises(ValueError, match=r"one of a pass over 12 clips \(\w+\), centre, .* and this loader is for training"):
        ClipLoader(dataset, PLAIN, state=state)


def test_masks_hang_on_the_clip_alone(dataset: Path) -> None:
    recipe = replace(PLAIN, masks="tube", views_per_clip=2)
    _, batches, _ = evaluated(dataset, 1, recipe)
    _, others, _ = evaluated(dataset, 1, replace(recipe, views_per_step=6), rows=[8, 4, 2])
    masks: dict[int, list[torch.Tensor]] = {}
    for batch in itertools.chain(*batches, *others):
        assert batch.visible is not None and batch.decoded is not None and batch.loss_weight is not None
        assert torch.equal(batch.views[:, 0], batch.views[:, 1]), "a view, masked twice"
        for i, row in enumerate(batch.rows.tolist()):
            own = [part.unflatten(0, (-1, 2))[i] for part in (batch.visible, batch.decoded, batch.loss_weight)]
            assert all(map(torch.equal, own, masks.setdefault(row, own)))
            assert not torch.equal(own[0][0], own[0][1])
    assert len({tuple(visible.reshape(-1).tolist()) for visible, _, _ in masks.values()}) == 12
    assert sample_masks(PLAIN, 0, np.arange(3)) is None


@pytest.mark.parametrize("crop", ["center", "none", "multi_scale"])
def test_rectangles_of_any_number_of_frames_are_what_torch_makes_of_the_boxes(dataset: Path, crop: str) -> None:
    recipe = replace(PLAIN, input_size=(40, 75), num_frames=5, crop=crop)
    manifest, rows = Manifest(dataset), [0, 5]
    if crop == "multi_scale":
        loader = ClipLoader(dataset, replace(recipe, views_per_step=2), workers=1)
        batch = next(loader)
        samples = sample_clips(manifest, loader.recipe, 0, np.arange(2), np.zeros(2, np.int64))
        taken, frames, boxes = (
            dict(zip(batch.rows.tolist(), batch.views[:, None].clone(), strict=True)),
            samples.frames,
            samples.boxes,
        )
        loader.close()
        rows = samples.rows.tolist()
    else:
        taken, _, _ = evaluated(dataset, 1, recipe, rows=rows)
        samples = validation_clips(manifest, recipe, np.array(rows))
        frames, boxes = samples.frames, samples.boxes
    sizes = [(manifest.clip(row).width, manifest.clip(row).height) for row in rows]
    for row, size, wanted, ((x, y, w, h),) in zip(rows, sizes, frames, boxes.tolist(), strict=True):
        if crop == "none":
            assert (x, y, w, h) == (0, 0, *size)
        elif crop == "center":
            assert abs(w / h - 75 / 40) < 0.02 and (w == size[0] or h == size[1])
        clip = manifest.clip(row)
        with closing(ShardReader(manifest.root)) as reader:
            whole = decode_frames(clip, reader.read(clip), np.unique(wanted))[np.unique(wanted, return_inverse=True)[1]]
        region = torch.from_numpy(whole[:, y : y + h, x : x + w]).permute(0, 3, 1, 2)
        expected = interpolate(region, (40, 75), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        assert (
            taken[row][0].int() - expected.int()
        ).abs().max() <= 2  # colours of a region's edge are those of the whole frame's


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": []}, "of the 12 clips of .* none was chosen"),
        ({"rows": [3, 12]}, "rows 3 to 12 were chosen; .* has rows 0 to 11"),
        ({"rows": [3, 3]}, "of the 2 chosen rows some are the same"),
        ({"views": "all"}, "views 'all' is not known; allowed are 'centre', 'full'"),
        ({"views": "full", "crops": 0}, "5 segments x 0 crops"),
    ],
)
def test_impossible_passes_are_refused(dataset: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EvaluationSampler(**options).of(Manifest(dataset), PLAIN)
    with pytest.raises(ValueError, match="with crop 'none' 3 crops would all be the whole frame; give crops=1"):
        EvaluationSampler(views="full").of(Manifest(dataset), replace(PLAIN, crop="none"))


def test_a_pass_is_over_the_split_unless_rows_are_chosen(dataset: Path) -> None:
    manifest, recipe = Manifest(dataset), replace(PLAIN, split="val")
    manifest.splits, manifest.split = ["train", "val"], np.arange(12) % 2
    sampler = EvaluationSampler().of(manifest, recipe)
    assert sampler.rows(0, sampler.positions(0, 0, 1, 6)).tolist() == [1, 3, 5, 7, 9, 11] and sampler.epoch_end == 6
    assert EvaluationSampler(rows=[4, 2]).of(manifest, recipe).rows(0, np.arange(2)).tolist() == [4, 2]


def test_training_has_no_length(dataset: Path) -> None:
    loader = ClipLoader(dataset, PLAIN, clips_per_batch=2)
    with pytest.raises(TypeError, match="steps_per_epoch and batches_per_step"):
        len(loader)
    batch = next(loader)
    assert batch.visible is batch.decoded is batch.loss_weight is None and batch.weight.tolist() == [1, 1]
    assert loader.num_clips == 12
    loader.close()
