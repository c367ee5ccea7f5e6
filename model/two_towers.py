"""Videos and texts in one space: the trunk's tokens, their mean, and a projection; a text tower and another; a learned
temperature (CLIP). The trunk has official parameter names, the text tower its own, below `text.tower.`.

B views, T frames, N tokens of a view, L of a text, D width of a tower, E of the space.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.config import Implementation, ModelConfig
from model.initialization import initial_value, parameter_seed
from model.layers import DEFAULT
from model.trunk import Trunk

Pooling = Literal["mean", "first", "pooled"]
COLDEST, FIRST = math.log(100), math.log(1 / 0.07)  # CLIP's: the logarithm of what similarities are multiplied by
PAIRED = (
    "text.",
    "video_projection.",
    "text_projection.",
    "logit_scale",
)  # what the names of all but the video tower begin with


class TextTower(nn.Module):
    """A model of transformers. Its dropout never acts: it would be drawn from a generator that no position decides."""

    def __init__(self, tower: nn.Module, pooling: Pooling, buffers: Mapping[str, Tensor]) -> None:
        """`buffers` by name, which no checkpoint holds."""
        super().__init__()
        self.tower, self.pooling, self._values = tower.eval(), pooling, dict(buffers)

    def train(self, mode: bool = True) -> "TextTower":
        super().train(mode)
        self.tower.eval()
        return self

    def reset_buffers(self) -> None:
        with torch.no_grad():
            for name, buffer in self.tower.named_buffers():
                buffer.copy_(self._values[name])

    def forward(self, ids_BL: Tensor, there_BL: Tensor) -> Tensor:
        """Tokens, int64, and which of them count -> (B, D): their mean, the first one's, or what the model itself pools."""
        told: Any = self.tower(input_ids=ids_BL, attention_mask=there_BL)
        if self.pooling == "pooled":
            pooled_BD: Tensor = told.pooler_output
            return pooled_BD
        x_BLD = told.last_hidden_state
        if self.pooling == "first":
            return x_BLD[:, 0]
        weight_BL1 = there_BL[..., None].to(x_BLD.dtype)
        return (x_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)


class TwoTowers(Trunk):
    """Views and texts -> features that are alike where they belong together. The decoder's sizes in `config` are not used.

    Of a pre-trained or fine-tuned model take the trunk, and of the latter `fc_norm`. All of the text tower begins with
    `text_values`, by their names in it.
    """

    def __init__(
        self,
        config: ModelConfig,
        text: TextTower,
        text_width: int,
        width: int,
        text_values: Callable[[str], Tensor],
        drop_path: float = 0.0,
        how: Implementation = DEFAULT,
    ) -> None:
        """`width` is E. Raises ValueError for a probability outside [0, 1)."""
        super().__init__(config, drop_path, how, norm=False)
        self.fc_norm = nn.LayerNorm(config.encoder_dim, eps=config.final_eps)
        self.video_projection = nn.Linear(config.encoder_dim, width, bias=False)
        self.text = text
        self.text_projection = nn.Linear(text_width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(1))  # not (): FSDP2 shards no scalar
        self._text_values = text_values
        self.reset_buffers()

    def initial_value(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        """Projections are normal with a deviation of D^-0.5, and the temperature is 0.07 (CLIP)."""
        if name.startswith("text."):
            return self._text_values(name.removeprefix("text."))
        if name == "logit_scale":
            return torch.full(shape, FIRST)
        if name.endswith("_projection.weight"):
            generator = torch.Generator().manual_seed(parameter_seed(name, seed))
            return torch.zeros(shape).normal_(std=shape[1] ** -0.5, generator=generator)
        return initial_value(name, shape, seed, self.config.patch_values)

    def reset_buffers(self) -> None:
        super().reset_buffers()
        if not any(buffer.is_meta for buffer in self.text.buffers()):
            self.text.reset_buffers()

    def forward(
        self,
        views: Tensor | None = None,
        ids_BL: Tensor | None = None,
        there_BL: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Views as for `tokens`, and of texts the tokens and which count, as for `TextTower`; either may be left out ->
        features (B, E) of each, of no particular length, and what their similarities are multiplied by, (): 100 at most."""
        video_BE = text_BE = None
        if views is not None:
            self.config.check_views(views.shape)
            video_BE = self.video_projection(self.fc_norm(self.tokens(views, keep).mean(1)))
        if ids_BL is not None and there_BL is not None:
            text_BE = self.text_projection(self.text(ids_BL, there_BL))
        return video_BE, text_BE, Ceiling.apply(self.logit_scale.float()).exp().sum()  # no view


class Ceiling(torch.autograd.Function):
    """At most `COLDEST`. A gradient that would raise what is over it is none, as in CLIP, which cuts the parameter itself."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        context.save_for_backward(value)
        return value.clamp(max=COLDEST)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (value,) = context.saved_tensors
        return torch.where((value >= COLDEST) & (gradient < 0), torch.zeros_like(gradient), gradient)
