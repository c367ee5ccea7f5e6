from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import crops, keyed, sampling
from pipeline.sampling import SamplingRecipe


def manifest(clips: int = 500, **columns: object) -> SimpleNamespace:
    """Columns of a manifest, without its file."""
    rng = np.random.default_rng(0)
    plain = {
        "num_frames": rng.integers(20, 300, clips).astype(np.int32),
        "fps": np.full(clips, 30.0),
        "width": np.full(clips, 340, np.int32),
        "height": np.full(clips, 256, np.int32),
        "stride": np.full(clips, 4, np.int32),
        "interval": np.zeros(clips),
    }

    class Columns(SimpleNamespace):
        def __len__(self) -> int:
            return clips

    return Columns(**{**plain, **columns})


def window(start: int, num_frames: int, step: float) -> list[int]:
    return sampling.window_frames(np.array([start]), np.array([num_frames]), 16, np.array([float(step)]))[0].tolist()


def test_windows_have_an_exact_stride_and_short_clips_stand_still() -> None:
    assert window(5, 100, 4) == list(range(5, 66, 4))
    assert window(0, 30, 4) == [0, 4, 8, 12, 16, 20, 24, *[28] * 9]
    assert window(0, 61, 4)[-3:] == [52, 56, 56]  # the official rule stops before the last frame
    assert window(0, 62, 4)[-2:] == [56, 60]
    assert window(0, 64, 4)[-1] == 60
    assert window(0, 1, 4) == [0] * 16
    assert sampling.start_range(np.array([63, 64, 65, 100]), 16, np.full(4, 4.0)).tolist() == [0, 0, 1, 36]


def test_seconds_follow_the_frame_rate() -> None:
    rates = np.array([30.0, 60.0, 15.0, 12.0, 29.97])
    step = 4 / 30 * rates
    frames = sampling.window_frames(np.zeros(5, np.int64), np.full(5, 1000), 16, step)
    times = frames / rates[:, None]
    assert np.abs(times - np.arange(16) * 4 / 30).max() <= 0.5 / 12
    assert frames[0].tolist() == list(range(0, 61, 4))
    assert (np.diff(frames, axis=1) >= 1).all()
    columns = manifest(stride=np.zeros(500, np.int32), interval=np.full(500, 4 / 30))
    assert sampling.frame_step(columns, np.array([0])).tolist() == [4.0]


