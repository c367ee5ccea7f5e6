import dataclasses

import numpy as np
import pytest
import torch

from model.classifier import VideoClassifier
from model.config import MODELS
from model.videomae import VideoMAE
from train.compute.optimizer import ShardedSGD, build_optimizer, lr_at, parameter_groups, set_lr


def official_schedule(peak, final, total, warmup, start):
    """The schedule as the whole array that it is defined by."""
    i = np.arange(total - warmup)
    cosine = final + 0.5 * (peak - final) * (1 + np.cos(np.pi * i / len(i)))
    return np.concatenate([np.linspace(start, peak, warmup), cosine])


@pytest.mark.parametrize(
    ("peak", "final", "total", "warmup", "start"),
    [
        (1e-3, 1e-5, 70, 14, 0.0),
        (1e-3, 1e-5, 70, 14, 1e-6),
        (1e-3, 1e-5, 70, 0, 0.0),
        (1e-3, 1e-5, 70, 1, 0.0),
        (1e-3, 1e-5, 70, 69, 0.0),
        (4.8e-3, 8e-5, 1974, 197, 0.0),
    ],
)
def test_schedule(peak, final, total, warmup, start):
    kwargs = {"peak": peak, "final": final, "total_steps": total, "warmup_steps": warmup, "start": start}
    got = [lr_at(step, **kwargs) for step in range(total)]
    np.testing.assert_allclose(got, official_schedule(peak, final, total, warmup, start), rtol=1e-12, atol=0)


def test_schedule_of_vit_g_has_its_peak_twice():
    """30 of 300 epochs of 658 steps warm up to 1.5e-4 per 256 views at 8192."""
    kwargs = {"peak": 4.8e-3, "final": 8e-5, "total_steps": 197_400, "warmup_steps": 19_740}
    assert lr_at(0, **kwargs) == 0
    assert lr_at(1, **kwargs) == pytest.approx(2.4317341304017426e-07, rel=1e-12)
    assert lr_at(19_739, **kwargs) == lr_at(19_740, **kwargs) == 4.8e-3 > lr_at(19_741, **kwargs)
    assert lr_at(197_399, **kwargs) == pytest.approx(8.000000036897957e-05, rel=1e-12)
    assert lr_at(197_399, **kwargs) > 8e-5
    with pytest.raises(AssertionError):
        lr_at(197_400, **kwargs)


def names_of(group, model):
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)] for p in group["params"]}


def test_pretraining_decays_matrices_only():
    with torch.device("meta"):
        model = VideoMAE(MODELS["tiny"])
    groups = parameter_groups(model.named_parameters(), 0.05)
    assert sorted(g["weight_decay"] for g in groups) == [0.0, 0.05]
    assert all(g["lr_scale"] == 1.0 for g in groups)
    decayed = next(names_of(g, model) for g in groups if g["weight_decay"])
    plain = next(names_of(g, model) for g in groups if not g["weight_decay"])
    assert decayed | plain == {n for n, _ in model.named_parameters()} and not decayed & plain
    assert "mask_token" in plain and "encoder.blocks.0.attn.q_bias" in plain and "decoder.norm.weight" in plain
    assert {"encoder_to_decoder.weight", "encoder.patch_embed.proj.weight", "decoder.head.weight"} <= decayed


def test_names_in_front_do_not_change_what_is_decayed():
    """torch.compile's prefix makes the original decay its mask token."""
    parameters = [("_orig_mod.mask_token", torch.nn.Parameter(torch.zeros(1, 1, 4)))]
    assert parameter_groups(parameters, 0.05)[0]["weight_decay"] == 0


def test_layers_of_the_classifier_are_scaled_from_the_head_down():
    config = dataclasses.replace(MODELS["tiny"], encoder_depth=12)
    with torch.device("meta"):
        model = VideoClassifier(config, 7)
    groups = parameter_groups(model.named_parameters(), 0.05, layer_decay=0.75, depth=12)
    scale = {name: g["lr_scale"] for g in groups for name in names_of(g, model)}
    assert set(scale) == {n for n, _ in model.named_parameters()}
    assert scale["head.weight"] == scale["fc_norm.bias"] == 1.0
    assert scale["blocks.11.mlp.fc2.weight"] == 0.75
    assert scale["blocks.1.norm1.weight"] == pytest.approx(0.75**11)
    assert scale["blocks.0.attn.q_bias"] == pytest.approx(0.75**12)
    assert scale["patch_embed.proj.bias"] == pytest.approx(0.75**13)
    assert len(groups) == 2 * 14  # per layer, with and without decay


def test_frozen_parameters_are_left_out():
    frozen = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    assert parameter_groups([("frozen", frozen)], 0.05) == []


def test_a_step_is_adamw_with_decoupled_decay():
    """Two steps by hand, in float64: bias-corrected moments, decay times the scaled learning rate."""
    start, betas, eps, decay, lr = torch.tensor([[1.0, -2.0]]).double(), (0.9, 0.95), 1e-8, 0.05, 0.1
    weight, bias = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[0].clone())
    named = [("blocks.0.fc.weight", weight), ("head.bias", bias)]
    optimizer = build_optimizer(parameter_groups(named, decay, 0.5, 1), betas)
    assert all(group["lr"] == 0 for group in optimizer.param_groups)
    want = {"weight": start.clone(), "bias": start[0].clone()}
    moments = {name: [torch.zeros_like(v), torch.zeros_like(v)] for name, v in want.items()}
    for step in (1, 2):
        set_lr(optimizer, lr)
        weight.grad, bias.grad = start * step, start[0] * -step
        optimizer.step()
        for name, grad, scale, rate in (("weight", start * step, 0.5, decay), ("bias", start[0] * -step, 1.0, 0.0)):
            m, v = moments[name]
            m.mul_(betas[0]).add_(grad * (1 - betas[0]))
            v.mul_(betas[1]).add_(grad**2 * (1 - betas[1]))
            update = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
            want[name] = want[name] * (1 - lr * scale * rate) - lr * scale * update
    torch.testing.assert_close(weight.data, want["weight"], rtol=1e-12, atol=0)
    torch.testing.assert_close(bias.data, want["bias"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_torchs_and_can_skip_its_first_step(decay: float) -> None:
    """Which torch's own fused step would leave without a momentum. Not taken: a gradient that is not finite, for all alike."""
    start = torch.randn(3, 5)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    empty = torch.nn.Parameter(torch.empty(0, 5))  # of a rank that has no row
    optimizer = ShardedSGD(parameter_groups([("head.weight", ours), ("other.weight", empty)], decay), momentum=0.9)
    plain = torch.optim.SGD([theirs], lr=0.3, momentum=0.9, weight_decay=decay)
    set_lr(optimizer, 0.3)
    for skipped in (True, False, False, True, False):
        ours.grad, theirs.grad, empty.grad = start * 2, start.clone(), torch.empty(0, 5)
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(float(skipped)), torch.tensor(2.0)
        if skipped:
            ours.grad[0, 0] = torch.nan
        else:
            plain.step()
        optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, start)
