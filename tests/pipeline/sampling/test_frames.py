import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import keyed
from pipeline.sampling import frames

QUICK = settings(derandomize=True, database=None, deadline=None, max_examples=100)
LENGTHS = st.integers(1, 400) | st.integers(400, 40_000)
STEPS = st.sampled_from([1.0, 2.0, 4.0, 8.0]) | st.floats(0.01, 600.0)


def window(start: int, num_frames: int, step: float) -> list[int]:
    return frames.window_frames(np.array([start]), np.array([num_frames]), 16, np.array([float(step)]))[0].tolist()


def drawn(temporal: str, num_frames: int, step: float = 4.0, draws: int = 300) -> np.ndarray:
    """Training frames (draws, T) of one clip."""
    n = np.full(draws, num_frames)
    return frames.training_frames(keyed.mix(1, np.arange(draws)), n, 16, np.full(draws, step), temporal)


def middle(temporal: str, num_frames: int, step: float = 4.0) -> list[int]:
    return frames.training_frames(None, np.array([num_frames]), 16, np.array([step]), temporal)[0].tolist()


# ------------------------------------------------------------------------------------------------- every kind


@QUICK
@given(
    num_frames=st.lists(LENGTHS, min_size=1, max_size=4),
    step=STEPS,
    clip_frames=st.sampled_from([2, 8, 16, 32]),
    temporal=st.sampled_from(frames.TEMPORAL),
    seed=st.integers(0, 99),
)
def test_no_frame_lies_outside_its_clip(num_frames: list[int], step: float, clip_frames: int, temporal: str, seed: int) -> None:
    lengths = np.array(num_frames)
    steps = np.full(len(lengths), step)
    keys = keyed.mix(seed, np.arange(len(lengths)))
    taken = [frames.training_frames(which, lengths, clip_frames, steps, temporal) for which in (keys, None)]
    for segments in (1, 2, 5):
        taken += list(np.stack([frames.segment_frames(n, clip_frames, step, segments) for n in num_frames], axis=1))
        taken += list(np.stack([frames.tsn_test_frames(n, clip_frames, segments) for n in num_frames], axis=1))
    for array in taken:
        assert array.shape == (len(lengths), clip_frames) and array.dtype == np.int64
        assert (array >= 0).all() and (array < lengths[:, None]).all()
        assert (np.diff(array, axis=1) >= 0).all()


@QUICK
@given(num_frames=st.integers(1, 300), temporal=st.sampled_from(frames.TEMPORAL))
def test_a_clip_that_is_long_enough_repeats_nothing(num_frames: int, temporal: str) -> None:
    repeats = frames.repeated(drawn(temporal, num_frames, draws=20))
    # 62: 0, 4 ... 60, and the official rule's frame more; around the middle up to three frames may lie beyond each end
    enough = {"stride": 62, "linspace": 64, "key_frame": 58, "key_frame_videomae": 56}.get(temporal, 16)
    assert (repeats == 0).all() if num_frames >= enough else (repeats > 0).all()


def test_repeats_are_counted_over_all_views() -> None:
    shared = np.array([[0, 4, 8, 8], [0, 0, 0, 0], [1, 2, 3, 4]])
    assert frames.repeated(shared).tolist() == [1, 3, 0]
    assert frames.repeated(np.stack([shared, shared[[0, 0, 0]]], axis=1)).tolist() == [2, 4, 1]


# ------------------------------------------------------------------------------- pre-training: an exact step


def test_windows_have_an_exact_stride_and_short_clips_stand_still() -> None:
    assert window(5, 100, 4) == list(range(5, 66, 4))
    assert window(0, 30, 4) == [0, 4, 8, 12, 16, 20, 24, *[28] * 9]
    assert window(0, 61, 4)[-3:] == [52, 56, 56]  # the official rule stops before the last frame
    assert window(0, 62, 4)[-2:] == [56, 60]
    assert window(0, 64, 4)[-1] == 60
    assert window(0, 1, 4) == [0] * 16
    assert frames.start_range(np.array([63, 64, 65, 100]), 16, np.full(4, 4.0)).tolist() == [0, 0, 1, 36]


def test_every_start_is_drawn() -> None:
    starts = drawn("stride", 70)[:, 0]
    assert sorted(set(starts.tolist())) == list(range(7))
    assert (np.diff(drawn("stride", 70), axis=1) == 4).all()
    assert middle("stride", 70) == list(range(3, 64, 4))


def test_seconds_follow_the_frame_rate() -> None:
    rates = np.array([30.0, 60.0, 15.0, 12.0, 29.97])
    step = 4 / 30 * rates
    taken = frames.window_frames(np.zeros(5, np.int64), np.full(5, 1000), 16, step)
    times = taken / rates[:, None]
    assert np.abs(times - np.arange(16) * 4 / 30).max() <= 0.5 / 12
    assert taken[0].tolist() == list(range(0, 61, 4))
    assert (np.diff(taken, axis=1) >= 1).all()


