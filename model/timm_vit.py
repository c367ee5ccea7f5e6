"""The network as timm's VisionTransformer: its names, one bias for queries, keys and values, and the position table as a
parameter. For those whose code takes a timm model."""

from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from model.config import ModelConfig


class TubeletEmbed(nn.Module):
    """Clips (B, 3, T, H, W), normalised -> (B, N, D): what timm's ViT calls its `embed_layer`."""

    def __init__(self, num_frames: int, tubelet_size: int, img_size: int, patch_size: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        kernel = (tubelet_size, patch_size, patch_size)
        self.num_patches = num_frames // tubelet_size * (img_size // patch_size) ** 2
        self.proj = nn.Conv3d(3, embed_dim, kernel, kernel)

    def forward(self, clips: Tensor) -> Tensor:
        return self.proj(clips).flatten(2).transpose(1, 2)


def timm_vit(config: ModelConfig, num_classes: int = 0, pooled_norm: bool = True) -> VisionTransformer:
    """timm's network of the encoder's sizes, with its initial values. `pooled_norm`: the last norm comes after the mean over
    the tokens (of a classifier), not before (after pre-training)."""
    model = VisionTransformer(
        img_size=config.input_size,
        patch_size=config.patch_size,
        num_classes=num_classes,
        global_pool="avg",
        embed_dim=config.encoder_dim,
        depth=config.encoder_depth,
        num_heads=config.encoder_heads,
        mlp_ratio=config.mlp_ratio,
        class_token=False,
        fc_norm=pooled_norm,
        embed_layer=partial(TubeletEmbed, config.num_frames, config.tubelet_size),
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        weight_init="skip",
    )
    if isinstance(model.fc_norm, nn.LayerNorm):
        model.fc_norm.eps = config.final_eps
    assert model.pos_embed is not None
    nn.init.zeros_(model.pos_embed)
    return model
