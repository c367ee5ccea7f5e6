"""Actions as segments: suppression against a plain loop, losses, windows, and there and back between steps and seconds."""

import math

import pytest
import torch

from model.segment_losses import distance_iou_loss, focal_loss, running_mean, segment_losses
from model.segment_nms import Suppression, suppressed
from model.segments import assign, decode, inside_window, points_of, to_seconds, to_steps


def plain(segments: torch.Tensor, scores: torch.Tensor, how: Suppression) -> list[tuple[int, float]]:
    """Places and scores that are kept of one class, one after the other."""
    left = dict(enumerate(scores.tolist()))
    if how.method == "hard":
        left = {place: score for place, score in left.items() if score > how.least_score}
    kept: list[tuple[int, float]] = []
    while left and len(kept) < how.most:
        best = max(left, key=lambda place: left[place])
        kept.append((best, left.pop(best)))
        for place in list(left):
            (a, b), (c, d) = segments[best].tolist(), segments[place].tolist()
            common = max(0.0, min(b, d) - max(a, c))
            iou = common / (b - a + d - c + 2e-6 - common)
            if how.method == "soft":
                left[place] *= math.exp(-(iou**2) / how.sigma)
            elif iou >= how.overlap:
                left[place] *= 1 - iou if how.method == "linear" else 0
            if left[place] < how.least_score or (how.method == "hard" and left[place] == 0):
                del left[place]
    return kept


@pytest.mark.parametrize("method", ["soft", "linear", "hard"])
@pytest.mark.parametrize("per_class", [True, False])
def test_suppression_is_that_of_a_plain_loop(method: str, per_class: bool) -> None:
    torch.manual_seed(1)
    begin = torch.rand(120) * 50
    segments = torch.stack([begin, begin + 1 + torch.rand(120) * 10], 1)
    scores, labels = torch.rand(120) ** 2, torch.randint(0, 4, (120,))
    how = Suppression(method=method, per_class=per_class, overlap=0.3, least_score=0.02, most=40, voting=0.0)
    wanted = []
    for label in range(4) if per_class else [None]:
        among = (labels == label).nonzero()[:, 0] if label is not None else torch.arange(120)
        wanted += [(int(among[place]), score) for place, score in plain(segments[among], scores[among], how)]
    wanted = sorted(wanted, key=lambda pair: -pair[1])[:40]
    found = suppressed(segments, scores, labels, how)
    assert found[1].tolist() == pytest.approx([score for _, score in wanted], rel=1e-5)
    assert torch.equal(found[0], segments[[place for place, _ in wanted]])
    assert torch.equal(found[2], labels[[place for place, _ in wanted]])


def test_suppression_of_nothing_and_of_one() -> None:
    none = torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for method in ("soft", "hard", "linear", "none"):
        assert [len(each) for each in suppressed(*none, Suppression(method=method))] == [0, 0, 0]
        one = torch.tensor([[1.0, 2.0]]), torch.tensor([0.9]), torch.tensor([3])
        assert [each.tolist() for each in suppressed(*one, Suppression(method=method))] == [[[1, 2]], [pytest.approx(0.9)], [3]]
    low = torch.tensor([[1.0, 2.0]]), torch.tensor([0.0001]), torch.tensor([3])
    assert len(suppressed(*low, Suppression(method="hard"))[1]) == 0
    with pytest.raises(ValueError, match="sigma 0 must be over 0"):
        Suppression(sigma=0)


def test_what_answers_for_an_action_decodes_to_it() -> None:
    """Assignment and decoding are each other's inverse, at every level."""
    points = points_of(128, [1, 2, 4, 8], [(0, 4), (4, 8), (8, 16), (16, 10_000)])
    segments, labels = torch.tensor([[10.3, 13.9], [40.0, 52.5], [60.0, 120.0]]), torch.tensor([2, 0, 1])
    classes, distances = assign(torch.cat(points), segments, labels, 3, 1.5)
    sizes = [len(level) for level in points]
    logits = torch.where(classes > 0, 5.0, -20.0).split(sizes)
    masks = [torch.ones(n, dtype=torch.bool) for n in sizes]
    found = decode(points, masks, logits, distances.split(sizes), least_score=0.1, most=50, least_steps=0.05)
    assert set(found[2].tolist()) == {0, 1, 2}
    for segment, label in zip(*found[::2], strict=True):
        assert torch.allclose(segment, segments[labels == label][0], atol=1e-4)


def test_seconds_and_steps() -> None:
    seconds = torch.tensor([[0.5, 2.25], [3.0, 9.0]])
    steps = to_steps(seconds, 4, 16, 30.0)
    assert steps[0, 0] == pytest.approx(0.5 * 30 / 4 - 2)
    assert torch.allclose(to_seconds(steps, 4, 16, 30.0, 8.0), seconds.clamp(max=8.0), atol=1e-5)


def test_an_action_that_is_hardly_in_a_window_is_none() -> None:
    segments, labels = torch.tensor([[0.0, 10.0], [8.0, 30.0]]), torch.tensor([0, 1])
    found, left = inside_window(segments, labels, 6, 10, 0.5, 0.0)
    assert left.tolist() == [] and found.shape == (0, 2)
    found, left = inside_window(segments, labels, 6, 14, 0.5, 0.0)
    assert left.tolist() == [1] and found.tolist() == [[2.0, 14.0]]


def test_losses_are_float32_and_finite_without_an_action() -> None:
    mask, logits = torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 5, 3).bfloat16().requires_grad_()
    offsets = torch.rand(2, 5, 2).bfloat16().requires_grad_()
    losses = segment_losses(mask, logits, offsets, torch.zeros(2, 5, 3), torch.zeros(2, 5, 2), normaliser=10.0, weight=-1.0)
    losses.whole.backward()
    assert losses.whole.dtype == torch.float32 and float(losses.distances.detach()) == 0
    assert logits.grad is not None and logits.grad.isfinite().all() and not offsets.grad.any()  # type: ignore[union-attr]
    right = torch.tensor([[3.0, 5.0]])
    assert distance_iou_loss(right, right).tolist() == [0.0] and distance_iou_loss(right * 0, right).isfinite().all()
    assert focal_loss(torch.tensor([80.0, -80.0]), torch.tensor([1.0, 0.0])) < 1e-6
    assert running_mean(100.0, 0) == pytest.approx(90.1)
