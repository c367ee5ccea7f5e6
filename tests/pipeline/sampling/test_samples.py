import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline import sampling
from pipeline.decoding.decode import ClipRequest, decode_libav
from pipeline.loader import ClipLoader, LoaderState
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.notices import notices, short_clips
from pipeline.sampling.splits import describe_split
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader

QUICK = settings(derandomize=True, database=None, deadline=None, max_examples=40)
RECIPE = SamplingRecipe(views_per_step=64)


class Columns(SimpleNamespace):
    """Columns of a manifest, without its file."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.num_frames)


def manifest(clips: int = 500, **columns: object) -> Columns:
    plain = {
        "num_frames": (20 + np.arange(clips) * 37 % 281).astype(np.int16),
        "fps": np.full(clips, 30.0),
        "width": np.full(clips, 340, np.int16),
        "height": np.full(clips, 256, np.int16),
        "stride": np.full(clips, 4, np.int32),
        "interval": np.zeros(clips),
        "sources": ["long", "short"],
        "source": (np.arange(clips) >= clips * 4 // 5).astype(np.int16),
        "splits": ["val", "train"],
        "split": np.ones(clips, np.int16),
        "place": "made-up",
        "version": 1,
        "versions": [{"rows": clips}],
    }
    return Columns(**{**plain, **columns})


def sample(columns: Columns, recipe: SamplingRecipe, epoch: int, positions: np.ndarray) -> sampling.ClipSamples:
    return sampling.sample_clips(columns, recipe, epoch, positions, np.zeros(len(positions), np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arithmetic", "seen", "reconstructed"),
    [(1, [5, 14, 20, 31, 51, 56], [15, 16, 17, 18, 19, 21]), (2, [16, 19, 21, 26, 28, 42], [14, 15, 17, 18, 20, 22])],
)
def test_golden_values(arithmetic: int, seen: list[int], reconstructed: list[int]) -> None:
    """A change here changes every batch of every run: it would be a new version of the arithmetic, not a fix."""
    recipe = replace(RECIPE, seed=3, arithmetic=arithmetic)
    taken = sampling.sample_clips(manifest(), recipe, 5, np.array([0, 7, 77]), np.array([0, 1, 0]))  # type: ignore[arg-type]
    assert taken.rows.tolist() == [114, 257, 376]
    assert taken.frames[:, [0, -1]].tolist() == [[0, 20], [108, 168], [22, 82]]
    assert taken.boxes[1].tolist() == [[74, 0, 192, 224], [29, 0, 224, 256], [29, 24, 224, 224], [74, 44, 192, 168]]
    visible, decoded, _ = sampling.sample_masks(recipe, 5, np.array([7]))
    assert visible[1][:6].tolist() == seen
    assert decoded[1][:6].tolist() == reconstructed


@QUICK
@given(
    shuffle=st.sampled_from(["global", "window"]),
    mixture=st.sampled_from([(), (("short", 2.0),)]),
    fresh=st.booleans(),
    temporal=st.sampled_from(["stride", "linspace", "tsn", "tsn_video"]),
    crop=st.sampled_from(["multi_scale", "random_resized"]),
    epoch=st.integers(0, 5),
    alone=st.integers(0, 15),
)
def test_a_sample_does_not_depend_on_its_neighbours(
    shuffle: str, mixture: tuple, fresh: bool, temporal: str, crop: str, epoch: int, alone: int
) -> None:
    recipe = replace(RECIPE, shuffle=shuffle, mixture=mixture, fresh_windows=fresh, temporal=temporal, crop=crop)
    columns = manifest()
    together = sample(columns, recipe, epoch, np.arange(40, 56))
    one = sample(columns, recipe, epoch, np.array([40 + alone]))
    for several, single in zip(asdict(together).values(), asdict(one).values(), strict=True):
        assert several is None or np.array_equal(several[alone], single[0])
    masks = (
        sampling.sample_masks(recipe, epoch, np.arange(40, 56)),
        sampling.sample_masks(recipe, epoch, np.array([40 + alone])),
    )
    for several, single in zip(*masks, strict=True):
        assert np.array_equal(several[4 * alone : 4 * alone + 4], single)

    assert together.frames.shape == ((16, 4, 16) if fresh else (16, 16))
    length = columns.num_frames[together.rows].reshape(-1, *[1] * (together.frames.ndim - 1))
    assert (together.frames >= 0).all() and (together.frames < length).all()
    assert together.repeated.tolist() == [(np.diff(frames) == 0).sum() for frames in together.frames]


@QUICK
@given(
    frames=st.sampled_from([2, 4, 8, 12, 16]),
    side=st.integers(1, 8).map(lambda half: 2 * half),
    mask_ratio=st.floats(0.3, 0.95),
    decoder_mask_ratio=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    seed=st.integers(0, 99),
)
def test_masks_have_exact_counts(frames: int, side: int, mask_ratio: float, decoder_mask_ratio: float, seed: int) -> None:
    masked = int(mask_ratio * side * side)
    assume(masked)
    recipe = SamplingRecipe(
        views_per_step=8, num_frames=frames, input_size=16 * side, seed=seed,
        mask_ratio=mask_ratio, decoder_mask_ratio=decoder_mask_ratio,
    )  # fmt: skip
    time, num_tokens = frames // 2, frames // 2 * side * side
    for visible, decoded, weight in zip(*sampling.sample_masks(recipe, 1, np.arange(4)), strict=True):
        seen, kept = set(visible.tolist()), set(decoded.tolist())
        assert len(seen) == len(visible) == recipe.tokens.visible == time * (side * side - masked)
        assert len(kept) == len(decoded) == recipe.tokens.decoded
        assert len(kept) == (time * masked if decoder_mask_ratio == 0 else num_tokens * (1 - decoder_mask_ratio))
        assert seen | kept <= set(range(num_tokens))
        assert len({token % (side * side) for token in seen}) * time == len(seen)  # tubes
        assert weight.tolist() == [float(token not in seen) for token in decoded[: len(weight)].tolist()]
        assert weight.sum() == len(kept - seen)  # all that is decoded and hidden counts
        if time % 4 == 0:
            assert (weight == 1).all()


def test_views_positions_epochs_and_seeds_differ() -> None:
    columns = manifest(num_frames=np.full(500, 300, np.int32))
    base = sample(columns, RECIPE, 0, np.arange(16))
    assert len(np.unique(base.boxes.reshape(-1, 4), axis=0)) > 30  # of 64: the R crops of a clip are draws of their own
    for recipe, epoch in ((RECIPE, 1), (replace(RECIPE, seed=1), 0)):
        other = sample(columns, recipe, epoch, np.arange(16))
        assert (other.rows != base.rows).mean() > 0.9
        assert (other.frames[:, 0] != base.frames[:, 0]).mean() > 0.8
        masks = sampling.sample_masks(recipe, epoch, np.arange(16)), sampling.sample_masks(RECIPE, 0, np.arange(16))
        assert (masks[0][0] != masks[1][0]).any(1).all()


def test_fresh_windows_are_draws_of_their_own() -> None:
    columns = manifest(num_frames=np.full(500, 300, np.int32))
    fresh = sample(columns, replace(RECIPE, fresh_windows=True), 0, np.arange(16))
    starts = fresh.frames[:, :, 0]
    assert len(np.unique(starts)) > 45  # of 64
    assert (np.diff(fresh.frames, axis=2) == 4).all()
    assert fresh.rows.tolist() == sample(columns, RECIPE, 0, np.arange(16)).rows.tolist()


def test_a_recipe_may_choose_the_distance_of_frames() -> None:
    columns = manifest(num_frames=np.full(500, 300, np.int32), fps=np.where(np.arange(500) % 2, 24.0, 30.0))
    for text, seconds in (("fps:4", 0.25), ("seconds:0.2", 0.2)):
        taken = sample(columns, replace(RECIPE, sampling=text), 0, np.arange(16))
        times = taken.frames / columns.fps[taken.rows][:, None]
        assert np.abs(times - times[:, :1] - np.arange(16) * seconds).max() <= 0.5 / 24 + 1e-9
    assert (np.diff(sample(columns, replace(RECIPE, sampling="stride:7"), 0, np.arange(16)).frames) == 7).all()
    by_time = manifest(num_frames=np.full(500, 300), stride=np.zeros(500, np.int32), interval=np.full(500, 4 / 30))
    assert np.array_equal(
        sample(by_time, RECIPE, 0, np.arange(16)).frames,
        sample(manifest(num_frames=np.full(500, 300)), RECIPE, 0, np.arange(16)).frames,
    )


def test_padding_is_counted() -> None:
    columns = manifest(num_frames=np.where(np.arange(500) < 400, 64, 30))
    taken = sample(columns, RECIPE, 0, np.arange(16))
    assert taken.repeated.tolist() == np.where(taken.rows < 400, 0, 8).tolist()
    assert (taken.repeated > 0).any() and (taken.repeated == 0).any()


@pytest.mark.parametrize("temporal", ["stride", "linspace", "tsn", "tsn_video"])
@pytest.mark.parametrize("rate", ["manifest", "seconds:0.2", "fps:70"])
def test_repeats_of_an_epoch_are_known_before(temporal: str, rate: str) -> None:
    columns = manifest(num_frames=np.arange(500) * 37 % 140 + 1, fps=20.0 + np.arange(500) % 7, split=np.arange(500) % 3 - 1)
    recipe = replace(RECIPE, temporal=temporal, sampling=rate, views_per_step=4)
    taken = sample(columns, recipe, 2, np.arange(sampling.order_of(columns, recipe).num_positions)).repeated  # type: ignore[arg-type]
    found = short_clips(columns, recipe)  # type: ignore[arg-type]
    assert found.clips == len(taken)
    assert abs(found.repeated - taken.sum()) <= (5 if rate == "fps:70" else 0)  # which frames are taken twice hangs on the draw
    assert (found.short, found.still) == ((taken > 0).sum(), (taken == 15).sum())
    assert 0 < found.still < found.short


def test_what_is_not_as_one_might_think_is_told() -> None:
    lengths = np.repeat([100, 30, 3], [400, 90, 10])
    columns = manifest(num_frames=lengths, split=np.arange(500) % 2, version=1, versions=[{"rows": 500}, {"rows": 700}])
    assert notices(columns, RECIPE) == [  # type: ignore[arg-type]
        "250 clips of split train (left out: 250 val)",
        "50 of 250 clips are too short for 16 different frames: 435 of 4,000 frames (10.9%) are the one before once more",
        "5 of 250 clips end before the second frame of a view: it shows one frame 16 times (sampling 'manifest')",
        "the dataset has version 2 with 700 clips; this goes on with version 1, its first 500",
    ]
    assert notices(manifest(num_frames=np.full(500, 64)), RECIPE) == []  # type: ignore[arg-type]


def test_substitutes_are_functions_of_the_position() -> None:
    attempts = np.array([0, 1, 2, 0])
    for recipe in (RECIPE, replace(RECIPE, shuffle="window"), replace(RECIPE, mixture={"short": 2.0})):
        columns = manifest()
        first = sampling.sample_clips(columns, recipe, 0, np.arange(4), attempts)  # type: ignore[arg-type]
        again = sampling.sample_clips(columns, recipe, 0, np.arange(4), attempts)  # type: ignore[arg-type]
        plain = sample(columns, recipe, 0, np.arange(4))
        assert np.array_equal(first.rows, again.rows)
        assert (first.rows == plain.rows).tolist() == [True, False, False, True]


def test_validation_and_test_views() -> None:
    columns, rows = manifest(num_frames=np.full(500, 300)), np.array([3, 7])
    middle = sampling.validation_clips(columns, RECIPE, rows)  # type: ignore[arg-type]
    assert middle.frames.tolist() == [list(range(118, 179, 4))] * 2
    assert middle.boxes.tolist() == [[[41, 0, 256, 256]]] * 2
    views = sampling.multi_view_clips(columns, RECIPE, rows, 5, 3)  # type: ignore[arg-type]
    assert views.frames.shape == (2, 15, 16) and views.boxes.shape == (2, 15, 4)
    assert views.frames[0, :, 0].tolist() == np.repeat([0, 56, 116, 176, 236], 3).tolist()
    assert views.boxes[0, :, 0].tolist() == [0, 41, 84] * 5
    sparse = sampling.multi_view_clips(columns, replace(RECIPE, temporal="tsn"), rows, 2, 3)  # type: ignore[arg-type]
    assert sparse.frames[0, ::3, 0].tolist() == [0, 9]
    with pytest.raises(ValueError, match="0 segments x 3 crops"):
        sampling.multi_view_clips(columns, RECIPE, rows, 0, 3)  # type: ignore[arg-type]


def test_training_takes_its_split_and_clips_without_one() -> None:
    columns = manifest(split=np.arange(500, dtype=np.int16) // 7 % 3 - 1)  # 168 have none, 168 are val, 164 train
    own, val = np.flatnonzero(columns.split != 0), np.flatnonzero(columns.split == 0)
    for chosen, rows in (("train", own), ("val", val), ("train,val", np.arange(500)), ("all", np.arange(500))):
        recipe = SamplingRecipe(views_per_step=1, views_per_clip=1, split=chosen)
        order = sampling.order_of(columns, recipe)  # type: ignore[arg-type]
        assert order.num_clips == order.num_positions == len(rows)
        assert sorted(order.rows(3, np.arange(len(rows))).tolist()) == rows.tolist()
    assert describe_split(columns, "train") == "332 clips of split train (left out: 168 val)"  # type: ignore[arg-type]
    assert describe_split(columns, "val") == "168 clips of split val (left out: 168 without a split, 164 train)"  # type: ignore[arg-type]
    assert describe_split(columns, "all") == "500 clips, all splits"  # type: ignore[arg-type]
    assert describe_split(manifest(), "train") == "500 clips of split train (none left out)"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no clip of 'test'; it has without a split, which is for train \(168 clips\)"):
        sampling.order_of(columns, replace(RECIPE, split="test,val"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'val': made-up has no clip of 'val'; it has train \(500 clips\); 'all' takes"):
        sampling.order_of(manifest(), replace(RECIPE, split="val"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the dataset has 168 clips of split val an epoch, and one step takes 200"):
        sampling.order_of(columns, replace(RECIPE, split="val", views_per_step=800))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": " , "}, "split ' , ' names none"),
        ({"views_per_step": 10, "views_per_clip": 4}, "views_per_step 10"),
        ({"views_per_step": 0}, "views_per_step 0"),
        ({"shuffle": "none"}, "shuffle 'none' is not known; allowed are 'global', 'window'"),
        ({"temporal": "dense"}, "temporal 'dense' is not known; allowed are 'stride', 'linspace', 'tsn', 'tsn_video'"),
        ({"crop": "centre"}, "crop 'centre' is not known; allowed are 'multi_scale', 'random_resized', 'random_scale', "),
        (
            {"crop": "random_scale", "short_sides": (200, 320)},
            "short_sides 200 to 320: crop 'random_scale' cuts views of 224 px",
        ),
        ({"crop": "random_scale", "short_sides": (256, 255)}, "short_sides 256 to 255"),
        ({"input_size": (224, 225)}, "16 frames of 224 x 225 px do not divide"),
        ({"input_size": [224]}, r"input_size \[224\] must be the side of a square or \(height, width\)"),
        ({"input_size": 0, "masks": None}, "input_size 0 must be"),
        ({"num_frames": 0, "masks": None}, "num_frames 0 must be at least 1"),
        ({"masks": "tubes"}, "masks 'tubes' is not known; allowed are 'tube', 'random', "),
        ({"decoder_masks": "tube"}, "decoder_masks 'tube' is not known; allowed are 'running-cell', 'random', 'frame'"),
        ({"sampling": "4 fps"}, "sampling '4 fps' is not known"),
        ({"window": 0}, "window 0"),
        ({"lanes": 0}, "lanes 0"),
        ({"mixture": {"a": -1.0}}, "the weight -1.0 of source 'a'"),
        ({"seed": 1 << 64}, "seed 18446744073709551616 has more than 64 bits; allowed are -9223372036854775808"),
        ({"seed": -(1 << 63) - 1}, "has more than 64 bits"),
        ({"mixture": (("a", 1.0), ("a", 2.0))}, "names a source twice"),
        ({"input_size": 225}, "225 px"),
        ({"decoder_mask_ratio": 0.4}, "0.4"),
    ],
)
def test_impossible_recipes_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingRecipe(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-(1 << 63), -1, 1 << 63, (1 << 64) - 1])
def test_seeds_of_64_bits_draw(seed: int) -> None:
    recipe = replace(RECIPE, seed=seed)
    assert sampling.sample_masks(recipe, 0, np.arange(4))[0].shape[0] == 4 * recipe.views_per_clip


def test_recipes_survive_json() -> None:
    recipe = SamplingRecipe(mixture={"b": 2, "a": 0.5}, shuffle="window", lanes=12)  # type: ignore[arg-type]
    assert recipe.mixture == (("a", 0.5), ("b", 2.0))
    assert SamplingRecipe(split=("val", "train")) == SamplingRecipe(split="train, val")  # type: ignore[arg-type]
    assert SamplingRecipe.of({}).split == "all" and SamplingRecipe(split="all,val").split == "all"
    assert SamplingRecipe(**json.loads(json.dumps(asdict(recipe)))) == recipe
    assert SamplingRecipe(input_size=(224, 224)) == SamplingRecipe()
    recipe = SamplingRecipe(input_size=(96, 160), crop="none")
    assert SamplingRecipe.of(json.loads(json.dumps(asdict(recipe)))) == recipe and recipe.grid == (8, 6, 10)
    assert recipe.tokens.visible == 8 * (60 - 54)


def test_the_length_of_an_epoch() -> None:
    assert sampling.steps_per_epoch(500, RECIPE) == 31
    with pytest.raises(ValueError, match="at most 40"):
        sampling.steps_per_epoch(10, RECIPE)
    recipe = replace(RECIPE, mixture={"short": 2.0})
    assert sampling.order_of(manifest(), recipe).steps_per_epoch == 600 // 16  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depends on the dataset's sources"):
        sampling.steps_per_epoch(500, recipe)


# ------------------------------------------------------------------------------------------- on real, generated clips


def test_one_decode_serves_views_with_windows_of_their_own(dataset: Path) -> None:
    opened = Manifest(dataset)
    recipe = SamplingRecipe(
        views_per_step=16, input_size=32, num_frames=8, patch_size=8, fresh_windows=True, sampling="stride:2"
    )
    positions = np.arange(3)
    drawn = sampling.sample_clips(opened, recipe, 0, positions, np.zeros(3, np.int64))
    tested = sampling.multi_view_clips(opened, recipe, np.arange(3), 2, 3)
    with_reader = ShardReader(opened.root)
    for samples in (drawn, tested):
        for row, frames, boxes in zip(samples.rows, samples.frames, samples.boxes, strict=True):
            clip = opened.clip(int(row))
            data = with_reader.read(clip)
            together = np.zeros((len(boxes), 8, 32, 32, 3), np.uint8)
            decode_libav(ClipRequest(clip, data, frames, boxes), together)
            for view, own, box in zip(together, frames, boxes, strict=True):
                alone = np.zeros((1, 8, 32, 32, 3), np.uint8)
                decode_libav(ClipRequest(clip, data, own, box[None]), alone)
                assert np.array_equal(view, alone[0])
    with_reader.close()


def batches(
    dataset: Path, recipe: SamplingRecipe, steps: int, world_size: int = 1, state: LoaderState | None = None
) -> tuple[list[dict], LoaderState]:
    """Per step: position -> (row, digest of the pixels and masks); the state after."""
    loaders = [ClipLoader(dataset, recipe, rank=r, world_size=world_size, state=state, workers=1) for r in range(world_size)]
    taken = []
    for _ in range(steps):
        step = {}
        for loader in loaders:
            batch = next(loader)
            for i, (position, row) in enumerate(zip(batch.positions.tolist(), batch.rows.tolist(), strict=True)):
                of_clip = slice(i * recipe.views_per_clip, (i + 1) * recipe.views_per_clip)
                parts = (batch.views, batch.visible, batch.decoded, batch.loss_weight)
                step[position] = row, hashlib.sha1(b"".join(part[of_clip].numpy().tobytes() for part in parts)).hexdigest()
        taken.append(dict(sorted(step.items())))
    counted = [(loader.sampled_frames, loader.repeated_frames) for loader in loaders]
    assert sum(sampled for sampled, _ in counted) == steps * recipe.clips_per_step * recipe.frames_per_clip
    state = LoaderState.merged([loader.state() for loader in loaders])
    for loader in loaders:
        loader.close()
    return taken, state


def test_batches_in_window_order_do_not_depend_on_ranks_or_restarts(dataset: Path) -> None:
    recipe = SamplingRecipe(
        views_per_step=12, views_per_clip=2, input_size=32, num_frames=8, patch_size=8,
        shuffle="window", lanes=6, window=2, fresh_windows=True, sampling="fps:6", mixture={"generated": 1.5},  # type: ignore[arg-type]
    )  # fmt: skip
    straight, _ = batches(dataset, recipe, 5)
    first, state = batches(dataset, recipe, 1, world_size=2)
    saved = json.loads(json.dumps(asdict(state)))
    state = LoaderState(**{**saved, "ledger": tuple(map(tuple, saved["ledger"]))})
    rest, _ = batches(dataset, recipe, 4, state=state)
    assert first + rest == straight
    rows = [row for step in straight for row, _ in step.values()]
    assert len(set(rows[:12])) == 12  # a pass over the 12 clips before one comes again
    with pytest.raises(
        ValueError, match="6 clips a step of 6 lanes cannot be shared by 4 ranks; possible world sizes: 1, 2, 3, 6"
    ):
        ClipLoader(dataset, recipe, world_size=4)
    with pytest.raises(ValueError, match=r"lanes \(was 6, is 3\)"):
        ClipLoader(dataset, replace(recipe, lanes=3), state=state)
