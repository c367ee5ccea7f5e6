"""Captions of a dataset, and which of a clip's is taken at a position."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.captions import Captions
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.draws import Draws
from pipeline.storage.manifest import Manifest
from tests.manifest_rows import row, write_rows


def test_the_first_field_that_a_clip_has_counts(tmp_path: Path) -> None:
    said = [{"captions": ["a", " b ", "a", ""], "name": "c"}, {"name": "c"}, {"captions": [], "caption": "d"}, {"licence": "x"}]
    extras = [*map(json.dumps, said), None]
    write_rows(tmp_path, [row(i, extra=extra) for i, extra in enumerate(extras)])
    found = Captions(Manifest(tmp_path))
    assert [found.of(i) for i in range(5)] == [["a", "b"], ["c"], ["d"], [], []]
    assert found.counts(np.array([4, 0, 1])).tolist() == [0, 2, 1]
    assert Captions(Manifest(tmp_path), ["name"]).of(0) == ["c"]
    with pytest.raises(ValueError, match="at least one field"):
        Captions(Manifest(tmp_path), [])


def test_which_caption_is_taken_hangs_on_the_position_alone() -> None:
    recipe = SamplingRecipe(views_per_step=8, views_per_clip=1, masks=None)
    positions, counts = np.arange(20_000), np.full(20_000, 5)
    taken = Draws(recipe, 3, positions).captions(counts)
    assert np.bincount(taken, minlength=5) / 4000 == pytest.approx(1, abs=0.06)
    assert (Draws(recipe, 3, positions[1::2]).captions(counts[1::2]) == taken[1::2]).all()  # a rank's
    assert (Draws(recipe, 4, positions).captions(counts) != taken).any()
    assert not Draws(recipe, 3, positions).captions(np.ones_like(counts)).any()
