import pytest
import torch

from train.detection.multi_label import action_scores, box_loss


def test_every_box_weighs_the_same_and_classes_are_averaged() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, -100.0], [0.0, 100.0]])
    labels = torch.tensor([[True, False], [True, False], [False, False]])
    one = torch.log(torch.tensor(2.0))
    assert box_loss(logits[:1], labels[:1]).item() == pytest.approx(one.item())
    assert box_loss(logits[1:2], labels[1:2]).item() == pytest.approx(0, abs=1e-12)
    assert box_loss(logits, labels).item() == pytest.approx(one.item() + 0 + (one.item() + 100) / 2)
    assert box_loss(logits, labels.to(torch.uint8)) == box_loss(logits, labels)


def test_without_boxes_it_is_nothing_with_a_gradient() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = box_loss(logits, torch.zeros(0, 5))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.shape == (0, 5)


def test_scores_are_of_the_action_and_of_the_person() -> None:
    found = action_scores(torch.tensor([[0.0, 50.0], [0.0, -50.0]]), torch.tensor([0.8, 1.0]))
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.8], [0.5, 0.0]]))
