from typing import get_args

import numpy as np
import pytest

from pipeline import keyed
from pipeline.sampling.masks.rules import DECODER_RULES, RULES, DecoderMaskRule, MaskRule, Rule
from pipeline.sampling.masks.running_cell import patterns

GRID = (8, 14, 14)
KEYS = keyed.mix(1, np.arange(4000))
EVERY = RULES | DECODER_RULES


def test_the_tables_have_the_names() -> None:
    assert (tuple(RULES), tuple(DECODER_RULES)) == (get_args(MaskRule), get_args(DecoderMaskRule))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("grid", [(4, 6, 10), (4, 10, 2)])
def test_equally_many_of_every_view_and_each_view_for_itself(name: str, ratio: float, grid: tuple[int, int, int]) -> None:
    rule: Rule = EVERY[name]  # type: ignore[index]
    masks = rule.draw(KEYS[:200], grid, ratio)
    parts = {"tubes": grid[1] * grid[2], "frames": grid[0]}.get(rule.of, np.prod(grid))
    assert masks.shape == (200, np.prod(grid)) and masks.dtype == bool
    assert set(masks.mean(1)) == {int(ratio * parts) / parts}
    assert len(np.unique(masks, axis=0)) > 3
    assert np.array_equal(rule.draw(KEYS[7:8], grid, ratio)[0], masks[7])
    frames = masks.reshape(200, grid[0], -1)
    if rule.of == "tubes":
        assert (frames == frames[:, :1]).all()
    if rule.of == "frames":
        assert (frames == frames[:, :, :1]).all()


@pytest.mark.parametrize("name", ["tube", "random", "frame"])
def test_no_place_is_preferred(name: MaskRule) -> None:
    masks = RULES[name].draw(KEYS, GRID, 0.75)
    z = (masks.mean(0) - 0.75) / np.sqrt(0.75 * 0.25 / 4000)
    assert np.abs(z).max() < 4.5


def test_blocks() -> None:
    """Half of the views have large ones."""
    hidden = RULES["multi-block"].draw(KEYS, GRID, 0.6).reshape(-1, *GRID)[:, 0]
    alone = 0
    for mask in hidden:
        rows, columns = mask.any(1), mask.any(0)
        box = mask[np.ix_(rows, columns)]
        whole = min((~box).any(0).sum(), (~box).any(1).sum()) <= 1  # but for a line at most
        alone += whole and all((np.diff(np.flatnonzero(lines)) == 1).all() for lines in (rows, columns))
    assert 0.45 < alone / len(hidden) < 0.55  # one large block, of which a side is cut off
    most = RULES["multi-block"].draw(KEYS, GRID, 0.9).reshape(-1, *GRID)[:, 0]
    tubes = RULES["tube"].draw(KEYS, GRID, 0.9).reshape(-1, *GRID)[:, 0]
    borders = [(masks[:, 1:] != masks[:, :-1]).sum() for masks in (most, tubes)]
    assert borders[0] < borders[1] / 2
    places = most.mean(0)
    assert places.min() > 0.3 and places.max() > 0.99  # corners are hidden, too, but less often
    assert np.abs(places - places[:, ::-1]).max() < 0.05 and np.abs(places - places[::-1]).max() < 0.05


def test_running_cells_walk() -> None:
    masks = patterns((8, 4, 4), 0.5).reshape(4, 8, 4, 4)
    assert masks[0, :4, :2, :2].astype(int).tolist() == [[[1, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    assert (masks[0, :4] == masks[0, 4:]).all()
    assert (masks[1, :7] == masks[0, 1:]).all()
    assert (masks.reshape(4, 2, 4, 16).sum(2) == 2).all()  # in any 4 frames every position is decoded twice
    walk = patterns((4, 2, 2), 0.25)[0].reshape(4, 4)
    assert [int(m.argmax()) for m in walk] == [3, 2, 1, 0]
