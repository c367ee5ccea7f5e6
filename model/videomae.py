"""The dual-masked video autoencoder (VideoMAE V2, section 3): visible patches and token indices -> predictions, and their loss.

Parameters carry the official names: `state_dict()` is the official checkpoint, entry by entry. Every shape is constant and
nothing waits for the device, so each block compiles once.

B views, T frames, N tokens, V visible tokens, K decoded tokens, L loss tokens (the first of the K), D width,
P values of a patch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, smooth_l1_loss

from model.compiler import compiled
from model.config import Implementation, ModelConfig
from model.layers import DEFAULT, Block, PatchEmbed, PositionTable
from model.patches import token_function
from model.pixels import gather_patches, normalise
from model.trainable import Trainable

Loss = Literal["mse", "l1", "smooth-l1"]


class Encoder(nn.Module):
    """Visible patches (B, V, P) and their indices (B, V) -> latent (B, V, D)."""

    def __init__(self, config: ModelConfig, how: Implementation = DEFAULT) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.patch_embed = PatchEmbed(dim, config.patch_size, config.tubelet_size)
        self.positions = PositionTable(config.grid, dim, config.positions_grid)
        self.blocks = nn.ModuleList(
            Block(dim, config.encoder_heads, config.encoder_mlp_dim, config.layer_norm_eps, how=how)
            for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def forward(self, patches_BVP: Tensor, visible_idx: Tensor) -> Tensor:
        x_BVD = self.patch_embed(patches_BVP)
        x_BVD = x_BVD + self.positions(visible_idx, x_BVD.dtype)
        for block in self.blocks:
            x_BVD = block(x_BVD)
        return self.norm(x_BVD)


class Decoder(nn.Module):
    """Projected latent and mask tokens (B, V + K, decoder D) -> predictions (B, n, P) of the n tokens `wanted`.

    The last block computes keys and values of all tokens, and the rest, like norm and head, of the wanted ones only. In
    training these are the L of the loss: 2.2 % less of ViT-B's forward, 0.5 % of ViT-g's.
    """

    def __init__(self, config: ModelConfig, how: Implementation, target_values: int) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.positions = PositionTable(config.grid, dim, config.positions_grid)
        self.blocks = nn.ModuleList(
            Block(dim, config.decoder_heads, config.decoder_mlp_dim, config.layer_norm_eps, how=how)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.final_eps)
        self.head = nn.Linear(dim, target_values)

    def forward(self, x_BND: Tensor, wanted: slice) -> Tensor:
        *blocks, last = self.blocks
        for block in blocks:
            x_BND = block(x_BND)
        return self.head(self.norm(last(x_BND, wanted)))


class VideoMAE(Trainable):
    """Encoder and decoder. Activations have the dtype of the parameters."""

    def __init__(self, config: ModelConfig, how: Implementation = DEFAULT, target_values: int | None = None) -> None:
        """`target_values` are predicted of a token: by default the P of its pixels, or what another target has."""
        super().__init__()
        self.config, self.how = config, how
        self.encoder = Encoder(config, how)
        self.decoder = Decoder(config, how, target_values or config.patch_values)
        self.encoder_to_decoder = nn.Linear(config.encoder_dim, config.decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_dim))
        self.reset_buffers()

    def forward(self, patches_BVP: Tensor, visible_idx: Tensor, decoded_idx: Tensor, num_predicted: int) -> Tensor:
        """Normalised patches (B, V, P), indices (B, V) and (B, K) int64 -> predictions (B, L, P) of the first `num_predicted` =
        L of the K decoded tokens: those that have a target."""
        return self.decode(self.encoder(patches_BVP, visible_idx), visible_idx, decoded_idx, num_predicted)

    def encode(self, views: Tensor, visible_idx: Tensor) -> Tensor:
        """Views (B, T, H, W, 3) uint8, indices (B, V) int64 -> latent (B, V, D), after the encoder's last norm."""
        self.config.check_views(views.shape)
        patches_u8 = gather_patches(views, visible_idx, self.config.patch_size, self.config.tubelet_size)
        return self.encoder(normalise(patches_u8).to(self.mask_token.dtype), visible_idx)

    def decode(self, latent_BVD: Tensor, visible_idx: Tensor, decoded_idx: Tensor, num_predicted: int | None = None) -> Tensor:
        """Latent (B, V, D), indices (B, V) and (B, K) int64 -> predicted targets (B, K, P), or those of the first
        `num_predicted` tokens alone.

        A mask token stands at every decoded position, also where the encoder sees the token (104 of ViT-g's 1024).
        """
        x_BVD = self.encoder_to_decoder(latent_BVD)
        x_BVD = x_BVD + self.decoder.positions(visible_idx, x_BVD.dtype)
        mask_BKD = self.mask_token + self.decoder.positions(decoded_idx, x_BVD.dtype)
        V, K = visible_idx.shape[1], decoded_idx.shape[1]
        wanted = slice(V, V + (K if num_predicted is None else num_predicted))
        return self.decoder(torch.cat([x_BVD, mask_BKD], dim=1), wanted)

    def blocks(self) -> Iterator[nn.Module]:
        """Every transformer block in forward order: what is sharded, checkpointed and compiled one by one."""
        yield from self.encoder.blocks
        yield from self.decoder.blocks

    def parts(self) -> Mapping[str, nn.Module]:
        """Two; the projection and the mask token go with the decoder."""
        return {"encoder": self.encoder, "decoder": self.decoder}


