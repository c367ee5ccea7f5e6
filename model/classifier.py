"""The fine-tuned model: the encoder's trunk over all tokens, their mean, a linear head. Official parameter names.

B views, T frames, N tokens, D width, P values of a patch.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import LAYER_NORM_EPS, Block, PatchEmbed, PositionTable
from model.pixels import normalise
from model.trainable import Trainable


class VideoClassifier(Trainable):
    """Views -> logits. The decoder's sizes in `config` are not used.

    From a pre-training checkpoint take `encoder.patch_embed.*` and `encoder.blocks.*` only: `encoder.norm` is dropped and
    `fc_norm` starts as the identity (official behaviour). Positions are sinusoids over the tokens of this model's own grid.
    """

    def __init__(self, config: ModelConfig, num_classes: int, drop_path: float = 0.0, head_dropout: float = 0.0) -> None:
        """`drop_path`: the probability of skipping the last block's branches; it grows linearly from 0 at the first."""
        super().__init__()
        self.config = config
        dim, depth = config.encoder_dim, config.encoder_depth
        self.patch_embed = PatchEmbed(dim, config.patch_size, config.tubelet_size)
        self.positions = PositionTable(config.num_tokens, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.encoder_heads, config.encoder_mlp_dim, drop_path * i / max(depth - 1, 1)) for i in range(depth)
        )
        self.fc_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.head_dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(dim, num_classes)
        self.reset_buffers()

    def forward(self, views: Tensor) -> Tensor:
        """Views as for `features` -> logits (B, classes)."""
        return self.head(self.head_dropout(self.features(views)))

    def features(self, views: Tensor) -> Tensor:
        """Views (B, T, H, W, 3), uint8 or already normalised floats (after mixup or random erasing) -> (B, D)."""
        self.config.check_views(views.shape)
        p, s = self.config.patch_size, self.config.tubelet_size
        patches_BNP = rearrange(views, "b (t s) (h p) (w q) c -> b (t h w) (s p q c)", s=s, p=p, q=p)
        if views.dtype == torch.uint8:
            patches_BNP = normalise(patches_BNP)
        x_BND = self.patch_embed(patches_BNP.to(self.head.weight.dtype))
        x_BND = x_BND + self.positions.table.to(x_BND.dtype)
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.fc_norm(x_BND.mean(1))
