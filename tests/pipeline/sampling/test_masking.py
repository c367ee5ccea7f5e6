import numpy as np
import pytest

from pipeline import keyed
from pipeline.sampling import masking

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
def test_counts(grid: masking.Grid, ratio: float, decoder_ratio: float, expected: tuple[int, int, int]) -> None:
    counts = masking.token_counts(grid, ratio, decoder_ratio)
    assert (counts.visible, counts.decoded, counts.loss) == expected
    visible, decoded, weight = masking.mask_indices(KEYS[:3], grid, ratio, decoder_ratio)
    assert (visible.shape[1], decoded.shape[1], weight.shape[1]) == expected


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("decoder_ratio", [0.0, 0.25, 0.5, 0.75])
def test_indices_are_the_masks(grid: masking.Grid, decoder_ratio: float) -> None:
    tokens = int(np.prod(grid))
    hidden = masking.tube_masks(KEYS, grid, 0.9)
    visible, decoded, weight = masking.mask_indices(KEYS, grid, 0.9, decoder_ratio)
    patterns = {m.tobytes() for m in masking.running_cell_masks(grid, decoder_ratio)} if decoder_ratio else set()
    loss = weight.shape[1]
    for i in range(len(KEYS)):
        assert np.array_equal(visible[i], np.flatnonzero(~hidden[i]))
        kept = np.zeros(tokens, bool)
        kept[decoded[i]] = True
        assert kept.sum() == decoded.shape[1]
        assert (~kept).tobytes() in patterns if decoder_ratio else np.array_equal(kept, hidden[i])
        # the loss tokens, first, are those that are decoded and hidden from the encoder
        assert np.array_equal(decoded[i, :loss], np.flatnonzero(kept & hidden[i]))
    assert (weight == 1).all()


def test_weights_where_the_number_of_loss_tokens_varies() -> None:
    hidden = masking.tube_masks(KEYS, (6, 14, 14), 0.9)
    _, decoded, weight = masking.mask_indices(KEYS, (6, 14, 14), 0.9, 0.5)
    assert np.array_equal(weight, np.take_along_axis(hidden, decoded, 1))
    assert np.abs(weight.sum(1) - 528).max() <= 16  # the official code, some draws: 519 to 537
    assert len(np.unique(weight.sum(1))) > 1


def test_tubes_are_uniform_and_constant_in_time() -> None:
    keys = keyed.mix(1, np.arange(4000))
    hidden = masking.tube_masks(keys, (8, 14, 14), 0.9).reshape(4000, 8, 196)
    assert (hidden == hidden[:, :1]).all()
    assert (hidden.sum(2) == 176).all()
    z = (hidden[:, 0].mean(0) - 176 / 196) / np.sqrt(176 * 20 / 196**2 / 4000)
    assert np.abs(z).max() < 4.5


def test_running_cells_walk() -> None:
    masks = masking.running_cell_masks((8, 4, 4), 0.5).reshape(4, 8, 4, 4)
    assert masks[0, :4, :2, :2].astype(int).tolist() == [[[1, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    assert (masks[0, :4] == masks[0, 4:]).all()
    assert (masks[1, :7] == masks[0, 1:]).all()
    assert (masks.reshape(4, 2, 4, 16).sum(2) == 2).all()  # in any 4 frames every position is decoded twice
    walk = masking.running_cell_masks((4, 2, 2), 0.25)[0].reshape(4, 4)
    assert [int(m.argmax()) for m in walk] == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("grid", "ratio", "decoder_ratio", "words"),
    [
        ((8, 14, 14), 0.9, 0.4, "0.25, 0.5, 0.75"),
        ((8, 19, 19), 0.9, 0.5, "19 x 19"),
        ((8, 14, 14), 1.0, 0.5, "mask ratio 1.0"),
        ((8, 14, 14), 0.001, 0.5, "mask ratio 0.001"),
    ],
)
def test_impossible_masks_are_refused(grid: masking.Grid, ratio: float, decoder_ratio: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        masking.token_counts(grid, ratio, decoder_ratio)
