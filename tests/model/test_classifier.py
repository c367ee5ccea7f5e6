import copy

import pytest
import torch

from model.classifier import VideoClassifier
from model.config import MODELS, ModelConfig
from model.initialization import initialise
from model.pixels import normalise
from model.videomae import VideoMAE

CONFIG = ModelConfig(
    input_size=24, num_frames=4, patch_size=8, encoder_dim=24, encoder_depth=3, encoder_heads=3, decoder_dim=12, decoder_heads=2
)


def random_views(B=2, config=CONFIG):
    size = config.input_size
    return torch.randint(0, 256, (B, config.num_frames, size, size, 3), dtype=torch.uint8)


def test_features_are_the_encoder_over_all_tokens_then_mean_then_norm():
    pretrained = VideoMAE(CONFIG)
    initialise(pretrained, 0)
    pretrained.double()
    model = VideoClassifier(CONFIG, 5).double().eval()
    trunk = {k.removeprefix("encoder."): v for k, v in pretrained.state_dict().items() if k.startswith("encoder.")}
    missing, unexpected = model.load_state_dict(trunk, strict=False)
    assert set(missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert set(unexpected) == {"norm.weight", "norm.bias"}

    views = random_views()
    tokens = []
    hook = pretrained.encoder.norm.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    pretrained.encode(views, torch.arange(CONFIG.num_tokens).expand(2, -1))
    hook.remove()
    mean = tokens[0].mean(1)
    want = (mean - mean.mean(-1, keepdim=True)) / (mean.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    features = model.features(views)
    torch.testing.assert_close(features, want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(model(views), features @ model.head.weight.T + model.head.bias)


def test_normalised_floats_are_taken_as_they_are():
    """Mixup and random erasing come after normalisation."""
    model = VideoClassifier(CONFIG, 5).eval()
    views = random_views()
    floats = normalise(views.flatten(2)).view(views.shape)
    assert torch.equal(model(floats), model(views))
    assert not torch.equal(model(floats * 0.5), model(views))


def test_positions_follow_the_grid_of_the_model():
    longer = ModelConfig(input_size=32, num_frames=8, patch_size=8, encoder_dim=24, encoder_depth=1, encoder_heads=3)
    model = VideoClassifier(longer, 5)
    assert model.positions.table.shape == (64, 24)
    assert model(random_views(config=longer)).shape == (2, 5)


def test_drop_path_grows_linearly_and_dropout_is_on_the_head():
    model = VideoClassifier(CONFIG, 5, drop_path=0.3, head_dropout=0.75)
    initialise(model, 0, head_scale=1.0)
    assert model.drop_rates == pytest.approx([0.0, 0.15, 0.3])
    views, keep = random_views(), torch.ones(3, 2, 2, dtype=torch.bool)
    keep[1, 0] = False
    features = model.features(views, keep)
    skipped = copy.deepcopy(model)
    skipped.blocks[1].forward = lambda x, keep: x
    torch.testing.assert_close(features[0], skipped.features(views, keep)[0])
    assert not torch.allclose(features[1], skipped.features(views, keep)[1])
    some = torch.rand(2, 24) < 0.25
    torch.testing.assert_close(model(views, keep, some), model.head(torch.where(some, features * 4, 0)))
    with pytest.raises(ValueError, match=r"head_dropout 1.0 must be at least 0 and less than 1"):
        VideoClassifier(CONFIG, 5, head_dropout=1.0)


@pytest.mark.parametrize(
    ("name", "parameters", "entries"),
    [
        ("vit-s", 22_153_286, 162),
        ("vit-b", 86_773_190, 162),
        ("vit-l", 304_588_486, 318),
        ("vit-h", 632_516_550, 422),
        ("vit-g", 1_012_611_142, 526),
    ],
)
def test_parameters_of_the_official_models(name, parameters, entries):
    with torch.device("meta"):
        model = VideoClassifier(MODELS[name], 710)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    named = {f"{layer}.{kind}" for layer in ("patch_embed.proj", "fc_norm", "head") for kind in ("weight", "bias")}
    assert {n for n in model.state_dict() if "blocks" not in n} == named