@pytest.mark.parametrize("length", range(1, 200, 7))
@pytest.mark.parametrize("step", [0.4, 1.6, 2.0, 3.9996, 4.0])
def test_every_window_lies_inside_its_clip(length: int, step: float) -> None:
    last = int(sampling.start_range(np.array([length]), 16, np.array([step]))[0])
    for start in {0, last // 2, last}:
        frames = window(start, length, step)
        assert min(frames) >= 0 and max(frames) < length
        assert frames == sorted(frames)


def test_an_epoch_is_a_permutation_and_drops_other_clips_each_time() -> None:
    recipe = SamplingRecipe(views_per_step=64 * 2, views_per_clip=2)
    steps = sampling.steps_per_epoch(500, recipe)
    assert steps == 500 // 64
    dropped = []
    for epoch in range(3):
        rows = sampling.clip_rows(500, recipe, epoch, np.arange(steps * 64))
        assert len(set(rows.tolist())) == steps * 64
        dropped.append(set(range(500)) - set(rows.tolist()))
    assert dropped[0] != dropped[1] != dropped[2]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_a_step_without_changing_it(world_size: int) -> None:
    recipe = SamplingRecipe(views_per_step=64)
    positions = np.concatenate([sampling.rank_positions(3, recipe, r, world_size) for r in range(world_size)])
    assert sorted(positions.tolist()) == list(range(3 * 16, 4 * 16))


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    recipe, columns = SamplingRecipe(views_per_step=64), manifest()
    none = np.zeros(8, np.int64)
    together = sampling.sample_clips(columns, recipe, 2, np.arange(40, 48), none)
    alone = sampling.sample_clips(columns, recipe, 2, np.array([43]), none[:1])
    assert alone.rows[0] == together.rows[3]
    assert np.array_equal(alone.frames[0], together.frames[3])
    assert np.array_equal(alone.boxes[0], together.boxes[3])
    masks = sampling.sample_masks(recipe, 2, np.arange(40, 48)), sampling.sample_masks(recipe, 2, np.array([43]))
    for several, one in zip(*masks, strict=True):
        assert np.array_equal(several[12:16], one)


def test_views_positions_epochs_and_seeds_differ() -> None:
    columns, none = manifest(num_frames=np.full(500, 300, np.int32)), np.zeros(16, np.int64)
    base = sampling.sample_clips(columns, SamplingRecipe(views_per_step=64), 0, np.arange(16), none)
    assert len(np.unique(base.boxes.reshape(-1, 4), axis=0)) > 30  # of 64: the R crops of a clip are draws of their own
    for recipe, epoch in ((SamplingRecipe(views_per_step=64), 1), (SamplingRecipe(views_per_step=64, seed=1), 0)):
        other = sampling.sample_clips(columns, recipe, epoch, np.arange(16), none)
        assert (other.rows != base.rows).mean() > 0.9
        assert (other.frames[:, 0] != base.frames[:, 0]).mean() > 0.8
        masks = sampling.sample_masks(recipe, epoch, np.arange(16)), sampling.sample_masks(SamplingRecipe(), 0, np.arange(16))
        assert (masks[0][0] != masks[1][0]).any(1).all()


def test_substitutes_are_functions_of_the_position() -> None:
    recipe, columns = SamplingRecipe(views_per_step=64), manifest()
    attempts = np.array([0, 1, 2, 0])
    first = sampling.sample_clips(columns, recipe, 0, np.arange(4), attempts)
    again = sampling.sample_clips(columns, recipe, 0, np.arange(4), attempts)
    plain = sampling.sample_clips(columns, recipe, 0, np.arange(4), np.zeros(4, np.int64))
    assert np.array_equal(first.rows, again.rows)
    assert (first.rows == plain.rows).tolist() == [True, False, False, True]


def test_multi_scale_crops_cover_their_choices() -> None:
    n = 20000
    boxes = crops.multi_scale_crop(keyed.mix(0, np.arange(n)), np.full(n, 340), np.full(n, 256), 224)
    x, y, w, h = boxes.T
    assert ((x >= 0) & (y >= 0) & (x + w <= 340) & (y + h <= 256)).all()
    shapes, counts = np.unique(boxes[:, 2:], axis=0, return_counts=True)
    assert len(shapes) == 10
    assert np.abs(counts / n - 0.1).max() < 0.012
    assert len(np.unique(boxes[(w == 168) & (h == 168)][:, :2], axis=0)) == 13
    small = crops.multi_scale_crop(keyed.mix(1, np.arange(500)), np.full(500, 222), np.full(500, 400), 224)
    assert (small[:, 2] <= 222).all()  # snapping to 224 may not leave the frame


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"views_per_step": 10, "views_per_clip": 4}, "views_per_step 10"),
        ({"views_per_step": 0}, "views_per_step 0"),
        ({"shuffle": "none"}, "'none'"),
        ({"input_size": 225}, "225 px"),
        ({"decoder_mask_ratio": 0.4}, "0.4"),
    ],
)
def test_impossible_recipes_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingRecipe(**change)  # type: ignore[arg-type]


def test_impossible_shares_name_the_possible_ones() -> None:
    with pytest.raises(ValueError, match="1, 2, 3, 4, 6, 12"):
        sampling.rank_positions(0, SamplingRecipe(views_per_step=48), 0, 5)
    with pytest.raises(ValueError, match="at most 40"):
        sampling.steps_per_epoch(10, SamplingRecipe(views_per_step=64))
