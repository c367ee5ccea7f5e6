import numpy as np
import pytest

from pipeline import keyed


def test_golden_values() -> None:
    """A change here changes every batch of every run: it would be a new format of the sampling, not a fix."""
    assert keyed.mix(1, 2, 3).item() == 17824878756907967
    assert keyed.splitmix64(np.array([1, 2], np.uint64)).tolist() == [6238072747940578789, 15839785061582574730]
    assert keyed.permute(np.arange(10), 10, keyed.mix(0, 1, 2)).tolist() == [3, 2, 0, 6, 8, 1, 4, 5, 7, 9]
    assert keyed.below(keyed.mix(7, np.arange(5)), 100).tolist() == [20, 95, 17, 44, 27]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 87, 1000, 65537])
def test_permutation_is_bijective(n: int) -> None:
    assert np.array_equal(np.sort(keyed.permute(np.arange(n), n, keyed.mix(3, n))), np.arange(n))


def test_permutation_of_a_part_is_a_part_of_the_permutation() -> None:
    whole = keyed.permute(np.arange(1000), 1000, keyed.mix(5))
    assert np.array_equal(keyed.permute(np.array([3, 700, 12]), 1000, keyed.mix(5)), whole[[3, 700, 12]])


def test_permutations_look_random() -> None:
    n, keys = 50, 4000
    places = np.stack([keyed.permute(np.arange(n), n, keyed.mix(11, k)) for k in range(keys)])
    counts = np.stack([np.bincount(places[:, i], minlength=n) for i in range(n)])  # where index i went
    z = (counts - keys / n) / np.sqrt(keys / n * (1 - 1 / n))
    assert np.abs(z).max() < 5
    assert 0.9 < z.std() < 1.1
    neighbours = np.abs(np.diff(places, axis=1)) == 1  # consecutive positions do not name neighbouring clips
    assert abs(neighbours.mean() - 2 / n) < 0.003


def test_below_is_uniform_and_parts_are_independent() -> None:
    draws = keyed.below(keyed.mix(1, np.arange(60000)), 7)
    assert draws.min() == 0 and draws.max() == 6
    assert np.abs(np.bincount(draws) / 60000 - 1 / 7).max() < 0.006
    other = keyed.below(keyed.mix(2, np.arange(60000)), 7)
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.015
    assert keyed.mix(1, 2) != keyed.mix(2, 1)
