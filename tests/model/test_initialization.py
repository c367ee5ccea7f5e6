import math

import pytest
import torch

from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initial_value, initialise, parameter_seed
from model.videomae import VideoMAE

TINY = MODELS["tiny"]


def assert_uniform(value, bound):
    """Within the bounds, close to them, and with a uniform's deviation."""
    assert value.abs().max() <= bound
    assert value.abs().max() > 0.98 * bound
    assert value.mean().abs().item() < 5 * bound / math.sqrt(3 * value.numel())
    assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=4 / math.sqrt(value.numel()))


@pytest.mark.parametrize(
    ("name", "shape", "bound"),
    [
        ("encoder.blocks.3.attn.qkv.weight", (576, 192), math.sqrt(6 / (192 + 576))),
        ("encoder.blocks.0.attn.proj.weight", (192, 192), math.sqrt(6 / 384)),
        ("decoder.blocks.1.mlp.fc1.weight", (384, 96), math.sqrt(6 / 480)),
        ("decoder.head.weight", (1176, 512), math.sqrt(6 / 1688)),
        ("encoder_to_decoder.weight", (96, 192), 1 / math.sqrt(192)),
        ("encoder.patch_embed.proj.weight", (192, 3, 2, 8, 8), 1 / math.sqrt(384)),
        ("patch_embed.proj.weight", (192, 3, 2, 8, 8), 1 / math.sqrt(384)),
    ],
)
def test_uniform_parameters(name, shape, bound):
    assert_uniform(initial_value(name, shape, seed=0), bound)


@pytest.mark.parametrize("name", ["encoder.patch_embed.proj.bias", "patch_embed.proj.bias"])
def test_patch_embedding_bias_needs_the_size_of_a_patch(name):
    assert_uniform(initial_value(name, (1408,), 0, patch_values=1176), 1 / math.sqrt(1176))
    with pytest.raises(ValueError, match="pass patch_values"):
        initial_value(name, (1408,), 0)


def test_mask_token_is_cut_at_one_deviation():
    value = initial_value("mask_token", (1, 1, 4096), seed=0)
    assert value.abs().max() <= 0.02
    # a normal cut at +-1 deviation has 0.5396 of its deviation left
    assert value.std().item() == pytest.approx(0.02 * 0.5396, rel=0.05)


def test_classifier_is_truncated_normal_with_a_scaled_head():
    value = initial_value("blocks.0.mlp.fc1.weight", (768, 192), seed=0)
    assert value.std().item() == pytest.approx(0.02, rel=0.02)
    assert value.abs().max() > 0.06  # not cut at one deviation
    head = initial_value("head.weight", (710, 192), seed=0)
    assert head.std().item() == pytest.approx(2e-5, rel=0.02)
    torch.testing.assert_close(initial_value("head.weight", (710, 192), 0, head_scale=1.0), head * 1000)


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_every_parameter_is_covered(kind):
    """Nothing of what construction left stays, and each vector has the constant of its kind."""
    with torch.device("meta"):
        model = VideoMAE(TINY) if kind == "pretrain" else VideoClassifier(TINY, 7)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.detach().fill_(torch.nan)
    initialise(model, seed=3)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if parameter.ndim > 1 or "patch_embed" in name:
            assert parameter.std() > 0, name
        else:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name


def test_values_depend_on_seed_and_name_only():
    shape = (64, 64)
    first = initial_value("encoder.blocks.0.attn.proj.weight", shape, seed=0)
    torch.manual_seed(99)
    assert torch.equal(initial_value("encoder.blocks.0.attn.proj.weight", shape, seed=0), first)
    assert not torch.equal(initial_value("encoder.blocks.1.attn.proj.weight", shape, seed=0), first)
    assert not torch.equal(initial_value("encoder.blocks.0.attn.proj.weight", shape, seed=1), first)


def test_seed_of_a_parameter_is_the_same_everywhere():
    assert parameter_seed("mask_token", 0) == 7_546_955_344_558_432_653
