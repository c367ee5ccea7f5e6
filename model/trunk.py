"""The encoder of views, all of whose tokens count: what a classifier and an action detector are built on. Official parameter
names, so that it is no module inside of them but what they inherit.

B views, T frames, N tokens, D width.
"""

from torch import Tensor, nn

from model.config import Implementation, ModelConfig
from model.layers import Block, PatchEmbed, PositionTable
from model.trainable import Trainable


class Trunk(Trainable):
    """Views -> tokens. What follows them, a model adds, and calls `reset_buffers` when it is whole."""

    def __init__(self, config: ModelConfig, drop_path: float, how: Implementation, norm: bool) -> None:
        """`drop_path`: the probability of skipping the last block's branches; it grows linearly from 0 at the first. `norm` is
        of every token, as a pre-trained encoder has it. Positions are sinusoids over the tokens of this model's own grid,
        unless `config` says of which. Raises ValueError for a probability outside [0, 1)."""
        super().__init__()
        self.config = config
        dim, depth = config.encoder_dim, config.encoder_depth
        self.patch_embed = PatchEmbed(dim, config.patch_size, config.tubelet_size)
        self.positions = PositionTable(config.grid, dim, config.positions_grid)
        # of each block, the probability of skipping a branch
        self.drop_rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, config.encoder_heads, config.encoder_mlp_dim, config.layer_norm_eps, rate, how)
            for rate in self.drop_rates
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps) if norm else nn.Identity()

    def tokens(self, views: Tensor, keep: Tensor | None = None) -> Tensor:
        """Views (B, T, H, W, 3), uint8 or already normalised floats -> (B, N, D), after the last block's norm, if there is one.
        Of views of another size or length than the model's the position table is interpolated.

        `keep` (depth, B, 2) bool: of each block, whose attention and whose MLP count (stochastic depth). It is drawn with this
        model's `drop_rates` (`sampling.draws` does it); without it nothing is skipped, as in evaluation. Raises ValueError for
        views that do not divide into patches.
        """
        grid = self.config.grid_of(views.shape)
        x_BND = self.patch_embed.of_views(views)
        x_BND = x_BND + self.positions.at(grid).to(x_BND.dtype)
        for block, keep_B2 in zip(self.blocks, [None] * len(self.blocks) if keep is None else keep, strict=True):
            x_BND = block(x_BND, keep=keep_B2)
        return self.norm(x_BND)
