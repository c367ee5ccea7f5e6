"""The fine-tuned model: the encoder's trunk over all tokens, their mean, a linear head. Official parameter names.

B views, T frames, N tokens, D width.
"""

from torch import Tensor, nn

from model.attentive_heads import AttentivePooler
from model.config import Implementation, ModelConfig
from model.initialization import HEAD_SCALE, initial_value
from model.layers import DEFAULT, scaled
from model.trunk import Trunk


class VideoClassifier(Trunk):
    """Views -> logits. The decoder's sizes in `config` are not used.

    From a pre-training checkpoint take `encoder.patch_embed.*` and `encoder.blocks.*` only: `encoder.norm` is dropped and
    `fc_norm` starts as the identity (official behaviour). Positions are sinusoids over the tokens of this model's own grid,
    unless `config` says of which.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        how: Implementation = DEFAULT,
        head_scale: float = HEAD_SCALE,
        norm: bool = False,
        fc_norm: bool = True,
        pooler_depth: int = 0,
    ) -> None:
        """`drop_path` and `norm` are the trunk's; the norm, of every token before their mean, is a probe's, `fc_norm` comes
        after it. `head_scale` is what the head's initial values are multiplied by. `pooler_depth` is an attentive probe's,
        which stands in for the mean; 0: none.

        What is skipped and dropped is drawn outside: see `forward`. Raises ValueError for probabilities outside [0, 1).
        """
        super().__init__(config, drop_path, how, norm)
        if not 0 <= head_dropout < 1:
            raise ValueError(f"head_dropout {head_dropout} must be at least 0 and less than 1")
        self.head_dropout, self.head_scale = head_dropout, head_scale
        dim = config.encoder_dim
        self.pooler = AttentivePooler(dim, config.encoder_heads, pooler_depth) if pooler_depth else None
        self.fc_norm = nn.LayerNorm(dim, eps=config.final_eps) if fc_norm else nn.Identity()
        self.head = nn.Linear(dim, num_classes)
        self.reset_buffers()

    def initial_value(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        return initial_value(name, shape, seed, self.config.patch_values, self.head_scale)

    def forward(self, views: Tensor, keep: Tensor | None = None, keep_features: Tensor | None = None) -> Tensor:
        """Views and `keep` as for `features` -> logits (B, classes).

        In training `keep_features` (B, D) bool are what head dropout leaves. Both are drawn with this model's `drop_rates` and
        `head_dropout` (`sampling.draws` does it); without them nothing is dropped, as in evaluation.
        """
        x_BD = self.features(views, keep)
        return self.head(scaled(x_BD, None if keep_features is None else keep_features / (1 - self.head_dropout)))

    def features(self, views: Tensor, keep: Tensor | None = None) -> Tensor:
        """Views (B, T, H, W, 3), uint8 or already normalised floats (after mixup or random erasing), and `keep` (depth, B, 2)
        bool as for `tokens` -> (B, D)."""
        self.config.check_views(views.shape)
        x_BND = self.tokens(views, keep)
        return self.fc_norm(self.pooler(x_BND) if self.pooler else x_BND.mean(1))
