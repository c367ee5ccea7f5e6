from pathlib import Path

import pytest

from dataset_builders.sources import hmdb51


def test_a_split(tmp_path: Path) -> None:
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    lists.mkdir()
    (lists / "climb_test_split1.txt").write_text("a_climb_#1!_0.avi 1 \nb_climb_0.avi 2 \nc_climb_0.avi 0 \nd_climb_0.avi 3 \n")
    (lists / "climb_stairs_test_split1.txt").write_text("a_climb_stairs_0.avi 2 \ngone.avi 1 \n")
    (lists / "climb_test_split2.txt").write_text("a_climb_#1!_0.avi 2 \n")
    for name in ("climb/a_climb_#1!_0.avi", "climb/b_climb_0.mp4", "climb/c_climb_0.avi", "a_climb_stairs_0/1.png"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    planned = hmdb51.plan("hmdb", folder=videos, annotations=lists)
    columns = ("path", "kind", "split", "label", "rate", "sampling")
    assert [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()] == [
        (b"climb/a_climb_#1!_0.avi", "video", "train", "climb", None, "stride:2"),
        (b"climb/b_climb_0.mp4", "video", "test", "climb", None, "stride:2"),
        (b"a_climb_stairs_0", "frames", "test", "climb_stairs", 30.0, "stride:2"),
    ]
    assert planned.counts == {"listed": 5, "found": 3, "no_file": 1, "malformed": 1, "of other splits": 1}
    assert planned.files == {"label_map_hmdb.json": ["climb", "climb_stairs"]}
    with pytest.raises(ValueError, match=r"there is no file CLASS_test_split3\.txt in"):
        hmdb51.plan("hmdb", folder=videos, annotations=lists, number=3)
    with pytest.raises(ValueError, match="split 0 of HMDB51 does not exist"):
        hmdb51.plan("hmdb", folder=videos, annotations=lists, number=0)


def test_real_annotations(shared: Path, tmp_path: Path) -> None:
    """70 for training and 30 for testing of each class; three of the 51 classes are in the excerpt."""
    planned = hmdb51.plan("hmdb", folder=tmp_path, annotations=shared / "annotations" / "hmdb51")
    assert planned.counts == {"listed": 300, "found": 0, "no_file": 300}
    splits = planned.dropped["split"].to_pylist()
    assert (splits.count("train"), splits.count("test")) == (210, 90)
    assert planned.files["label_map_hmdb.json"] == ["brush_hair", "cartwheel", "wave"]
