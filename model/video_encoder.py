"""The encoder for other people's code: a module with the calls that timm's vision transformers have. Official parameter names.

B clips, T frames, N tokens (T' x rows x columns), D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attentive_heads import AttentivePooler
from model.config import Grid, ModelConfig
from model.layers import Block, PatchEmbed, PositionTable, reset_buffers
from model.weights import Weights, pooler_depth_of, read_weights

FORMATS = ("NCTHW", "NLC")
POOLINGS = ("avg", "")


class VideoEncoder(nn.Module):
    """Clips -> tokens, features, logits.

    A clip is (T, H, W, 3) or (3, T, H, W), uint8, or floats that are normalised with ImageNet's mean and deviation; uint8 is
    normalised here. A last axis of 3 means the first layout, else a second axis of 3 the other. T may be any multiple of the
    tubelet size, H and W any of the patch size; the position table of the pre-training grid is interpolated to theirs. All
    methods that take clips raise ValueError for others.

    `norm` is of every token, as pre-trained weights have it, `fc_norm` of the mean over the tokens, as fine-tuned ones do; one
    that the weights lack is an identity. An attentive probe's `pooler` stands in for the mean. `labels` are the names of the
    classes, if known.
    """

    def __init__(
        self, config: ModelConfig, num_classes: int = 0, norm: bool = True, fc_norm: bool = False, pooler_depth: int = 0
    ) -> None:
        """`num_classes` 0: no head, and `forward` gives pooled features; `pooler_depth` 0: their mean. The decoder's sizes in
        `config` are not used; those of its views say what the position table is built for."""
        super().__init__()
        dim = config.encoder_dim
        self.config, self.num_classes, self.global_pool = config, num_classes, "avg"
        self.num_features = self.embed_dim = dim
        self.grad_checkpointing = False
        self.labels: list[str] | None = None
        self.patch_embed = PatchEmbed(dim, config.patch_size, config.tubelet_size)
        self.positions = PositionTable(config.positions_grid, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.encoder_heads, config.encoder_mlp_dim, config.layer_norm_eps) for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps) if norm else nn.Identity()
        self.pooler = AttentivePooler(dim, config.encoder_heads, pooler_depth) if pooler_depth else None
        self.fc_norm = nn.LayerNorm(dim, eps=config.final_eps) if fc_norm else nn.Identity()
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        reset_buffers(self)

    @classmethod
    def from_tensors(cls, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Self:
        """Of weights under their bare official names: `patch_embed.*`, `blocks.*`, perhaps `norm.*`, `pooler.*`, `fc_norm.*`,
        `head.*`.

        In evaluation mode and float32, in memory of its own: what is read of a file may lie in it, and be gone with it. Raises
        ValueError that names what is missing, left over, or of another shape than `config` says.
        """
        head = tensors.get("head.weight")
        with torch.device("meta"):
            norms = ("norm.weight" in tensors, "fc_norm.weight" in tensors)
            encoder = cls(config, 0 if head is None else len(head), *norms, pooler_depth_of(tensors))
        wanted = encoder.state_dict()
        faults = [f"{name} is missing" for name in wanted if name not in tensors]
        faults += [f"{name} has no place" for name in tensors if name not in wanted]
        faults += [
            f"{name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
            for name, tensor in tensors.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ]
        if faults:
            more = f" and {len(faults) - 5} others" if len(faults) > 5 else ""
            raise ValueError(f"not the weights of an encoder of {config.encoder_depth} blocks: {', '.join(faults[:5])}{more}")
        encoder.to_empty(device=next(iter(tensors.values())).device)
        encoder.load_state_dict(tensors)
        reset_buffers(encoder)
        return encoder.eval()

    def forward(self, clips: Tensor) -> Tensor:
        """Clips -> logits (B, classes), or features (B, D) without a head."""
        return self.forward_head(self.forward_features(clips))

    def forward_features(self, clips: Tensor) -> Tensor:
        """Clips -> tokens (B, N, D), after `norm`."""
        x_BND, _ = self._embed(clips)
        for block in self.blocks:
            x_BND = self._block(block, x_BND)
        return self.norm(x_BND)

    def forward_head(self, x_BND: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, D) -> logits (B, classes); with `pre_logits`, or without a head, features (B, D): mean or `pooler`,
        then `fc_norm`. With `global_pool` "" of every token: (B, N, ...)."""
        pool = self.pooler or (lambda tokens: tokens.mean(1))
        x = self.fc_norm(pool(x_BND) if self.global_pool else x_BND)
        return x if pre_logits else self.head(x)

    def get_intermediate_layers(
        self, clips: Tensor, n: int | Sequence[int] = 1, reshape: bool = False, *, norm: bool = False
    ) -> list[Tensor]:
        """Tokens after the last `n` blocks, or after those of the indices `n`, in forward order: (B, N, D) each; with `reshape`
        (B, D, T', rows, columns), with `norm` after `norm`."""
        layout = "NCTHW" if reshape else "NLC"
        return self.forward_intermediates(clips, n, norm, stop_early=True, output_fmt=layout)[1]

    def forward_intermediates(
        self,
        clips: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCTHW",
    ) -> tuple[Tensor, list[Tensor]]:
        """Clips -> tokens (B, N, D) after the last block (with `stop_early` the last of `indices`) and `norm`; and those after
        each block of `indices`, None all, as `get_intermediate_layers` gives them ("NLC" or, reshaped, "NCTHW")."""
        if output_fmt not in FORMATS:
            raise ValueError(f"output_fmt {output_fmt!r} must be one of {', '.join(FORMATS)}")
        taken = self._indices(indices)
        x_BND, grid = self._embed(clips)
        found = []
        for i, block in enumerate(self.blocks[: max(taken) + 1] if stop_early else self.blocks):
            x_BND = self._block(block, x_BND)
            if i in taken:
                found.append(self.norm(x_BND) if norm else x_BND)
        if output_fmt == "NCTHW":
            found = [x.transpose(1, 2).unflatten(2, grid).contiguous() for x in found]
        return self.norm(x_BND), found

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head, with torch's initial values, or none for 0 classes. `global_pool` "avg": it is given the mean over the
        tokens; "": every token; None: as before."""
        if global_pool not in (None, *POOLINGS):
            raise ValueError(f'global_pool {global_pool!r} must be "avg" or ""')
        self.global_pool = self.global_pool if global_pool is None else global_pool
        like = self.patch_embed.proj.weight
        new = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype) if num_classes else nn.Identity()
        self.head, self.num_classes, self.labels = new, num_classes, None

    def get_classifier(self) -> nn.Module:
        """The head, an identity if there is none."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Names of what is not decayed officially: all biases and norms."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """For timm's layer-wise learning rates; what it does not name goes with the head, as officially."""
        return {"stem": r"^patch_embed", "blocks": r"^blocks\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep of each block only its input, and compute the rest again in the backward pass."""
        self.grad_checkpointing = enable

    def _embed(self, clips: Tensor) -> tuple[Tensor, Grid]:
        """Clips -> what the first block is given, (B, N, D), and the grid of its tokens."""
        views_BTHWC = clips.movedim(1, -1) if clips.dim() == 5 and clips.shape[-1] != 3 else clips
        said = f"clips of shape {tuple(clips.shape)} must be (B, T, H, W, 3) or (B, 3, T, H, W)"
        grid = self.config.grid_of(views_BTHWC.shape, said)
        if clips.dtype != torch.uint8 and not clips.is_floating_point():
            raise ValueError(f"clips of {clips.dtype} must be uint8, or floats that ImageNet's mean and deviation normalised")
        x_BND = self.patch_embed.of_views(views_BTHWC)
        return x_BND + self.positions.at(grid).to(x_BND.dtype), grid

    def _block(self, block: nn.Module, x_BND: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x_BND, use_reentrant=False)
        return block(x_BND)

    def _indices(self, n: int | Sequence[int] | None) -> list[int]:
        """Of blocks: the last n, or those of a list; below 0 from the end."""
        every = range(len(self.blocks))
        n = len(every) if n is None else n
        wanted = (every[-n:] if 0 < n <= len(every) else ()) if isinstance(n, int) else n
        if not wanted or not all(-len(every) <= i < len(every) for i in wanted):
            raise ValueError(f"blocks {n!r} asked for; the encoder has {len(every)}, counted from 0, or from -1 at the end")
        return [every[i] for i in wanted]


def load_encoder(
    place: str | Path,
    *,
    key: str | None = None,
    encoder_heads: int | None = None,
    input_size: int | None = None,
    num_frames: int | None = None,
) -> VideoEncoder:
    """A file or folder of weights, of any layout that `read_weights` knows and with its hints -> the encoder, with the head of
    fine-tuned ones, on the CPU, in float32 and evaluation mode.

    `input_size` and `num_frames` are of the views that it was trained on; it takes others. Raises ValueError for what is no
    encoder of a video, or another network than it.
    """
    weights = read_weights(place, key=key, encoder_heads=encoder_heads, input_size=input_size, num_frames=num_frames)
    weights.check_same()
    return encoder_of(weights)


def encoder_of(weights: Weights) -> VideoEncoder:
    """What `load_encoder` makes of weights. Raises ValueError if the number of its attention heads is not known."""
    weights = for_encoder(weights)
    encoder = VideoEncoder.from_tensors(weights.config, weights.encoder())
    encoder.labels = None if weights.labels is None else list(weights.labels)
    return encoder


def for_encoder(weights: Weights) -> Weights:
    """The same, of which nobody need know how many heads the decoder has."""
    if weights.sizes.get("decoder_heads") is not None:
        return weights
    return replace(weights, sizes={**weights.sizes, "decoder_heads": 1})
