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


def test_captions_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"caption {number} of many" for number in range(81)]
    said = [{"captions": many}, {"caption": "漢字\ud83d שלום"}, {"name": ["", 3, "x" * 70_000]}, [1], "text"]
    monkeypatch.setattr("pipeline.captions.ROWS", 2)  # rows that are read at once
    write_rows(tmp_path, [row(i, extra=json.dumps(extra)) for i, extra in enumerate(said)])
    manifest = Manifest(tmp_path)
    found = [many, ["漢字\ufffd שלום"], ["x" * 70_000], [], []]
    assert [Captions(manifest).of(i) for i in range(5)] == found
    monkeypatch.setattr("pipeline.captions._write", lambda *_: pytest.fail("read once more"))
    again = Captions(Manifest(tmp_path))
    assert [again.of(i) for i in range(5)] == found and again.counts(np.arange(5)).tolist() == [81, 1, 1, 0, 0]
    with pytest.raises(pytest.fail.Exception):
        Captions(manifest, ["name"])  # which are others
    assert not [*(tmp_path / ".cache").glob("*.tmp")]


def test_clips_that_were_added_later_have_theirs(tmp_path: Path) -> None:
    rows = [row(i, extra=json.dumps({"caption": f"clip {i}"})) for i in range(5)]
    write_rows(tmp_path, rows[:3])
    write_rows(tmp_path, rows)
    first, second = (Captions(Manifest(tmp_path, version)) for version in (1, 2))
    assert second.of(4) == ["clip 4"] and len(second.counts(np.arange(5))) == 5
    assert first.of(2) == ["clip 2"]
    with pytest.raises(IndexError):
        first.counts(np.array([4]))


def test_extra_that_is_no_json_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, [row(0), row(1, extra="{'caption': 1}")])
    with pytest.raises(ValueError, match=r"manifest\.parquet: `extra` of row 1 is no JSON .*'caption'"):
        Captions(Manifest(tmp_path))
    assert [file.suffix for file in (tmp_path / ".cache").iterdir()] == [".arrow"]  # the manifest's


def test_which_caption_is_taken_hangs_on_the_position_alone() -> None:
    recipe = SamplingRecipe(views_per_step=8, views_per_clip=1, masks=None)
    positions, counts = np.arange(20_000), np.full(20_000, 5)
    taken = Draws(recipe, 3, positions).captions(counts)
    assert np.bincount(taken, minlength=5) / 4000 == pytest.approx(1, abs=0.06)
    assert (Draws(recipe, 3, positions[1::2]).captions(counts[1::2]) == taken[1::2]).all()  # a rank's
    assert (Draws(recipe, 4, positions).captions(counts) != taken).any()
    assert not Draws(recipe, 3, positions).captions(np.ones_like(counts)).any()
