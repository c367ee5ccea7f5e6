"""ActionFormer of our own: features of a video over time -> for each point of a pyramid the classes of the action there, and
how far its begin and end are (Zhang et al., "ActionFormer: Localizing Moments of Actions with Transformers", ECCV 2022).

B videos, T steps, C width, K classes. Parameters have the original's names; shapes differ in dimensions of size 1 (see
`from_actionformer`).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, relu

from model.initialization import parameter_seed
from model.layers import sinusoids
from model.local_attention import MaskedConv, TimeBlock
from model.localizer_config import LocalizerConfig
from model.trainable import Trainable


@dataclass(frozen=True, slots=True)
class Located:
    """What the network says, level by level."""

    logits: list[Tensor]
    """(B, T_l, K) each."""
    offsets: list[Tensor]
    """(B, T_l, 2) each: from a point to its action's begin and end, in strides of the level, at least 0."""
    masks: list[Tensor]
    """bool (B, T_l) each: whether a point is the video's."""


class Head(nn.Module):
    """Convolutions with norms, the same at every level."""

    def __init__(self, dim: int, hidden: int, out: int, depth: int, last: str) -> None:
        super().__init__()
        dims = [dim, *[hidden] * (depth - 1)]
        self.head = nn.ModuleList(MaskedConv(dims[i], hidden, bias=False) for i in range(depth - 1))
        self.norm = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(depth - 1))
        self.last = last
        self.add_module(last, MaskedConv(dims[-1], out))

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        for conv, norm in zip(self.head, self.norm, strict=True):
            x_BTC = relu(norm(conv(x_BTC, mask_BT)[0]))
        return self.get_submodule(self.last)(x_BTC, mask_BT)[0]


class LevelScale(nn.Module):
    """A factor that a level learns for its distances."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Pyramid(nn.Module):
    """Projection, stem and pyramid."""

    def __init__(self, config: LocalizerConfig) -> None:
        super().__init__()
        dim, windows = config.dim, config.level_windows
        self.steps = config.num_steps
        dims = [config.input_dim, *[dim] * (config.embed_depth - 1)]
        self.embd = nn.ModuleList(MaskedConv(size, dim, bias=False) for size in dims)
        self.embd_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in dims)

        def block(window: int, stride: int) -> TimeBlock:
            return TimeBlock(dim, config.num_heads, window, stride, config.drop_path)

        self.stem = nn.ModuleList(block(windows[0], 1) for _ in range(config.stem_depth))
        self.branch = nn.ModuleList(block(window, 2) for window in windows[1:])
        table_TC = torch.empty(config.num_steps, dim) if config.positions else None
        self.register_buffer("positions", table_TC, persistent=False)
        self.positions: Tensor | None
        self.reset()

    def reset(self) -> None:
        """Fill the table of positions (again)."""
        if self.positions is not None:
            self.positions.copy_(sinusoids(*self.positions.shape) / math.sqrt(self.positions.shape[1]))

    def forward(self, x_BTC: Tensor, mask_BT: Tensor, keep: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            x_BTC = relu(norm(conv(x_BTC, mask_BT)[0]))
        if self.positions is not None:
            x_BTC = x_BTC + (self._positions(x_BTC.shape[1]) * mask_BT[..., None]).to(x_BTC.dtype)
        for number, block in enumerate([*self.stem, *self.branch]):
            x_BTC, mask_BT = block(x_BTC, mask_BT, None if keep is None else keep[number])
            if number >= len(self.stem) - 1:
                yield x_BTC, mask_BT

    def _positions(self, steps: int) -> Tensor:
        """Of a sequence: of one that is longer than in training the table is drawn out."""
        table_TC = self.positions
        assert table_TC is not None
        if steps <= self.steps:
            return table_TC[:steps]
        return interpolate(table_TC.T[None], steps, mode="linear", align_corners=False)[0].T


class Localizer(Trainable):
    """The network."""

    def __init__(self, config: LocalizerConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.backbone = Pyramid(config)
        self.neck = nn.Module()
        self.neck.fpn_norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(config.num_levels))
        self.cls_head = Head(config.dim, config.head_dim, num_classes, config.head_depth, "cls_head")
        self.reg_head = Head(config.dim, config.head_dim, 2, config.head_depth, "offset_head")
        self.reg_head.scale = nn.ModuleList(LevelScale() for _ in range(config.num_levels))

    @property
    def blocks(self) -> list[nn.Module]:
        """In forward order."""
        return [*self.backbone.stem, *self.backbone.branch]

    @property
    def drop_rates(self) -> list[float]:
        return [self.config.drop_path] * len(self.blocks)

    def reset_buffers(self) -> None:
        self.backbone.reset()
        for block in self.blocks:
            assert isinstance(block, TimeBlock)
            block.reset()

    def initial_value(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        """As the original draws them: products and convolutions U(±1/sqrt(inputs)), biases 0, norms 1 and 0, branches 1e-4, and
        classes with their prior."""
        owner, leaf = name.split(".")[-2:]
        value = torch.zeros(shape)
        if leaf == "bias":
            return value.fill_(-math.log(1 / self.config.prior - 1)) if name.startswith("cls_head.cls_head") else value
        if leaf == "scale":
            return value.fill_(1e-4 if owner.startswith("drop_path") else 1.0)
        if len(shape) == 1:
            return value.fill_(1.0)
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return value.uniform_(-bound, bound, generator=torch.Generator().manual_seed(parameter_seed(name, seed)))

    def forward(self, features_BTC: Tensor, mask_BT: Tensor, keep: Tensor | None = None) -> Located:
        """Features, of a number of steps that all levels can halve, and which of them are the video's, from the first on; at
        least one is. `keep` bool (blocks, B, 2) is stochastic depth's."""
        assert features_BTC.shape[1] % self.config.least_steps == 0, "see LocalizerConfig.whole"
        logits, offsets, masks = [], [], []
        levels = self.backbone(features_BTC * mask_BT[..., None], mask_BT, keep)
        for level, (x_BTC, kept_BT) in enumerate(levels):
            x_BTC = self.neck.get_submodule(f"fpn_norms.{level}")(x_BTC)
            logits.append(self.cls_head(x_BTC, kept_BT))
            offsets.append(relu(self.reg_head.get_submodule(f"scale.{level}")(self.reg_head(x_BTC, kept_BT))))
            masks.append(kept_BT)
        return Located(logits, offsets, masks)


def filled(features: list[Tensor], config: LocalizerConfig) -> tuple[Tensor, Tensor]:
    """Features (T, C) of several videos, each at most as long as in training, or of one of any length -> one tensor (B, T, C)
    filled up with zeros, and bool (B, T), which steps are the video's."""
    steps = config.whole(max(map(len, features)))
    mask_BT = torch.arange(steps, device=features[0].device) < torch.tensor(
        [[len(x)] for x in features], device=features[0].device
    )
    return torch.stack([pad(x, (0, 0, 0, steps - len(x))) for x in features]), mask_BT


def shapes_of(config: LocalizerConfig, num_classes: int) -> Mapping[str, torch.Size]:
    """Of every parameter, by name."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Localizer(config, num_classes).named_parameters()}
