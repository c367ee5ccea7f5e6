from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.sampling import order
from pipeline.sampling.order import Order
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.storage.manifest import Manifest
from tests.manifest_rows import row, write_rows

QUICK = settings(derandomize=True, database=None, deadline=None, max_examples=60)
SOURCES = ["kinetics", "ssv2", "ava"]


def recipe(clips_per_step: int = 8, **values: object) -> SamplingRecipe:
    return SamplingRecipe(views_per_step=clips_per_step, views_per_clip=1, **values)  # type: ignore[arg-type]


def mixed(codes: np.ndarray, weights: dict[str, float], clips_per_step: int = 1, **values: object) -> Order:
    return Order(recipe(clips_per_step, mixture=weights, **values), len(codes), SOURCES, codes)


def all_rows(made: Order, epoch: int) -> np.ndarray:
    return made.rows(epoch, np.arange(made.num_positions))


# --------------------------------------------------------------------------------------------------- every order


@pytest.mark.parametrize(
    ("arithmetic", "last", "mixture"), [(1, 65980, [902, 734, 337, 860, 691]), (2, 65977, [902, 737, 337, 853, 691])]
)
def test_golden_values(arithmetic: int, last: int, mixture: list[int]) -> None:
    """A change here changes every batch of every run: it would be a new version of the arithmetic, not a fix. The two differ in
    windows of fewer than 32 clips, such as a lane's last one."""
    plain = Order(SamplingRecipe(arithmetic=arithmetic), 1_348_000)
    assert plain.steps_per_epoch == 658  # the official run: 300 epochs of them are 197,400 steps
    assert plain.rows(2, np.array([0, 1, 1_347_583])).tolist() == [232808, 1117970, 183543]
    window = Order(SamplingRecipe(shuffle="window", arithmetic=arithmetic), 1_348_000)
    assert (window.lanes, window.steps_per_epoch) == (768, 658)
    assert window.rows(2, np.array([0, 1, 1_347_583])).tolist() == [1642, 834387, last]
    codes = np.repeat([0, 1, 2], [700, 200, 100])
    assert mixed(codes, {"ssv2": 3, "ava": 0.5}).rows(4, np.arange(5)).tolist() == [975, 228, 27, 556, 546]
    window = mixed(codes, {"ssv2": 3, "ava": 0.5}, shuffle="window", lanes=27, arithmetic=arithmetic)
    assert window.rows(4, np.arange(5)).tolist() == mixture


@QUICK
@given(
    clips=st.integers(1, 2500),
    shuffle=st.sampled_from(["global", "window"]),
    lanes=st.none() | st.integers(1, 60),
    window=st.integers(1, 90),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 400),
)
def test_an_epoch_takes_each_clip_at_most_once(
    clips: int, shuffle: str, lanes: int | None, window: int, seed: int, epoch: int
) -> None:
    assume(lanes is None or lanes <= clips)
    made = Order(recipe(1, shuffle=shuffle, lanes=lanes, window=window, seed=seed), clips)
    rows = all_rows(made, epoch)
    assert rows.min() >= 0 and rows.max() < clips
    assert len(np.unique(rows)) == len(rows) == clips - (clips % made.lanes if made.lanes else 0)


@pytest.mark.parametrize("shuffle", ["global", "window"])
def test_epochs_are_whole_steps_and_drop_other_clips_each_time(shuffle: str) -> None:
    made = Order(recipe(64, shuffle=shuffle, lanes=6 if shuffle == "window" else None, window=20), 500)
    assert made.steps_per_epoch == 7
    dropped = [frozenset(range(500)) - set(made.rows(epoch, np.arange(7 * 64)).tolist()) for epoch in range(4)]
    assert {len(clips) for clips in dropped} == {500 - 7 * 64}
    assert len(set(dropped)) == 4
    first, second = (made.rows(epoch, np.arange(7 * 64)) for epoch in range(2))
    assert (first == second).mean() < 0.02  # 1/500 expected, or 1/20 within a window that happens to lie alike


