"""Average precision: against a plain one, box by box, and what the public codes do not agree on."""

import math

import numpy as np
import pytest

from train.detection.mean_precision import STYLES, Rows, mean_precision, of_class, overlaps

WHOLE = (0.0, 0.0, 1.0, 1.0)


def rows(*given: tuple[int, tuple[float, ...], int, float]) -> Rows:
    """Of (image, corners, action, score)."""
    images, corners, actions, scores = zip(*given, strict=True) if given else ((), (), (), ())
    corners_R4 = np.array(corners, float).reshape(-1, 4)
    return Rows(np.array(images, np.int64), corners_R4, np.array(actions, np.int64), np.array(scores, float))


def scene(seed: int, truths: int = 60, found: int = 200, levels: int = 0) -> tuple[Rows, Rows]:
    """Boxes of 12 images and 3 classes, half of the detections near a truth; scores are of so many levels, or all differ."""
    r = np.random.default_rng(seed)
    low, sides = r.random((truths, 2)) * 0.6, 0.1 + 0.3 * r.random((truths, 2))
    corners = np.concatenate([low, low + sides], axis=1)
    truth = Rows(r.integers(0, 12, truths), corners, r.integers(1, 4, truths), np.ones(truths))
    near, half = truth.of(r.integers(0, truths, found)), r.random(found) < 0.5
    scores = r.integers(0, levels, found) / levels if levels else r.random(found)
    images = np.where(half, near.images, r.integers(0, 12, found))
    actions = np.where(half, near.actions, r.integers(1, 4, found))
    return truth, Rows(images, near.corners + 0.04 * r.standard_normal((found, 4)), actions, scores)


def plainly(truth: Rows, found: Rows, action: int) -> float:
    """One detection after the other, as in the public codes; scores must differ."""
    taken: set[int] = set()
    hits = list[bool]()
    for i in np.argsort(-found.scores):
        if found.actions[i] != action or (found.corners[i, :2] >= found.corners[i, 2:]).any():
            continue
        best, most = -1, -1.0
        for t in np.flatnonzero((truth.images == found.images[i]) & (truth.actions == action)):
            x0, y0 = np.maximum(truth.corners[t, :2], found.corners[i, :2])
            x1, y1 = np.minimum(truth.corners[t, 2:], found.corners[i, 2:])
            both = max(0.0, x1 - x0) * max(0.0, y1 - y0)
            areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (truth.corners[t], found.corners[i])]
            if (overlap := both / (sum(areas) - both)) > most:
                best, most = int(t), overlap
        hits.append(most >= 0.5 and best not in taken)
        taken |= {best} if hits[-1] else set()
    precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    return sum(max(precision[k:]) for k, hit in enumerate(hits) if hit) / int((truth.actions == action).sum())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_a_loop_over_boxes_finds(seed: int) -> None:
    truth, found = scene(seed)
    result = mean_precision(truth, found, [1, 2, 3], "slowfast")
    assert [result.classes[n] for n in (1, 2, 3)] == pytest.approx([plainly(truth, found, n) for n in (1, 2, 3)], abs=1e-12)
    assert result.mean == pytest.approx(np.mean([*result.classes.values()])) and 0.05 < result.mean < 0.95
    assert result.in_mean == 3 and sum(result.truths.values()) == 60 and result.style == "slowfast"


@pytest.mark.parametrize("style", STYLES)
def test_the_order_of_rows_means_nothing(style: str) -> None:
    """Not even among equal scores: of these every order of the original code gives as much, or more."""
    truth, found = scene(9, levels=4)
    first, r = mean_precision(truth, found, [1, 2, 3], style), np.random.default_rng(0)
    for _ in range(5):
        other = mean_precision(truth.of(r.permutation(60)), found.of(r.permutation(200)), [3, 1, 2], style)
        assert other == first
        shaken = Rows(found.images, found.corners, found.actions, found.scores + 1e-6 * r.random(200))
        assert mean_precision(truth, shaken, [1, 2, 3], style).mean >= first.mean - 1e-12


