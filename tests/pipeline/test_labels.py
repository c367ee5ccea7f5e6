import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import labels
from pipeline.labels import Labels
from pipeline.storage.manifest import Manifest
from tests.manifest_rows import row, write_rows

NAMES = ["zumba", "archery", "élan", "Zorro"]


def opened(folder: Path, *named: str | None, split: str = "train", version: int | None = None) -> Manifest:
    write_rows(folder, [row(i, label=label, split=split) for i, label in enumerate(named)])
    return Manifest(folder, version)


def test_a_label_is_a_place_among_the_sorted_classes(tmp_path: Path) -> None:
    manifest = opened(tmp_path, "zumba", None, "élan", "archery", "Zorro", "zumba")
    found = Labels(manifest, "train")
    assert (found.kind, found.names, found.unknown) == ("single", ["Zorro", "archery", "zumba", "élan"], 0)  # by bytes
    assert found.of(np.array([5, 1, 2, 0])).tolist() == [2, -1, 3, 2]
    assert found.of(np.array([1])).dtype == np.int64
    opened(tmp_path, "zumba", None, "élan", "archery", "Zorro", "zumba", "a new class")
    assert Labels(Manifest(tmp_path, 1), "train").names == found.names
    assert Labels(Manifest(tmp_path), "train").names == ["Zorro", "a new class", *found.names[1:]]


def test_an_official_order_comes_first(tmp_path: Path) -> None:
    manifest = opened(tmp_path, "zumba", "archery", "élan")
    for name, content in (("made-up", ["zumba", "never seen"]), ("k400", ["archery", "zumba"]), ("other", ["not of this"])):
        (tmp_path / f"label_map_{name}.json").write_text(json.dumps(content))
    found = Labels(manifest, "train")
    assert found.names == ["zumba", "never seen", "archery", "élan"]
    assert found.of(np.arange(3)).tolist() == [0, 2, 3]
    (tmp_path / "label_map_made-up.json").write_text('{"zumba": 1}')
    with pytest.raises(ValueError, match=r"label_map_made-up.json is no label map: a list of at least one class name"):
        Labels(manifest, "train")


def test_labels_are_looked_up_in_the_map_that_is_given(tmp_path: Path) -> None:
    manifest = opened(tmp_path, "zumba", "archery", None, "élan", "élan", split="val")
    (tmp_path / "run.json").write_text(json.dumps(["archery", "Zorro", "zumba"]))
    for given in (["archery", "Zorro", "zumba"], tmp_path / "run.json"):
        found = Labels(manifest, "val", given)
        assert found.of(np.arange(5)).tolist() == [2, 0, -1, -1, -1]
        assert (found.unknown, found.example, len(found.names)) == (2, "élan", 3)
    for wrong, words in (([], "at least one"), (["a", "b", "a"], "names 'a' twice"), ([1], "class name")):
        with pytest.raises(ValueError, match=words):
            Labels(manifest, "val", wrong)  # type: ignore[arg-type]


def test_a_clip_may_show_several_classes(tmp_path: Path) -> None:
    found = Labels(opened(tmp_path, '["wave", "clap"]', "clap", None, "[]", "[odd"), "train")
    assert (found.kind, found.names) == ("multi", ["[odd", "clap", "wave"])
    shown = found.of(np.array([0, 1, 2, 3, 4]))
    assert shown.dtype == np.bool_
    assert shown.tolist() == [[False, True, True], [False, True, False], [False] * 3, [False] * 3, [True, False, False]]


def test_no_labels_and_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, named in (("none", [None] * 3), ("captions", ["a dog", "two dogs", "a cat on a dog"])):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(labels, "MOST_CLASSES", 2)
        found = Labels(opened(tmp_path / name, *named), "train")
        assert (found.kind, found.names, found.unknown) == ("none", [], 0)
        assert found.of(np.arange(3)).tolist() == [-1, -1, -1]
