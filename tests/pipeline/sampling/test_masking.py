import numpy as np
import pytest

from pipeline import keyed
from pipeline.sampling import masking
from pipeline.sampling.masks.choice import Grid
from pipeline.sampling.masks.rules import DECODER_RULES, RULES, DecoderMaskRule, MaskRule
from pipeline.sampling.masks.tube import tube_masks

KEYS = keyed.mix(0, np.arange(300))
GRIDS = {"patch 16": (8, 14, 14), "patch 14": (8, 16, 16), "small": (4, 6, 6)}


@pytest.mark.parametrize(
    ("grid", "ratio", "decoder_ratio", "expected"),
    [
        ((8, 14, 14), 0.9, 0.5, (160, 784, 704)),
        ((8, 16, 16), 0.9, 0.5, (208, 1024, 920)),  # ViT-g: 26 of 256, not the 25 of the paper's Table 7
        ((8, 14, 14), 0.9, 0.0, (160, 1408, 1408)),
        ((8, 14, 14), 0.75, 0.25, (392, 1176, 882)),
        ((6, 14, 14), 0.9, 0.5, (120, 588, 588)),  # T' no multiple of 4: every decoded token is compared, with weights
    ],
)
def test_counts(grid: Grid, ratio: float, decoder_ratio: float, expected: tuple[int, int, int]) -> None:
    counts = masking.token_counts(grid, ratio, decoder_ratio)
    assert (counts.visible, counts.decoded, counts.loss) == expected
    visible, decoded, weight = masking.mask_indices(KEYS[:3], grid, ratio, decoder_ratio)
    assert (visible.shape[1], decoded.shape[1], weight.shape[1]) == expected


@pytest.mark.parametrize(
    ("masks", "decoder_masks", "expected"),
    [
        ("tube", "frame", (160, 784, 704)),
        ("tube", "random", (160, 784, 784)),
        ("frame", "running-cell", (196, 784, 686)),
        ("frame", "frame", (196, 784, 784)),
        ("random", "running-cell", (157, 784, 784)),
        ("multi-block", "running-cell", (160, 784, 704)),
    ],
)
def test_counts_of_the_rules(masks: MaskRule, decoder_masks: DecoderMaskRule, expected: tuple[int, int, int]) -> None:
    counts = masking.token_counts((8, 14, 14), 0.9, 0.5, masks, decoder_masks)
    assert (counts.visible, counts.decoded, counts.loss) == expected


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("decoder_ratio", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize(("masks", "decoder_masks"), [(a, b) for a in RULES for b in DECODER_RULES])
def test_indices_are_the_masks(grid: Grid, decoder_ratio: float, masks: MaskRule, decoder_masks: DecoderMaskRule) -> None:
    if masks == decoder_masks == "frame" and decoder_ratio == 0.75:
        pytest.skip("of 4 frames: may decode no hidden one")
    keys = KEYS[:100]
    hidden = RULES[masks].draw(keys, grid, 0.8)
    visible, decoded, weight = masking.mask_indices(keys, grid, 0.8, decoder_ratio, masks=masks, decoder_masks=decoder_masks)
    kept = hidden
    if decoder_ratio:
        kept = ~DECODER_RULES[decoder_masks].draw(keyed.mix(keys, keyed.DECODER_MASK), grid, decoder_ratio)
    counts = masking.token_counts(grid, 0.8, decoder_ratio, masks, decoder_masks)
    for i in range(len(keys)):
        assert np.array_equal(visible[i], np.flatnonzero(~hidden[i]))
        # the loss tokens, first, are those that are decoded and hidden from the encoder
        loss = np.flatnonzero(kept[i] & hidden[i])
        assert np.array_equal(decoded[i], [*loss, *np.flatnonzero(kept[i] & ~hidden[i])])
        assert weight[i].tolist() == [1] * len(loss) + [0] * (counts.loss - len(loss))
    assert (weight.mean() == 1) == (len(set((kept & hidden).sum(1))) == 1)  # weights only where the number varies


def test_weights_where_the_number_of_loss_tokens_varies() -> None:
    hidden = tube_masks(KEYS, (6, 14, 14), 0.9)
    _, decoded, weight = masking.mask_indices(KEYS, (6, 14, 14), 0.9, 0.5)
    assert np.array_equal(weight, np.take_along_axis(hidden, decoded, 1))
    assert np.abs(weight.sum(1) - 528).max() <= 16  # the official code, some draws: 519 to 537
    assert len(np.unique(weight.sum(1))) > 1


@pytest.mark.parametrize(
    ("grid", "ratios", "rules", "words"),
    [
        ((8, 14, 14), (0.9, 0.4), (), "0.25, 0.5, 0.75"),
        ((8, 19, 19), (0.9, 0.5), (), "19 x 19"),
        ((8, 14, 14), (1.0, 0.5), (), "mask_ratio 1.0 of 'tube' masks must .* of the 196 tubes .* from 0.0052 to less than 1"),
        ((8, 14, 14), (0.005, 0.5), (), "mask_ratio 0.005 of 'tube' masks"),
        ((8, 14, 14), (0.1, 0.5), ("frame",), "mask_ratio 0.1 of 'frame' masks must hide some of the 8 frames .* from 0.125"),
        ((8, 14, 14), (0.9, -0.5), ("tube", "random"), "decoder_mask_ratio -0.5 of 'random' masks"),
        ((4, 14, 14), (0.5, 0.5), ("frame", "frame"), "with mask_ratio 0.5 a view may decode none of the frames it hides"),
    ],
)
def test_impossible_masks_are_refused(
    grid: Grid, ratios: tuple[float, float], rules: tuple[MaskRule, DecoderMaskRule], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        masking.token_counts(grid, *ratios, *rules)
    if "0.0052" in words:  # what it says is possible
        assert masking.token_counts(grid, 0.0052, 0.5).visible == 8 * 195