def test_one_truth_is_found_once_and_by_whom_overlaps_it_most() -> None:
    truth = rows((0, (0, 0, 10, 10), 1, 1), (0, (0, 0, 10, 12), 1, 1))
    best = (0, (0.0, 0, 10, 10), 1, 0.9)
    assert mean_precision(truth, rows(best, (0, (0, 0, 10, 12), 1, 0.5)), [1]).mean == 1
    twice = rows(best, (0, (0, 0, 10, 9.9), 1, 0.5))  # its own truth is taken, and the other one does not count for it
    assert mean_precision(truth, twice, [1]).mean == 0.5
    assert mean_precision(truth, rows((0, (0, 0, 10, 5.0), 1, 0.5)), [1]).mean == 0.5  # just half of the first


def test_what_the_styles_do_not_agree_on() -> None:
    truth = rows((0, WHOLE, 1, 1), (0, WHOLE, 2, 1), (1, WHOLE, 1, 1))
    elsewhere = rows((5, WHOLE, 1, 0.9), (0, WHOLE, 1, 0.8), (1, WHOLE, 1, 0.7))
    means = {style: mean_precision(truth, elsewhere, [1, 2, 3], style) for style in STYLES}
    assert {style: found.mean for style, found in means.items()} == {
        "activitynet": 0.5,  # class 2 was never found
        "slowfast": pytest.approx(1 / 3),  # and of class 1 one was seen where nobody is
        "mmaction2": 1,
    }
    assert {style: found.in_mean for style, found in means.items()} == {"activitynet": 2, "slowfast": 2, "mmaction2": 1}
    assert means["activitynet"].ignored["on images without truth"] == 1 and math.isnan(means["activitynet"].classes[3])
    excluded = {style: mean_precision(truth, elsewhere, [1], style, np.array([1])).mean for style in STYLES}
    assert excluded == {"activitynet": 1, "slowfast": 0.5, "mmaction2": 0.5}


def test_of_an_image_the_fifty_best_rows_count() -> None:
    """In ActivityNet's style; whatever their classes are."""
    truth = rows((0, WHOLE, 1, 1), (1, WHOLE, 1, 1))
    crowd = [(0, (0, 0, 0.1 + n / 1000, 0.1), 2, 0.5) for n in range(50)]
    found = rows(*crowd, (0, WHOLE, 1, 0.4), (1, WHOLE, 1, 0.3))
    assert mean_precision(truth, found, [1, 2]).mean == 0.5
    assert mean_precision(truth, found, [1, 2]).ignored["beyond the 50 best of an image"] == 1
    assert mean_precision(truth, found, [1, 2], "slowfast").mean == 1
    assert mean_precision(truth, found, [1]).mean == 1  # rows of other classes do not count
    better = rows(*crowd, (0, WHOLE, 1, 0.6), (1, WHOLE, 1, 0.3))
    assert mean_precision(truth, better, [1, 2]).mean == 1


def test_boxes_without_an_area_and_without_anything() -> None:
    truth = rows((0, WHOLE, 1, 1))
    flat = rows((0, (0.5, 0, 0.5, 1), 1, 0.9), (0, (0.9, 0, 0.5, 1), 1, 0.8), (0, WHOLE, 1, 0.7))
    found = mean_precision(truth, flat, [1])
    assert found.mean == 1 and found.ignored["without an area"] == 2
    assert mean_precision(truth, rows(), [1]).mean == 0
    assert math.isnan(mean_precision(rows(), flat, [1]).mean)
    assert of_class(truth, rows()) == 0
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [0]


def test_what_cannot_be_counted_is_refused() -> None:
    truth = rows((0, WHOLE, 1, 1))
    with pytest.raises(ValueError, match="--style coco must be one of activitynet, slowfast, mmaction2"):
        mean_precision(truth, truth, [1], "coco")
    with pytest.raises(ValueError, match="detections have boxes or scores that are not finite"):
        mean_precision(truth, rows((0, WHOLE, 1, math.nan)), [1])
