"""What a frozen teacher makes of a token that it sees and the student does not: latent prediction, as V-JEPA's and data2vec's.

The teacher sees the whole view. Its features are taken after its last norm, and each token's normalised to mean 0 and
deviation 1, as V-JEPA does: without it a few large channels are all that the squared error sees. (A classifier's encoder has no
last norm, since its own comes after the mean over the tokens: then it is the blocks' output that is normalised.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from model.config import ModelConfig, TokenMethod
from model.flops import block_mac
from model.pixels import gather_patches, normalise
from model.videomae import Encoder
from model.weights import Weights, with_views
from train.checkpoint.source import read_once
from train.stage import Frozen


class FeatureTargets:
    """Of an encoder of any layout, width and depth; its tokens must be the student's."""

    def __init__(self, config: ModelConfig, tokens: TokenMethod, teacher: str | None) -> None:
        """Raises ValueError if there is no teacher, or none that has the same tokens."""
        if teacher is None:
            raise ValueError("--target features needs a teacher: --teacher RUN, or a file of weights")
        try:
            weights = with_views(read_once(teacher), config.input_size, config.num_frames)
            weights.check_same()
        except ValueError as error:
            raise ValueError(f"--teacher: {error}") from None
        if weights.sizes["encoder_heads"] is None:
            raise ValueError(
                f"--teacher {teacher}: nothing tells how many heads its encoder has; `tubecell convert {teacher} "
                "OUT.safetensors --to tubecell --heads N` makes weights that do"
            )
        unknown = {"decoder_heads": 1} if weights.sizes["decoder_heads"] is None else {}  # and not needed
        self._sizes = ModelConfig(**{**weights.sizes, **unknown})
        for name in ("patch_size", "tubelet_size"):
            theirs, ours = getattr(self._sizes, name), getattr(config, name)
            if theirs != ours:
                raise ValueError(
                    f"--teacher {teacher}: its {name} is {theirs}, the student's {ours}; they must have the same tokens"
                )
        self._weights: Weights | None = weights
        self._normed = "norm.weight" in weights.encoder()
        dim, n = self._sizes.encoder_dim, config.num_tokens
        self.values = dim
        self.gmac = n * config.patch_values * dim / 1e9
        self.gmac += self._sizes.encoder_depth * block_mac(n, dim, self._sizes.encoder_mlp_dim) / 1e9
        with torch.device("meta"):
            self.parameters = sum(parameter.numel() for parameter in self._encoder().parameters())
        self._teacher: Encoder | None = None

    def frozen(self) -> Mapping[str, Frozen]:
        teacher = self._teacher = self._encoder()
        weights, self._weights = self._weights, None  # not longer than they are needed
        assert weights is not None

        def own() -> Mapping[str, Tensor]:
            tensors = weights.encoder()
            return {name: tensors[name] for name, _ in teacher.named_parameters()}

        return {"teacher": Frozen(teacher, own)}

    def _encoder(self) -> Encoder:
        encoder = Encoder(self._sizes)
        if not self._normed:
            encoder.add_module("norm", nn.Identity())
        return encoder

    @torch.no_grad()
    def __call__(
        self, views_BTHWC: Tensor, visible_idx: Tensor, target_idx: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        assert self._teacher is not None, "the teacher has no weights yet"
        B, sizes = len(views_BTHWC), self._sizes
        every = torch.arange(sizes.num_tokens, device=views_BTHWC.device).expand(B, -1)
        patches_BNP = normalise(gather_patches(views_BTHWC, every, sizes.patch_size, sizes.tubelet_size))
        features_BND = self._teacher(patches_BNP.to(self._teacher.patch_embed.proj.weight.dtype), every)

        def of(values_BNX: Tensor, idx: Tensor) -> Tensor:
            return values_BNX.gather(1, idx[..., None].expand(-1, -1, values_BNX.shape[-1]))

        target_BLD = of(features_BND, target_idx).float()
        return of(patches_BNP, visible_idx).to(dtype), layer_norm(target_BLD, target_BLD.shape[-1:])
