import numpy as np
import pytest

from dataset_builders.sources.choice import check_number, choose, ranks

NAMES = [f"{number}".encode() for number in range(10_000)]


def test_golden_ranks() -> None:
    """Part of what a dataset is: the same on every machine and in every version."""
    assert ranks([b"9000000001", b"latin\xe9"], 0).tolist() == [18272840692186441977, 14229369495756063889]
    assert ranks([b"9000000001"], 7).tolist() == [252681193200769456]


def test_a_choice_depends_on_seed_and_names_only() -> None:
    chosen = {NAMES[place] for place in choose(NAMES, 1000, 0)}
    assert len(chosen) == 1000
    assert {NAMES[::-1][place] for place in choose(NAMES[::-1], 1000, 0)} == chosen
    other = {NAMES[place] for place in choose(NAMES, 1000, 1)}
    assert 60 < len(chosen & other) < 140  # 100 expected, standard deviation 9


def test_every_name_has_the_same_chance() -> None:
    counts = np.zeros(100)
    for seed in range(400):
        counts[choose(NAMES[:100], 25, seed)] += 1
    assert counts.sum() == 400 * 25
    assert counts.min() > 60 and counts.max() < 140  # 100 expected, standard deviation 8.7


def test_growth_changes_a_choice_little() -> None:
    before = {NAMES[place] for place in choose(NAMES[:9000], 1000, 0)}
    after = {NAMES[place] for place in choose(NAMES, 1000, 0)}
    assert 860 < len(before & after) < 940  # 900 expected, standard deviation 9
    assert after - before <= set(NAMES[9000:])  # only new ones come in


def test_all_are_taken_if_there_are_not_more() -> None:
    assert choose(NAMES[:5], 5, 0).tolist() == choose(NAMES[:5], 9, 0).tolist() == [0, 1, 2, 3, 4]
    assert choose([], 9, 0).tolist() == []


def test_a_number_must_be_positive() -> None:
    check_number("webvid", None)
    with pytest.raises(ValueError, match="source webvid: number 0"):
        check_number("webvid", 0)
