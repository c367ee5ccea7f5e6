import math

import pytest
import torch
from torch.nn.functional import interpolate

from model import action_detector
from model.action_detector import ActionDetector, Regions, pooled
from model.config import ModelConfig
from model.initialization import initialise
from model.layers import interpolated

CONFIG = ModelConfig(
    input_size=32, num_frames=4, patch_size=8, encoder_dim=24, encoder_depth=3, encoder_heads=3, decoder_dim=12, decoder_heads=2
)


def detector(drop_path: float = 0.0) -> ActionDetector:
    model = ActionDetector(CONFIG, 5, drop_path, head_scale=1.0)
    initialise(model, 0, head_scale=1.0)
    return model


def views(B: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (B, 4, height, width, 3), dtype=torch.uint8)


def boxes(*of_views: list[list[float]]) -> Regions:
    corners = torch.tensor([box for some in of_views for box in some]).view(-1, 4)
    return Regions(corners, torch.repeat_interleave(torch.arange(len(of_views)), torch.tensor([len(s) for s in of_views])))


def test_a_map_is_the_mean_over_time_of_normed_tokens() -> None:
    model, seen = detector().double(), views()
    tokens = model.tokens(seen)
    assert tokens.shape == (2, 2 * 16, 24)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 32, dtype=torch.double), rtol=0, atol=1e-12)  # normed
    want = (tokens[:, :16] + tokens[:, 16:]) / 2
    torch.testing.assert_close(model.feature_map(seen), want.view(2, 4, 4, 24).permute(0, 3, 1, 2))


def test_a_box_is_the_largest_value_of_its_bins() -> None:
    """Of a map with one bright cell, whose middle is at (16, 8) in this convention: the first of 7 bins is sampled a 14th of a
    cell to the right and down, if the box begins there."""
    cells = torch.zeros(1, 2, 4, 6)
    cells[0, 0, 1, 2], cells[0, 1] = 1.0, 3.0
    found = pooled(cells, boxes([[16.0, 8, 24, 16], [32, 16, 47, 31], [0, 0, 47, 31]]), 8)
    assert found.shape == (3, 2) and found.dtype == torch.float32
    torch.testing.assert_close(found[:, 1], torch.full((3,), 3.0))
    assert found[0, 0].item() == pytest.approx((13 / 14) ** 2) and found[1, 0] == 0 and 0.5 < found[2, 0] <= 1


def test_boxes_belong_to_their_views_and_come_in_any_number() -> None:
    model, seen = detector(), views(3)
    one, two = [1.0, 2, 20, 30], [10.0, 4, 31, 28]
    both = model(seen, boxes([one], [], [two, one]))
    assert both.shape == (3, 5)
    torch.testing.assert_close(model(seen[2:], boxes([two, one])), both[1:])
    torch.testing.assert_close(model(seen[:1], boxes([one])), both[:1])
    assert not torch.allclose(both[0], both[2], atol=1e-3)


def test_without_gradients_boxes_are_pooled_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory is bounded; the logits are the same, and no box gets another view's."""
    model, seen, many = detector(), views(3), [[float(k % 9), 2.0, 20 + k % 7, 30.0] for k in range(11)]
    some = boxes(many, [], many[:6])
    whole, sizes = model(seen, some).detach(), list[int]()

    def counted(x_BDhw: torch.Tensor, run: Regions, patch_size: int) -> torch.Tensor:
        sizes.append(len(run))
        return pooled(x_BDhw, run, patch_size)

    monkeypatch.setattr(action_detector, "AT_ONCE", 4)
    monkeypatch.setattr(action_detector, "pooled", counted)
    with torch.no_grad():
        torch.testing.assert_close(model(seen, some), whole)
        assert sizes == [4, 4, 4, 4, 1] and model(seen, boxes([], [], [])).shape == (0, 5)
    sizes.clear()
    model(seen, some)
    assert sizes == [17]


def test_no_box_at_all_still_has_a_gradient() -> None:
    model = detector()
    logits = model(views(), boxes([], []))
    assert logits.shape == (0, 5)
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_boxes_are_not_rounded_to_the_type_of_the_map(dtype: torch.dtype) -> None:
    """At 257 pixels bf16 has every second number."""
    cells, wide = torch.arange(64.0).expand(1, 1, 4, 64), boxes([[257.0, 3, 273, 9]])
    assert pooled(cells.to(dtype), wide, 8).item() == pytest.approx(257 / 8 + 2 * 6.5 / 7, abs=1e-3)
    assert pooled(cells.to(dtype), wide, 8).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_views_of_any_size_have_interpolated_positions() -> None:
    model = detector()
    assert model(views(1, 32, 56), boxes([[0.0, 0, 55, 31]])).shape == (1, 5)
    torch.testing.assert_close(model.positions.at((2, 4, 7)), interpolated(model.positions.table, (2, 4, 4), (2, 4, 7)))
    frames = model.positions.table.view(2, 4, 4, 24).permute(0, 3, 1, 2).double()
    again = interpolate(frames, (4, 7), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(-1, 24)
    torch.testing.assert_close(model.positions.at((2, 4, 7)), again.float())
    with pytest.raises(ValueError, match=r"\(1, 4, 32, 60, 3\) must be \(B, T, H, W, 3\), .*multiples of the patch size 8"):
        model(views(1, 32, 60), boxes([[0.0, 0, 9, 9]]))


def test_stochastic_depth_is_the_trunks() -> None:
    model, seen, some = detector(0.5), views(), boxes([[0.0, 0, 20, 20]], [[3.0, 4, 30, 30]])
    assert model.drop_rates == [0, 0.25, 0.5]
    keep = torch.ones(3, 2, 2, dtype=torch.bool)
    keep[2, 1] = False
    kept, dropped = model(seen, some), model(seen, some, keep)
    assert not torch.allclose(kept, dropped)
    model.blocks[2].requires_grad_(False)
    assert math.isfinite(dropped.sum().item())


def test_initial_values_are_a_classifiers() -> None:
    """The head is scaled by the official thousandth."""
    model = ActionDetector(CONFIG, 5)
    assert model.initial_value("head.weight", (5, 24), 0).abs().max() < 2e-4
    assert model.initial_value("norm.weight", (24,), 0).eq(1).all()
    names = [name for name, _ in model.named_parameters()]
    assert {"patch_embed.proj.weight", "norm.weight", "head.bias"} < set(names) and not [n for n in names if "fc_norm" in n]
