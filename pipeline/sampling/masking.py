"""Masks as index tensors (VideoMAE V2 sections 3.2 and 3.3, official behaviour where they differ); the rules are in masks/.

Tokens are numbered t-major, then row, then column. A mask is never built as a boolean clip: the encoder is given the
indices of the visible tokens, the decoder those of the tokens to reconstruct, both of one size for every view, so that the
training step has constant shapes. The first `num_loss` decoded tokens are the ones that the loss compares: decoded and
hidden from the encoder. Attention does not care about their order, and the loss becomes a slice.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from pipeline import keyed
from pipeline.sampling.masks.choice import Grid
from pipeline.sampling.masks.rules import DECODER_RULES, RULES, DecoderMaskRule, MaskRule, Rule
from pipeline.sampling.masks.tube import tube_masks

ARITHMETIC = 2  # of new runs, see SamplingRecipe


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Sizes of the index tensors of one view; equal for every view of a run."""

    visible: int
    decoded: int
    loss: int


@functools.cache
def token_counts(
    grid: Grid,
    mask_ratio: float,
    decoder_mask_ratio: float,
    masks: MaskRule = "tube",
    decoder_masks: DecoderMaskRule = "running-cell",
) -> TokenCounts:
    """How many tokens the encoder sees, the decoder reconstructs and the loss compares.

    16 x 224² at 0.9 / 0.5: 160, 784, 704 with patch 16 and 208, 1024, 920 with patch 14. Where the number of loss tokens
    is not constant every decoded token is compared and the weights say which count. It is constant without decoder masks;
    for tubes under running cells if T' is a multiple of 4; for tubes under frames, and for frames under running cells.
    Raises ValueError for ratios or grids that the masks cannot serve.
    """
    rule, decoder_rule = RULES[masks], DECODER_RULES[decoder_masks]
    num_tokens = math.prod(grid)
    hidden = _masked(rule, grid, mask_ratio, f"mask_ratio {mask_ratio} of {masks!r} masks")
    if decoder_mask_ratio == 0:
        return TokenCounts(num_tokens - hidden, hidden, hidden)
    what = f"decoder_mask_ratio {decoder_mask_ratio} of {decoder_masks!r} masks"
    decoded = num_tokens - _masked(decoder_rule, grid, decoder_mask_ratio, what)
    constant = False
    match rule.of, decoder_rule.of:
        case "tubes", "cells":
            constant = grid[0] % 4 == 0
        case ("tubes", "frames") | ("frames", "cells"):
            constant = True
        case "frames", "frames" if hidden + decoded <= num_tokens:
            raise ValueError(f"{what}: with mask_ratio {mask_ratio} a view may decode none of the frames it hides; hide more")
    return TokenCounts(num_tokens - hidden, decoded, hidden * decoded // num_tokens if constant else decoded)


def _masked(rule: Rule, grid: Grid, ratio: float, what: str) -> int:
    """Tokens that a rule hides of every view."""
    num_tokens = math.prod(grid)
    if rule.of == "cells" or 0 < ratio < 1:
        masked = int(rule.draw(np.zeros(1, np.uint64), grid, ratio).sum())
        if 0 < masked < num_tokens:
            return masked
    parts = {"tubes": grid[1] * grid[2], "frames": grid[0]}.get(rule.of, num_tokens)
    raise ValueError(
        f"{what} must hide some of the {parts} {rule.of} of a view and leave some: "
        f"from {math.ceil(1e4 / parts) / 1e4:g} to less than 1"
    )


def mask_indices(
    keys: np.ndarray,
    grid: Grid,
    mask_ratio: float,
    decoder_mask_ratio: float,
    arithmetic: int = ARITHMETIC,
    masks: MaskRule = "tube",
    decoder_masks: DecoderMaskRule = "running-cell",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys (n,) uint64 -> (visible (n, V) int64, decoded (n, K) int64, loss_weight (n, L) float32).

    `visible` is ascending. `decoded` has the tokens of the loss first, then those that the encoder sees as well, each part
    ascending. `loss_weight` belongs to the first L of them. `decoder_mask_ratio` 0 is encoder-only masking (VideoMAE V1).
    `arithmetic` 1, of older runs: the phase of the decoder's mask is the noise of tube 5.
    """
    n, counts = len(keys), token_counts(grid, mask_ratio, decoder_mask_ratio, masks, decoder_masks)
    if arithmetic == 1 and masks == "tube":
        hidden = tube_masks(keys, grid, mask_ratio, arithmetic)
    else:
        hidden = RULES[masks].draw(keys, grid, mask_ratio)
    visible = np.nonzero(~hidden)[1].reshape(n, counts.visible)
    if decoder_mask_ratio == 0:
        decoded = np.nonzero(hidden)[1].reshape(n, counts.decoded)
    else:
        left_out = DECODER_RULES[decoder_masks].draw(keyed.mix(keys, keyed.DECODER_MASK), grid, decoder_mask_ratio)
        decoded = np.nonzero(~left_out)[1].reshape(n, counts.decoded)
        # a stable sort puts what the encoder sees behind the tokens of the loss
        seen = ~np.take_along_axis(hidden, decoded, axis=1)
        decoded = np.take_along_axis(decoded, np.argsort(seen, axis=1, kind="stable"), axis=1)
    weight = np.take_along_axis(hidden, decoded[:, : counts.loss], axis=1).astype(np.float32)
    return visible.astype(np.int64), decoded.astype(np.int64), weight
