import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline import keyed
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.draws import Draws, check_pairs, in_pairs

RECIPE = SamplingRecipe(views_per_step=48, views_per_clip=2, seed=7)
STEP = np.arange(48, 72)  # the third step's positions


def passes_of(ranks: int, passes: int) -> list[Draws]:
    return [Draws(RECIPE, 3, part) for rank in range(ranks) for part in in_pairs(STEP[rank::ranks], passes)]


@pytest.mark.parametrize(("ranks", "passes"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 3), (12, 1)])
def test_the_same_noise_for_any_number_of_ranks_and_passes(ranks: int, passes: int) -> None:
    check_pairs(24, ranks, passes)
    whole, rates = Draws(RECIPE, 3, STEP), [0.0, 0.1, 0.5]
    keep, features, partners = whole.keep(rates), whole.keep_features(0.5, 8), whole.partners()
    assert keep.shape == (3, 48, 2) and keep.dtype == bool and features.shape == (48, 8)
    seen = []
    for part in passes_of(ranks, passes):
        views = ((part.positions - 48)[:, None] * 2 + np.arange(2)).reshape(-1)
        assert np.array_equal(part.keep(rates), keep[:, views])
        assert np.array_equal(part.keep_features(0.5, 8), features[views])
        assert np.array_equal(views[part.partners()], partners[views])
        seen += views.tolist()
    assert sorted(seen) == list(range(48))


def test_partners_are_half_a_step_away_view_by_view() -> None:
    assert Draws(RECIPE, 3, STEP).partners().tolist() == [*range(24, 48), *range(24)]
    shuffled = Draws(RECIPE, 3, np.array([71, 50, 59, 62]))
    assert shuffled.partners().tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    with pytest.raises(AssertionError, match="whole pairs"):
        Draws(RECIPE, 3, STEP[:12]).partners()


def test_rates_and_independence() -> None:
    draws = Draws(RECIPE, 0, np.arange(5000))
    keep = draws.keep([0.0, 0.2, 0.9])
    assert keep[0].all()
    assert np.abs(keep[1:].mean(1) - [[0.8], [0.1]]).max() < 0.015
    branches = keep[1:].swapaxes(1, 2).reshape(4, -1)  # two blocks' two branches
    assert np.abs(np.corrcoef(branches) - np.eye(4)).max() < 0.04
    pairs = keep[1, :, 0].reshape(-1, 2)  # the two views of a clip
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.05
    assert abs(draws.keep_features(0.3, 16).mean() - 0.7) < 0.01
    other = [Draws(RECIPE, 1, draws.positions).keys(keyed.DEPTH), draws.keys(keyed.MIXUP), draws.keys(keyed.DEPTH)]
    assert len(np.unique(np.concatenate(other))) == 30_000


def test_generators_are_the_views_own() -> None:
    draws = Draws(RECIPE, 0, np.arange(3))
    noise = [torch.rand(4, generator=generator) for generator in draws.generators(keyed.ERASING)]
    again = Draws(RECIPE, 0, np.array([1])).generators(keyed.ERASING, torch.device("cpu"))
    assert len(noise) == 6 and torch.equal(torch.rand(4, generator=again[0]), noise[2])
    assert len(torch.stack(noise).unique()) == 24


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((23, 1), "the 23 clips of a step must be an even number"),
        ((24, 8), "8 ranks cannot share the 12 pairs of a step equally; possible numbers of ranks: 1, 2, 3, 4, 6, 12$"),
        (
            (24, 2, 4),
            "4 forward passes cannot share the 6 pairs .* possible numbers of passes: 1, 2, 3, 6$",
        ),
    ],
)
def test_numbers_of_ranks_that_part_pairs_are_refused(numbers: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_pairs(*numbers)


def test_golden_draws() -> None:
    draws = Draws(RECIPE, 3, STEP[:4])
    assert np.packbits(draws.keep([0.1, 0.3, 0.5])).tolist() == [191, 254, 95, 239, 168, 122]
    assert np.packbits(draws.keep_features(0.5, 8)).tolist() == [127, 56, 224, 163, 121, 0, 145, 132]
    assert draws.keys(keyed.MIXUP)[:2].tolist() == [12641090430224054203, 3272910270900308896]


def test_no_torch_is_imported() -> None:
    code = "import sys; from pipeline.sampling.draws import Draws; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