@QUICK
@given(
    clips=st.integers(48, 1500),
    mode=st.sampled_from(["global", "window", "mixture", "both"]),
    epoch=st.integers(0, 9),
    data=st.data(),
)
def test_any_position_is_computed_directly_and_ranks_share_a_step(
    clips: int, mode: str, epoch: int, data: st.DataObject
) -> None:
    """What stands at a position does not depend on the rank, on what came before it, or on what else is asked."""
    codes = np.arange(clips) * 2 // clips
    settings_ = {"shuffle": "window" if mode in ("window", "both") else "global"}
    if mode in ("mixture", "both"):
        make = lambda: mixed(codes, {"ssv2": 2.0}, 24, lanes=12, **settings_)  # noqa: E731
    else:
        make = lambda: Order(recipe(24, lanes=12, **settings_), clips)  # noqa: E731
    straight = make()
    step = data.draw(st.integers(0, straight.steps_per_epoch - 1))
    expected = straight.rows(epoch, np.arange(step * 24, (step + 1) * 24))
    for world_size in (1, 2, 3, 4):
        resumed, served = make(), {}
        for rank in range(world_size):
            positions = resumed.rank_positions(step, rank, world_size)
            served.update(zip(positions.tolist(), resumed.rows(epoch, positions).tolist(), strict=True))
        assert sorted(served) == list(range(step * 24, (step + 1) * 24))
        assert [served[position] for position in sorted(served)] == expected.tolist()


@QUICK
@given(
    kinds=st.lists(st.integers(-1, 2), min_size=60, max_size=400).filter(lambda kinds: {0, 1} <= set(kinds)),
    shuffle=st.sampled_from(["global", "window"]),
    mixture=st.booleans(),
    epoch=st.integers(0, 9),
)
def test_a_split_is_as_if_the_dataset_had_no_other_clips(kinds: list[int], shuffle: str, mixture: bool, epoch: int) -> None:
    codes = np.array(kinds, np.int16)  # sources; -1: of another split
    rows = np.flatnonzero(codes >= 0)
    asked = recipe(1, shuffle=shuffle, lanes=2, window=9, mixture={"ssv2": 2.0} if mixture else {})
    assume(not mixture or shuffle == "global")  # lanes have to share sources evenly
    if not mixture:
        codes = np.where(codes < 0, codes, 0)
    within = Order(asked, len(rows), SOURCES, codes)
    alone = Order(asked, len(rows), SOURCES, codes[rows])
    positions = np.arange(within.num_positions)
    assert within.num_positions == alone.num_positions
    assert np.array_equal(within.rows(epoch, positions), rows[alone.rows(epoch, positions)])
    substitutes = (made.substitutes(epoch, positions, np.ones_like(positions)) for made in (within, alone))
    assert np.array_equal(next(substitutes), rows[next(substitutes)])
    if not mixture:  # one run of rows is the arithmetic itself
        assert np.array_equal(alone.rows(epoch, positions), Order(asked, len(rows)).rows(epoch, positions))


def test_impossible_shares_name_the_possible_ones() -> None:
    with pytest.raises(
        ValueError, match="12 clips a step cannot be shared by 5 ranks; possible world sizes: 1, 2, 3, 4, 6, 12"
    ):
        Order(recipe(12), 100).rank_positions(0, 0, 5)
    with pytest.raises(
        ValueError, match=r"12 clips a step of 4 lanes cannot be shared by 3 ranks; possible world sizes: 1, 2, 4$"
    ):
        Order(recipe(12, shuffle="window", lanes=4), 100).rank_positions(0, 0, 3)
    with pytest.raises(ValueError, match="at most 40"):
        Order(recipe(64, seed=1), 40)
    with pytest.raises(ValueError, match="20 lanes are more than the 10 clips"):
        Order(recipe(1, shuffle="window", lanes=20), 10)


# -------------------------------------------------------------------------------------------------------- windows


def test_lanes_are_divisors_of_768_of_at_least_16_clips() -> None:
    lanes = {clips: Order(recipe(1, shuffle="window"), clips).lanes for clips in (5, 31, 32, 100, 1000, 12_287, 12_288, 10**6)}
    assert lanes == {5: 1, 31: 1, 32: 2, 100: 6, 1000: 48, 12_287: 384, 12_288: 768, 10**6: 768}


