"""The paper's target: the pixels of a token, normalised by its own mean and deviation; and the same as they are."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import ModelConfig, TokenMethod
from model.patches import token_function
from model.pixels import gather_patches, normalise
from train.stage import Frozen


class PixelTargets:
    """Patches and targets from one reading of the bytes, by one kernel on a GPU."""

    gmac, parameters = 0.0, 0

    def __init__(self, config: ModelConfig, tokens: TokenMethod, teacher: str | None) -> None:
        """Raises ValueError for a teacher."""
        if teacher is not None:
            raise ValueError(f"--teacher {teacher}: pixels are predicted without one; give --target features as well")
        self._config, self._tokens, self.values = config, tokens, config.patch_values

    def frozen(self) -> Mapping[str, Frozen]:
        return {}

    def __call__(
        self, views_BTHWC: Tensor, visible_idx: Tensor, target_idx: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        config = self._config
        tokenise = token_function(self._tokens, views_BTHWC.device, dtype)
        return tokenise(views_BTHWC, visible_idx, target_idx, config.patch_size, config.tubelet_size, dtype)


class PlainPixelTargets(PixelTargets):
    """Levels in [0, 1], not normalised (the official code's with `--normlize_target False`)."""

    def __call__(
        self, views_BTHWC: Tensor, visible_idx: Tensor, target_idx: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        sizes = self._config.patch_size, self._config.tubelet_size
        patches_u8 = gather_patches(views_BTHWC, torch.cat([visible_idx, target_idx], 1), *sizes)
        V = visible_idx.shape[1]
        return normalise(patches_u8[:, :V]).to(dtype), patches_u8[:, V:].float() / 255