def pixel_loss(model: VideoMAE, views: Tensor, visible_idx: Tensor, decoded_idx: Tensor, loss_weight: Tensor) -> Tensor:
    """The paper's objective: views (B, T, H, W, 3) uint8, contiguous; indices (B, V) and (B, K) int64; weights (B, L), of the
    first L decoded tokens -> loss (), at least float32. Patches and targets come from one reading of the bytes."""
    config, dtype, L = model.config, model.mask_token.dtype, loss_weight.shape[1]
    config.check_views(views.shape)
    patches_BVP, target_BLP = token_function(model.how.tokens, views.device, dtype)(
        views, visible_idx, decoded_idx[:, :L], config.patch_size, config.tubelet_size, dtype
    )
    return loss_function(model.how)(model(patches_BVP, visible_idx, decoded_idx, L), target_BLP, loss_weight)


def loss_function(how: Implementation, loss: Loss = "mse") -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`weighted_error` of a kind, or the same compiled: it has no parameters, so sharding is not in its way.

    Compiled, each pass reads predictions and targets once, and nothing of their size is made but the gradient: for ViT-g in
    bf16 at 128 views 1.94 GB (counted in the generated code) instead of 8.9 (by hand). On a CPU it stays as it is: bits of
    older runs hang on the order of its sums.
    """
    error = compiled(weighted_error) if how.compile_loss else weighted_error
    return error if loss == "mse" else functools.partial(error, loss=loss)


def weighted_error(prediction_BLP: Tensor, target_BLP: Tensor, weight_BL: Tensor, loss: Loss = "mse") -> Tensor:
    """Squared errors, averaged over the P values of a token, averaged over the batch with weights (B, L) -> () in the targets'
    dtype, at least float32 (official behaviour; equation 2 divides by all K decoded tokens, so is smaller by L / K).

    "l1": their absolute values; "smooth-l1": half of the squares below 1, and above it linear (V1, Table 2f).
    """
    prediction_BLP = prediction_BLP.to(target_BLP.dtype)
    if loss == "mse":
        error_BLP = (prediction_BLP - target_BLP).square()
    else:
        error_BLP = (l1_loss if loss == "l1" else smooth_l1_loss)(prediction_BLP, target_BLP, reduction="none")
    weight_BL = weight_BL.to(target_BLP.dtype)
    return (error_BLP.mean(-1) * weight_BL).sum() / weight_BL.sum()