@QUICK
@given(clips=st.integers(1, 4000), lanes=st.integers(1, 50), window=st.integers(1, 100), epoch=st.integers(0, 50))
def test_lanes_are_equal_and_disjoint_runs(clips: int, lanes: int, window: int, epoch: int) -> None:
    assume(lanes <= clips)
    made = Order(recipe(1, shuffle="window", lanes=lanes, window=window), clips)
    rows = all_rows(made, epoch).reshape(-1, lanes).T
    owner = np.full(clips, -1)
    for lane, own in enumerate(rows):
        assert (owner[own] == -1).all()
        owner[own] = lane
        assert own.max() - own.min() < -(-clips // lanes)  # a run of ⌊N / L⌋ clips, or of one more
    again = all_rows(made, epoch + 1).reshape(-1, lanes).T
    for lane, own in enumerate(again):  # the same run in every epoch: a cache beside the rank stays useful
        assert set(owner[own]) <= {lane, -1}


@settings(QUICK, max_examples=20)
@given(clips=st.integers(64, 800), lanes=st.integers(1, 12), window=st.integers(2, 200), epoch=st.integers(0, 20))
def test_a_window_is_one_run_of_rows_read_once(clips: int, lanes: int, window: int, epoch: int) -> None:
    made = Order(recipe(1, shuffle="window", lanes=lanes, window=window), clips)
    seen: list[int] = []
    for position in range(made.num_positions):
        positions = made.window_positions(epoch, position)
        assert position in positions
        if position > positions[0]:
            continue
        assert len(positions) <= window
        seen += positions.tolist()
        rows = np.sort(made.rows(epoch, positions))
        # one run, two around the end of the lane; the clip that the epoch drops may be missing inside
        assert np.count_nonzero(np.diff(rows) > 1) <= 2
    assert sorted(seen) == list(range(made.num_positions))


def test_small_steps_span_the_whole_dataset() -> None:
    made = Order(recipe(64, shuffle="window"), 100_000)
    for step in range(0, made.steps_per_epoch, 7):
        rows = made.rows(0, made.rank_positions(step, 0, 1))
        assert np.bincount(rows * 8 // 100_000, minlength=8).min() >= 6  # of 8


def test_the_lanes_of_a_rank_change_windows_one_after_the_other() -> None:
    made = Order(recipe(1536, shuffle="window", window=64), 100_000)
    begins = []
    for step in range(1, 40):
        positions = made.rank_positions(step, 5, 64)
        begins.append(sum(made.window_positions(0, int(p))[0] == p for p in positions))
    assert max(begins) <= 3 and sum(begins) >= 12  # 12 lanes, 24 clips a step


def test_windows_shuffle_and_epochs_differ() -> None:
    made = Order(recipe(1, shuffle="window", lanes=1, window=50), 1000)
    rows = all_rows(made, 0)
    steps = np.abs(np.diff(rows))
    assert 10 < np.median(steps) < 25  # a shuffle of 50: a third of them
    assert (steps == 1).mean() < 0.1
    assert (rows == all_rows(made, 1)).mean() < 0.02
    assert (rows == all_rows(Order(recipe(1, shuffle="window", lanes=1, window=50, seed=1), 1000), 0)).mean() < 0.02


def goes_back(shards: list[str], offsets: list[int]) -> int | None:
    return order.first_that_goes_back(pa.chunked_array([shards]), pa.chunked_array([offsets]))


def test_rows_that_do_not_follow_their_shards_are_found() -> None:
    assert goes_back(["a", "a", "c", "b", "b"], [1, 5, 3, 0, 9]) is None
    assert goes_back(["a", "a", "b", "a", "a"], [1, 5, 3, 7, 9]) == 3
    assert goes_back(["a", "a", "b"], [5, 1, 3]) == 1


def test_they_are_refused_where_the_version_has_them(tmp_path: Path) -> None:
    """And looked for once, however many processes ask."""
    shards = ["shards/a.tar", "shards/a.tar", "shards/b.tar", "shards/a.tar"]
    for version, number in enumerate((3, 4), start=1):
        write_rows(tmp_path, [row(place, shard=shards[place]) for place in range(number)])
        opened = Manifest(tmp_path, version)
        assert len(opened) == number
    with pytest.raises(ValueError, match=r"row 3 goes back in shards/a.tar; use shuffle 'global'"):
        order.check_reading_order(opened)
    order.check_reading_order(Manifest(tmp_path, 1))


# ------------------------------------------------------------------------------------------------------- mixtures


@QUICK
@given(
    counts=st.lists(st.integers(1, 60), min_size=3, max_size=3),
    weights=st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.7, 3.0]), min_size=3, max_size=3),
    epochs=st.integers(1, 12),
    interleaved=st.booleans(),
)
def test_a_mixture_takes_each_source_by_its_weight(
    counts: list[int], weights: list[float], epochs: int, interleaved: bool
) -> None:
    codes = np.repeat([0, 1, 2], counts)
    if interleaved:
        codes = codes[np.argsort(np.arange(len(codes)) * 7919 % len(codes), kind="stable")]
    assume(all(int(n * w + 0.5) for n, w in zip(counts, weights, strict=True)))
    made = mixed(codes, dict(zip(SOURCES, weights, strict=True)))
    taken: Counter[int] = Counter()
    for epoch in range(epochs):
        rows = all_rows(made, epoch)
        taken.update(rows.tolist())
        of_source = np.bincount(codes[rows], minlength=3)
        for name, n, w, got in zip(SOURCES, counts, weights, of_source.tolist(), strict=True):
            assert got == made.shares[name] == int(n * w + 0.5)
    for code, (name, n) in enumerate(zip(SOURCES, counts, strict=True)):
        times = [taken[int(row)] for row in np.flatnonzero(codes == code)]
        passes, rest = divmod(epochs * made.shares[name], n)  # whole passes without repetition, and a part of the next
        assert Counter(times) == Counter({passes: n - rest, passes + 1: rest} if rest else {passes: n})