def test_rates() -> None:
    assert frames.parse_rate("manifest") is None
    assert frames.parse_rate("stride:4") == (4, 0.0)
    assert frames.parse_rate("seconds:0.25") == frames.parse_rate("fps:4") == (0, 0.25)
    for wrong in ("fps:0", "fps:x", "fps", "stride:0", "stride:1.5", "4", "", "seconds:nan", "fps:nan", "fps:inf"):
        with pytest.raises(ValueError, match=f"sampling '{wrong}' is not known; allowed are 'manifest'"):
            frames.parse_rate(wrong)


# --------------------------------------------------------------------------------- fine-tuning: official forms


def test_linspace_windows_are_the_official_ones() -> None:
    taken = drawn("linspace", 200)
    assert (taken[:, -1] - taken[:, 0] == 63).all()  # linspace over 64 frames, its end clipped
    assert np.diff(taken[0])[:4].tolist() == [4, 4, 4, 5]
    ends = taken[:, -1] + 1
    assert ends.min() == 64 and ends.max() == 199  # the end is drawn from [64, F)
    assert middle("linspace", 200) == frames.linspace_frames(200, 16, 4, (64 + 200) // 2).tolist()
    assert middle("linspace", 200)[0] == (64 + 200) // 2 - 64
    assert middle("linspace", 30) == drawn("linspace", 30)[0].tolist() == [0, 5, 10, 15, 20, 25, *[29] * 10]
    assert middle("linspace", 2) == [1] * 16


def test_tsn_takes_a_frame_of_each_segment() -> None:
    taken = drawn("tsn", 100)  # segments of 6
    assert ((taken // 6) == np.arange(16)).all()
    assert set((taken % 6).ravel().tolist()) == set(range(6))
    assert middle("tsn", 100) == [6 * i + 3 for i in range(16)]
    assert middle("tsn", 10) == [0] * 6 + list(range(10))  # padded at the front
    assert (drawn("tsn", 10) == middle("tsn", 10)).all()
    assert middle("tsn", 16) == list(range(16))

    taken = drawn("tsn_video", 100)  # never the last frame of a segment
    assert set((taken % 6).ravel().tolist()) == set(range(5))
    assert middle("tsn_video", 100) == [6 * i + 2 for i in range(16)]
    assert middle("tsn_video", 20) == list(range(16))
    assert (drawn("tsn_video", 20) == np.arange(16)).all()


def test_test_windows_span_the_clip() -> None:
    windows = frames.segment_frames(300, 16, 4, 5)
    assert windows.shape == (5, 16)
    assert (np.diff(windows, axis=1) == 4).all()
    assert windows[:, 0].tolist() == [0, 56, 116, 176, 236]  # int(k · 59 / 4) of every 4th frame
    assert frames.segment_frames(300, 16, 4, 1)[0, 0] == 29 * 4
    assert frames.segment_frames(30, 16, 4, 2).tolist() == [[0, 4, 8, 12, 16, 20, 24, *[28] * 9]] * 2
    half = frames.segment_frames(300, 16, 7.5, 2)
    assert set(np.diff(half, axis=1).ravel().tolist()) == {7, 8}


def test_sparse_test_views_interleave() -> None:
    views = frames.tsn_test_frames(64, 16, 2)
    assert views[0].tolist() == list(range(0, 64, 4))
    assert views[1].tolist() == list(range(2, 64, 4))
    every = sorted(views.ravel().tolist())
    assert every[::2] == views[0].tolist()  # officially: every second one of all, sorted
    odd = frames.tsn_test_frames(53, 16, 3)
    assert sorted(odd.ravel().tolist())[1::3] == odd[1].tolist()


# ------------------------------------------------------------------------------- detection: around a key frame


def around(key_frame: int, num_frames: int, step: float = 4.0, later: int = 0) -> list[int]:
    return frames.key_frame_window(np.array([key_frame]), np.array([num_frames]), 16, np.array([step]), later)[0].tolist()


def test_a_window_lies_around_its_key_frame() -> None:
    assert around(32, 64) == list(range(0, 61, 4)) and around(32, 64)[8] == 32
    assert around(32, 64, later=frames.AT_KEY_FRAMES["key_frame_videomae"]) == list(range(1, 62, 4))
    assert around(60, 27_000, step=2.0) == list(range(44, 75, 2))
    assert around(10, 100)[:7] == [0, 0, 0, 0, 0, 0, 2] and around(95, 100)[8:] == [95, *[99] * 7]
    assert around(0, 1) == [0] * 16


def test_nothing_is_drawn_around_a_key_frame() -> None:
    n = np.full(50, 64)
    taken = frames.training_frames(keyed.mix(3, np.arange(50)), n, 16, np.full(50, 4.0), "key_frame", np.full(50, 30))
    assert (taken == around(30, 64)).all()
