import dataclasses

import pytest
import torch

from model.classifier import VideoClassifier
from model.config import MODELS, ModelConfig
from model.videomae import VideoMAE, pixel_loss


@pytest.mark.parametrize(
    ("name", "num_tokens", "patch_values", "encoder_mlp", "decoder_mlp", "head_dim"),
    [
        ("vit-s", 1568, 1536, 1536, 768, 64),
        ("vit-b", 1568, 1536, 3072, 1536, 64),
        ("vit-l", 1568, 1536, 4096, 2048, 64),
        ("vit-h", 1568, 1536, 5120, 2048, 80),
        ("vit-g", 2048, 1176, 6144, 2234, 88),
    ],
)
def test_sizes_of_the_paper(name, num_tokens, patch_values, encoder_mlp, decoder_mlp, head_dim):
    config = MODELS[name]
    assert (config.num_tokens, config.patch_values) == (num_tokens, patch_values)
    assert (config.encoder_mlp_dim, config.decoder_mlp_dim) == (encoder_mlp, decoder_mlp)
    assert config.encoder_dim // config.encoder_heads == head_dim
    assert config.decoder_dim // config.decoder_heads == 64


def test_grid_is_time_rows_columns():
    assert ModelConfig(num_frames=12, input_size=96, patch_size=8).grid == (6, 12, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": 225}, r"input_size 225 is no multiple of patch_size 16; set input_size to 224 or 240"),
        ({"num_frames": 15}, r"num_frames 15 is no multiple of tubelet_size 2; set num_frames to 14 or 16"),
        ({"encoder_dim": 770}, r"encoder_dim 770 is no multiple of encoder_heads 12"),
        ({"decoder_heads": 5}, r"decoder_dim 384 is no multiple of decoder_heads 5"),
        ({"input_size": 8}, r"set input_size to 16, or"),
        ({"positions_size": 230}, r"positions_size 230 is no multiple of patch_size 16; set positions_size to 224 or 240"),
        ({"positions_frames": 0}, r"positions_frames 0 must be greater than 0"),
        ({"encoder_depth": 0}, r"encoder_depth 0 must be greater than 0"),
        ({"patch_size": -16}, r"patch_size -16 must be greater than 0"),
    ],
)
def test_impossible_sizes_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**change)


def test_positions_are_of_the_models_own_grid_or_of_another():
    longer = ModelConfig(num_frames=32, input_size=256)
    assert longer.positions_grid == longer.grid == (16, 16, 16)
    longer = dataclasses.replace(longer, positions_size=224, positions_frames=16)
    assert (longer.positions_grid, longer.grid) == ((8, 14, 14), (16, 16, 16))


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODELS["vit-b"].encoder_dim = 1


@pytest.mark.parametrize("shape", [(2, 16, 64, 64, 3), (2, 8, 32, 64, 3), (2, 3, 8, 64, 64), (2, 8, 128, 128, 3)])
def test_models_refuse_views_of_another_size(shape):
    config, views = MODELS["tiny"], torch.zeros(shape, dtype=torch.uint8)
    idx, message = torch.zeros(2, 4, dtype=torch.int64), r"takes \(B, 8, 64, 64, 3\)"
    with torch.device("meta"):
        model, classifier = VideoMAE(config), VideoClassifier(config, 3)
    for call in (
        lambda: pixel_loss(model, views, idx, idx, torch.ones(2, 4)),
        lambda: model.encode(views, idx),
        lambda: classifier(views),
    ):
        with pytest.raises(ValueError, match=message):
            call()
