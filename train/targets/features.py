"""What a frozen teacher makes of a token that it sees and the student does not: latent prediction, as V-JEPA's and data2vec's.

The teacher sees the whole view. Its features are taken after its last norm, and each token's normalised to mean 0 and
deviation 1, as V-JEPA does: without it a few large channels are all that the squared error sees.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from model.config import ModelConfig, TokenMethod
from model.flops import block_mac
from model.pixels import gather_patches, normalise
from model.videomae import Encoder
from train.checkpoint.teacher import read_teacher
from train.stage import Frozen


class FeatureTargets:
    """Of an encoder of ours, of any width and depth; its tokens must be the student's."""

    def __init__(self, config: ModelConfig, tokens: TokenMethod, teacher: str | None) -> None:
        """Raises ValueError if there is no teacher, or none that has the same tokens."""
        if teacher is None:
            raise ValueError("--target features needs a teacher: --teacher RUN, or a model.safetensors of one")
        self._sizes, self._weights = read_teacher(teacher, config)
        dim, n = self._sizes.encoder_dim, config.num_tokens
        self.values = dim
        self.gmac = n * config.patch_values * dim / 1e9
        self.gmac += self._sizes.encoder_depth * block_mac(n, dim, self._sizes.encoder_mlp_dim) / 1e9
        with torch.device("meta"):
            self.parameters = sum(parameter.numel() for parameter in Encoder(self._sizes).parameters())
        self._teacher: Encoder | None = None

    def frozen(self) -> Mapping[str, Frozen]:
        self._teacher = Encoder(self._sizes)
        return {"teacher": Frozen(self._teacher, self._weights)}

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