def test_weights_are_relative_to_the_natural_proportions() -> None:
    codes = np.repeat([0, 1, 2], [700, 200, 100])
    assert mixed(codes, {"kinetics": 1.0}).shares == {"kinetics": 700, "ssv2": 200, "ava": 100}
    half = mixed(codes, {"ssv2": 0.5, "ava": 3, "kinetics": 0})
    assert half.shares == {"ssv2": 100, "ava": 300}
    two = np.concatenate([all_rows(half, epoch) for epoch in range(2)])
    times = np.bincount(two, minlength=1000)
    assert (times[:700] == 0).all() and (times[700:900] == 1).all() and (times[900:] == 6).all()
    assert (all_rows(half, 0)[:50] >= 900).mean() == pytest.approx(0.75, abs=0.2)  # mixed, not one after the other
    substitutes = half.substitutes(0, np.arange(4000), np.ones(4000, np.int64))
    assert substitutes.min() >= 700
    assert (substitutes >= 900).mean() == pytest.approx(0.75, abs=0.03)


@QUICK
@given(
    counts=st.lists(st.integers(300, 900), min_size=3, max_size=3),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=3, max_size=3),
    first=st.integers(0, 5),
)
def test_a_mixture_with_windows_gives_each_source_lanes(counts: list[int], weights: list[float], first: int) -> None:
    codes = np.repeat([0, 1, 2], counts)
    made = mixed(codes, dict(zip(SOURCES, weights, strict=True)), shuffle="window", lanes=192, window=16)
    rows = np.concatenate([all_rows(made, first + epoch).reshape(-1, 192) for epoch in range(5)])
    for code, (name, n, w) in enumerate(zip(SOURCES, counts, weights, strict=True)):
        share = n * w / sum(n * w for n, w in zip(counts, weights, strict=True))
        assert made.shares[name] / made.num_positions == pytest.approx(share, rel=0.1)
        assert (codes[rows] == code).sum() == 5 * made.shares[name]
    assert (codes[rows] == codes[rows][:1]).all()  # a lane belongs to one source
    for lane in rows.T:
        assert len(np.unique(lane)) <= lane.max() - lane.min() + 1 <= max(counts)
    # from the start of the run on, each clip of a lane is taken before one is taken again
    start = np.concatenate([all_rows(made, epoch).reshape(-1, 192) for epoch in range(5)])
    for lane in start.T:
        size = len(np.unique(lane))
        for begin in range(0, len(lane), size):
            part = lane[begin : begin + size]
            assert len(np.unique(part)) == len(part)


def test_impossible_mixtures_are_refused_by_name() -> None:
    codes = np.repeat([0, 1, 2], [700, 200, 10])
    for weights, words in (
        ({"webvid": 1.0}, r"no source 'webvid'; it has ava \(10 clips\), kinetics \(700 clips\), ssv2 \(200 clips\)"),
        ({"ava": 0.01}, "weight 0.01 gives source 'ava' no clip of its 10"),
        (dict.fromkeys(SOURCES, 0.0), "every source has weight 0"),
    ):
        with pytest.raises(ValueError, match=words):
            mixed(codes, weights)
    with pytest.raises(ValueError, match=r"'ava' \(10 clips\) should have 0.13 of 12; give more lanes"):
        mixed(codes, {"ava": 1.0}, shuffle="window", lanes=12)
    with pytest.raises(ValueError, match=r"'ava' \(10 clips\) should have 50.53 of 96; give fewer lanes"):
        mixed(codes, {"ava": 100.0}, shuffle="window", lanes=96)
