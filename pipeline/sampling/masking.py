"""Tube and running-cell masks as index tensors (VideoMAE V2 sections 3.2 and 3.3, official behaviour where they differ).

Tokens are numbered t-major, then row, then column. A mask is never built as a boolean clip: the encoder is given the
indices of the visible tokens, the decoder those of the tokens to reconstruct, both of one size for every view, so that the
training step has constant shapes. The first `num_loss` decoded tokens are the ones that the loss compares: decoded and
hidden from the encoder. Attention does not care about their order, and the loss becomes a slice.
"""

import functools
from dataclasses import dataclass

import numpy as np

from pipeline import keyed

Grid = tuple[int, int, int]  # tubelets in time, rows, columns
ARITHMETIC = 2  # of new runs, see SamplingRecipe
CELL_MASKED = {0.25: 1, 0.5: 2, 0.75: 3}  # masked positions of each 2 x 2 cell


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Sizes of the index tensors of one view; equal for every view of a run."""

    visible: int
    decoded: int
    loss: int


def token_counts(grid: Grid, mask_ratio: float, decoder_mask_ratio: float) -> TokenCounts:
    """How many tokens the encoder sees, the decoder reconstructs and the loss compares.

    16 x 224² at 0.9 / 0.5: 160, 784, 704 with patch 16 and 208, 1024, 920 with patch 14. Where the number of loss tokens
    is not constant (T' no multiple of 4) every decoded token is compared and the weights say which count.
    Raises ValueError for ratios or grids that the masks cannot serve.
    """
    time, rows, columns = grid
    area = rows * columns
    masked = int(mask_ratio * area)  # truncated, as the official code: ViT-g keeps 26 of 256, not the paper's 25
    if not 0 < masked < area:
        raise ValueError(
            f"mask ratio {mask_ratio} hides {masked} of {area} positions of a frame; it must leave some and hide some"
        )
    visible = time * (area - masked)
    if decoder_mask_ratio == 0:
        return TokenCounts(visible, time * masked, time * masked)
    if decoder_mask_ratio not in CELL_MASKED:
        raise ValueError(
            f"decoder mask ratio {decoder_mask_ratio} is not possible with running cells of 2 x 2 tokens; "
            f"allowed are 0 (decode all that the encoder does not see), {', '.join(map(str, CELL_MASKED))}"
        )
    if rows % 2 or columns % 2:
        raise ValueError(
            f"running-cell masks tile a frame with 2 x 2 cells, which a grid of {rows} x {columns} tokens does not allow; "
            "choose an input size that is an even multiple of the patch size, or decoder mask ratio 0"
        )
    kept = 4 - CELL_MASKED[decoder_mask_ratio]
    decoded = time * area * kept // 4
    return TokenCounts(visible, decoded, time * masked * kept // 4 if time % 4 == 0 else decoded)


@functools.cache
def running_cell_masks(grid: Grid, decoder_mask_ratio: float) -> np.ndarray:
    """The four running-cell masks -> bool (4, N), True = masked. Which of them a view gets is the only randomness.

    A 2 x 2 cell, filled from a queue of k ones and 4 - k zeros, tiles the frame; the queue advances by one from frame to
    frame, beginning at rotation (phase + 1), so that every position is decoded equally often in any 4 consecutive frames.
    """
    token_counts(grid, 0.5, decoder_mask_ratio)  # checks
    time, rows, columns = grid
    k = CELL_MASKED[decoder_mask_ratio]
    queue = np.arange(4) < k
    masks = np.empty((4, time, rows, columns), bool)
    for phase in range(4):
        for t in range(time):
            cell = np.roll(queue, -((phase + t + 1) % 4)).reshape(2, 2)
            masks[phase, t] = np.tile(cell, (rows // 2, columns // 2))
    masks.setflags(write=False)
    return masks.reshape(4, -1)


@functools.cache
def kept_tokens(grid: Grid, decoder_mask_ratio: float) -> np.ndarray:
    """The tokens that each of the four running-cell masks leaves, int64 (4, K), ascending."""
    kept = np.nonzero(~running_cell_masks(grid, decoder_mask_ratio))[1].reshape(4, -1)
    kept.setflags(write=False)
    return kept


def tube_masks(keys: np.ndarray, grid: Grid, mask_ratio: float, arithmetic: int = ARITHMETIC) -> np.ndarray:
    """Keys (n,) -> bool (n, N), True = masked: the same int(ratio · h · w) positions hidden in every frame."""
    time, rows, columns = grid
    area = rows * columns
    purpose = () if arithmetic == 1 else (keyed.TUBES,)
    noise = keyed.mix(keys[:, None], *purpose, np.arange(area))
    hidden = np.zeros((len(keys), area), np.bool_)
    order = np.argsort(noise, axis=1, kind="stable")
    np.put_along_axis(hidden, order[:, : int(mask_ratio * area)], True, axis=1)
    return np.tile(hidden, (1, time))


def mask_indices(
    keys: np.ndarray, grid: Grid, mask_ratio: float, decoder_mask_ratio: float, arithmetic: int = ARITHMETIC
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys (n,) uint64 -> (visible (n, V) int64, decoded (n, K) int64, loss_weight (n, L) float32).

    `visible` is ascending. `decoded` has the tokens of the loss first, then those that the encoder sees as well, each part
    ascending. `loss_weight` belongs to the first L of them. `decoder_mask_ratio` 0 is encoder-only masking (VideoMAE V1).
    `arithmetic` 1, of older runs: the phase of the decoder's mask is the noise of tube 5.
    """
    counts = token_counts(grid, mask_ratio, decoder_mask_ratio)
    hidden = tube_masks(keys, grid, mask_ratio, arithmetic)
    if decoder_mask_ratio == 0:
        decoded = np.nonzero(hidden)[1].reshape(len(keys), counts.decoded)
    else:
        phase = keyed.below(keyed.mix(keys, keyed.DECODER_MASK), 4)
        decoded = kept_tokens(grid, decoder_mask_ratio)[phase]
        # a stable sort puts what the encoder sees behind the tokens of the loss
        seen = ~np.take_along_axis(hidden, decoded, axis=1)
        decoded = np.take_along_axis(decoded, np.argsort(seen, axis=1, kind="stable"), axis=1)
    visible = np.nonzero(~hidden)[1].reshape(len(keys), counts.visible)
    weight = np.take_along_axis(hidden, decoded[:, : counts.loss], axis=1).astype(np.float32)
    return visible.astype(np.int64), decoded.astype(np.int64), weight
