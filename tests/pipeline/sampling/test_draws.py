import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline import keyed
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.draws import Draws, check_pairs, in_pairs
from pipeline.sampling.mixing import beta
from pipeline.sampling.randaugment import OPERATIONS, RandAugment, arguments, plans

RECIPE = SamplingRecipe(views_per_step=48, views_per_clip=2, seed=7)
HOW = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
STEP = np.arange(48, 72)  # the third step's positions


def passes_of(ranks: int, passes: int) -> list[Draws]:
    return [Draws(RECIPE, 3, part) for rank in range(ranks) for part in in_pairs(STEP[rank::ranks]).reshape(passes, -1)]


@pytest.mark.parametrize(("ranks", "passes"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 3), (12, 1)])
def test_the_same_noise_for_any_number_of_ranks_and_passes(ranks: int, passes: int) -> None:
    check_pairs(24, ranks, passes)
    whole, rates = Draws(RECIPE, 3, STEP), [0.0, 0.1, 0.5]
    keep, features, partners = whole.keep(rates), whole.keep_features(0.5, 8), whole.partners()
    operations = whole.randaugment(HOW)
    flips, boxes, mixing = whole.flips(0.5), whole.erasing(0.5), whole.mixing(0.8, 1.0, 0.5)
    assert keep.shape == (3, 48, 2) and keep.dtype == bool and features.shape == (48, 8)
    seen = []
    for part in passes_of(ranks, passes):
        views = ((part.positions - 48)[:, None] * 2 + np.arange(2)).reshape(-1)
        assert np.array_equal(part.keep(rates), keep[:, views])
        assert np.array_equal(part.keep_features(0.5, 8), features[views])
        assert np.array_equal(views[part.partners()], partners[views])
        assert np.array_equal(part.randaugment(HOW), operations[views])
        assert np.array_equal(part.flips(0.5), flips[views]) and np.array_equal(part.erasing(0.5), boxes[views])
        of_part = part.mixing(0.8, 1.0, 0.5)
        assert np.array_equal(views[of_part.partners], partners[views])
        for name in ("boxes", "inside", "share"):
            assert np.array_equal(getattr(of_part, name), getattr(mixing, name)[views])
        seen += views.tolist()
    assert sorted(seen) == list(range(48))


def test_partners_are_half_a_step_away_view_by_view() -> None:
    assert Draws(RECIPE, 3, STEP).partners().tolist() == [*range(24, 48), *range(24)]
    shuffled = Draws(RECIPE, 3, np.array([71, 50, 59, 62]))
    assert shuffled.partners().tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    with pytest.raises(AssertionError, match="whole pairs"):
        Draws(RECIPE, 3, STEP[:12]).partners()


def test_partners_share_a_draw_and_others_do_not() -> None:
    mixing = Draws(RECIPE, 3, STEP).mixing(0.8, 1.0, 0.5)
    assert np.array_equal(mixing.share, mixing.share[mixing.partners])
    assert np.array_equal(mixing.boxes, mixing.boxes[mixing.partners])
    assert len(np.unique(mixing.share)) == 24
    whole = (mixing.boxes == [0, 0, 224, 224]).all(1) & (mixing.inside > 0)
    assert 0 < whole.sum() < 48 and np.array_equal(mixing.share[whole], mixing.inside[whole])
    area = mixing.boxes[:, 2] * mixing.boxes[:, 3] / 224**2
    assert np.allclose(mixing.share, 1 - (1 - mixing.inside) * area)
    assert not Draws(RECIPE, 3, STEP).mixing(0.0, 1.0, 0.0).inside.any()  # one of the two alone is always taken
    assert (Draws(RECIPE, 3, STEP).mixing(0.8, 0.0, 1.0).boxes == [0, 0, 224, 224]).all()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 0.8, 2.0])
def test_shares_have_the_moments_of_their_distribution(alpha: float) -> None:
    drawn = beta(keyed.mix(3, np.arange(40_000)), alpha)
    assert drawn.min() >= 0 and drawn.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    kurtosis = 3 - 6 / (2 * alpha + 3)
    assert drawn.mean() == pytest.approx(0.5, abs=5 * (variance / 40_000) ** 0.5)
    assert drawn.var() == pytest.approx(variance, rel=5 * ((kurtosis - 1) / 40_000) ** 0.5)
    assert (((drawn - 0.5) ** 4).mean() / drawn.var() ** 2) == pytest.approx(kurtosis, rel=0.03)


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
    assert np.packbits(draws.flips(0.5)).tolist() == [92]
    assert draws.erasing(0.5)[:3].tolist() == [[178, 58, 0, 0], [119, 74, 82, 145], [6, 13, 0, 0]]
    mixing = Draws(RECIPE, 3, STEP[[0, 12]]).mixing(0.8, 1.0, 0.5)
    assert (mixing.boxes[:2].tolist(), mixing.share[:2].tolist()) == (
        [[155, 92, 26, 26], [0, 0, 224, 224]],
        [0.9865274234693877, 0.806899669],
    )
    assert draws.keys(keyed.MIXUP)[:2].tolist() == [12641090430224054203, 3272910270900308896]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *(
            (text, "is not known")
            for text in ("m7-n4-inc1", "rand-m7-n4", "rand-m7-n4-inc0", "rand-n4-inc1", "rand-m7-n4-inc1-w0")
        ),
        *(
            (text, "is not known")
            for text in ("rand-m7-n4-m7-inc1", "rand-m7.5-n4-inc1", "rand-m7-n4-mstd-inc1", "rand-m7-n4-p0.5-inc1")
        ),
        *(
            (text, "out of bounds")
            for text in ("rand-m11-n4-inc1", "rand-m7-n0-inc1", "rand-m7-n17-inc1", "rand-m7-n4-mstd101-inc1")
        ),
    ],
)
def test_only_one_kind_of_randaugment_is_known(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"RandAugment '{text}' is.* {reason.split()[-1]}; allowed is .*rand-mM-nN-mstdS-inc1"):
        RandAugment.parse(text)


def test_golden_plans() -> None:
    assert (HOW, RandAugment.parse("rand-inc1-n2-m9")) == (RandAugment(7, 4, 0.5), RandAugment(9, 2, 0))
    found = plans(keyed.mix(7, np.arange(2000)), HOW)
    assert found[1:4].tolist() == [
        [[-1, 0], [-1, 0], [4, 2], [2, 0]],
        [[-1, 0], [-1, 0], [12, -0.23691126472499996], [5, 77]],
        [[-1, 0], [13, 0.30248640621], [-1, 0], [-1, 0]],
    ]
    assert np.abs((found[..., 0] >= 0).mean(0) - 0.5).max() < 0.06
    applied = {name: found[found[..., 0] == index, 1] for index, name in enumerate(OPERATIONS)}
    assert not applied["Invert"].any() and not found[found[..., 0] < 0, 1].any()
    assert [a.tolist() for a in arguments("PosterizeIncreasing", np.array([0, 5, 10]))] == [[4, 2, 0]]


def test_no_torch_is_imported() -> None:
    code = "import sys; from pipeline.sampling.draws import Draws; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
