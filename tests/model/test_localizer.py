"""A localizer's network: windows of attention, masks, stochastic depth, initial values, and the public code's weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from model.local_attention import attend
from model.localizer import Localizer, filled, shapes_of
from model.localizer_config import LocalizerConfig
from model.localizer_weights import as_actionformer, built, from_actionformer, read_localizer_file

SMALL = LocalizerConfig(input_dim=6, num_steps=32, dim=16, head_dim=12, num_heads=2, num_levels=3, windows=(5,))


def network(config: LocalizerConfig = SMALL, classes: int = 3) -> Localizer:
    with torch.device("meta"):
        model = Localizer(config, classes)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(model.initial_value(name, tuple(parameter.shape), 7))
    model.reset_buffers()
    return model


@pytest.mark.parametrize(("steps", "window"), [(1, 3), (31, 5), (32, 5), (70, 19), (64, 65), (40, -1)])
def test_a_window_of_attention_is_that_of_all_with_the_others_hidden(steps: int, window: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, steps, 4, dtype=torch.float64)
    mask = torch.arange(steps) < torch.tensor([[steps], [max(1, steps // 2)]])
    place = torch.arange(steps)
    near = (place[:, None] - place).abs() <= (steps if window == -1 else window // 2)
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None] & near)
    found = attend(q, k, v, mask, window)
    assert torch.allclose(found[mask[:, None].expand(2, 2, -1)], wanted[mask[:, None].expand(2, 2, -1)], atol=1e-12)
    assert found.isfinite().all()


def test_what_is_no_step_changes_nothing() -> None:
    """Longer filling, and whatever lies in it."""
    model, features = network().double(), torch.randn(21, 6, dtype=torch.float64)
    alone = model(*filled([features], SMALL))
    longer = torch.randn(1, 64, 6, dtype=torch.float64)
    longer[0, :21] = features
    other = model(longer, (torch.arange(64) < 21)[None])
    for level, mask in enumerate(alone.masks):
        there = int(mask.sum())
        assert there == -(-21 // 2**level) == int(other.masks[level].sum())
        assert torch.allclose(alone.logits[level][:, :there], other.logits[level][:, :there], atol=1e-12)
        assert torch.allclose(alone.offsets[level][:, :there], other.offsets[level][:, :there], atol=1e-12)


def test_every_parameter_learns_and_depth_is_dropped_by_video() -> None:
    model, (features, mask) = network(), filled([torch.randn(32, 6), torch.randn(20, 6)], SMALL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drop_path" in name:
                parameter.fill_(0.5)
    found = model(features, mask)
    sum(each.sum() for each in (*found.logits, *found.offsets)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
    keep = torch.ones(len(model.blocks), 2, 2, dtype=torch.bool)
    keep[:, 1] = False
    dropped = model(features, mask, keep).logits[-1]
    for block in model.blocks:
        block.keep_scale.fill_(1.0)
    assert torch.equal(model(features, mask, keep).logits[-1][1], dropped[1])
    assert torch.allclose(model(features, mask, torch.ones_like(keep)).logits[-1], found.logits[-1], atol=1e-6)
    assert not torch.allclose(dropped[0], found.logits[-1][0], atol=1e-4), "what is kept counts more"


def test_initial_values() -> None:
    model = network()
    assert torch.sigmoid(model.cls_head.cls_head.conv.bias).allclose(torch.tensor(0.01))
    assert model.initial_value("backbone.stem.0.drop_path_mlp.scale", (4,), 0).eq(1e-4).all()
    weights = model.initial_value("backbone.stem.0.mlp.0.weight", (64, 16), 0)
    assert weights.abs().max() <= 0.25 and weights.std() > 0.1
    assert torch.equal(weights, model.initial_value("backbone.stem.0.mlp.0.weight", (64, 16), 0))


def test_the_public_codes_weights_load_strictly(tmp_path: Path) -> None:
    model, shapes = network(), shapes_of(SMALL, 3)
    ours = {name: tensor.detach() for name, tensor in model.named_parameters()}
    theirs = as_actionformer(ours)
    assert theirs["backbone.stem.0.ln1.weight"].shape == (1, 16, 1) and theirs["reg_head.scale.0.scale"].shape == ()
    assert theirs["backbone.stem.0.attn.query.weight"].shape == (16, 16, 1) and theirs["cls_head.cls_head.conv.bias"].shape == (
        3,
    )
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.items()}
    file = tmp_path / "epoch_030.pth.tar"
    torch.save({"epoch": 30, "state_dict": {n: t + 1 for n, t in wrapped.items()}, "state_dict_ema": wrapped}, file)
    found = read_localizer_file(file)
    again = built(SMALL, 3, found.tensors)
    assert dict.fromkeys(ours, True) == {name: torch.equal(t, ours[name]) for name, t in again.named_parameters()}
    features, mask = filled([torch.randn(30, 6)], SMALL)
    assert torch.equal(again(features, mask).logits[0], model.eval()(features, mask).logits[0])
    lacking = {name: tensor for name, tensor in theirs.items() if name != "neck.fpn_norms.1.bias"} | {
        "other.weight": torch.ones(1)
    }
    with pytest.raises(ValueError, match=r"neck\.fpn_norms\.1\.bias is missing; other\.weight has no place"):
        from_actionformer(lacking, shapes)
    with pytest.raises(ValueError, match=r"cls_head\.cls_head\.conv\.weight is \(3, 12, 3\), not \(4, 12, 3\)"):
        from_actionformer(theirs, shapes_of(SMALL, 4))
    torch.save({"model": {"blocks.0.weight": torch.ones(2)}}, file)
    with pytest.raises(ValueError, match="is no localizer's"):
        read_localizer_file(file)


def test_sizes_that_cannot_be_are_refused() -> None:
    for values, said in (
        ({"num_steps": 30}, "num_steps 30 must be a multiple of 4"),
        ({"windows": (4,)}, "windows 4 must be one number"),
        ({"windows": (5, 5)}, "one for each of the 3 levels"),
        ({"num_heads": 3}, "dim 16 must be a multiple of num_heads 3"),
        ({"prior": 0.0}, "prior 0.0 must be over 0"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(SMALL, **values)
    assert SMALL.ranges == [(0, 4), (4, 8), (8, 10_000)] and SMALL.whole(33) == 36 and SMALL.whole(3) == 32
