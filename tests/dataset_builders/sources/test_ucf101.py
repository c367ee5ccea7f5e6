from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.plan import REQUEST_SCHEMA
from dataset_builders.sources import ucf101


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "classInd.txt").write_bytes(b"1 Archery\r\n2 YoYo\r\n")
    (folder / "trainlist02.txt").write_bytes(
        b"Archery/v_Archery_g08_c01.avi 1\r\nYoYo/v_YoYo_g08_c01.avi 1\r\nYoYo/v_YoYo_g09_c01.avi 2\r\nJuggling/x.avi 3\r\n\r\n"
        b"YoYo/v_YoYo_g01_c01.avi 2\r\n"
    )
    (folder / "testlist02.txt").write_bytes(b"YoYo/v_YoYo_g01_c01.avi\r\nArchery/v_Archery_g01_c01.avi 1\r\n")
    return folder


def test_a_split(lists: Path, tmp_path: Path) -> None:
    names = ("Archery/v_Archery_g08_c01.avi", "v_YoYo_g01_c01.mp4", "YoYo/v_YoYo_g09_c01/i_0001.jpg", "YoYo/other.avi")
    videos = touch(tmp_path / "videos", *names)
    planned = ucf101.plan_ucf101("ucf", folder=videos, annotations=lists, number=2)
    assert planned.requests.schema == REQUEST_SCHEMA
    columns = ("path", "kind", "split", "label", "rate")
    assert [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()] == [
        (b"Archery/v_Archery_g08_c01.avi", "video", "train", "Archery", None),
        (b"YoYo/v_YoYo_g09_c01", "frames", "train", "YoYo", 25.0),
        (b"v_YoYo_g01_c01.mp4", "video", "test", "YoYo", None),
    ]
    assert planned.counts == {"listed": 7, "found": 3, "not_listed": 1, "leak": 1, "malformed": 3}
    assert planned.dropped["detail"][0].as_py() == (
        f"{lists}/trainlist02.txt:2: 'YoYo/v_YoYo_g08_c01.avi 1' is not CLASS/NAME.avi NUMBER, "
        "with class and number as in classInd.txt"
    )
    assert planned.files == {"label_map_ucf.json": ["Archery", "YoYo"]}


def test_errors(lists: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split 4 of UCF101 does not exist"):
        ucf101.plan_ucf101("ucf", folder=tmp_path, annotations=lists, number=4)
    with pytest.raises(ValueError, match=r"trainlist01\.txt cannot be read"):
        ucf101.plan_ucf101("ucf", folder=tmp_path, annotations=lists)
    for wrong in ("2 YoYo\n", "", "1 Archery\n3 YoYo\n", "1 Yo Yo\n"):
        (lists / "classInd.txt").write_text(wrong)
        with pytest.raises(ValueError, match=r"classInd\.txt: "):
            ucf101.plan_ucf101("ucf", folder=tmp_path, annotations=lists, number=2)


def test_real_annotations(shared: Path, tmp_path: Path) -> None:
    touch(tmp_path, "YoYo/v_YoYo_g25_c05.avi")
    planned = ucf101.plan_ucf101("ucf", folder=tmp_path, annotations=shared / "annotations" / "ucf101")
    assert planned.counts == {"listed": 9537 + 3783, "found": 1, "no_file": 13_319}
    assert len(planned.files["label_map_ucf.json"]) == 101
    assert planned.requests["label"].to_pylist() == ["YoYo"]


def test_a_split_of_hmdb51(tmp_path: Path) -> None:
    lists = touch(tmp_path / "lists")
    (lists / "climb_test_split1.txt").write_text("a_climb_#1!_0.avi 1 \nb_climb_0.avi 2 \nc_climb_0.avi 0 \nd_climb_0.avi 3 \n")
    (lists / "climb_stairs_test_split1.txt").write_text("a_climb_stairs_0.avi 2 \ngone.avi 1 \n")
    (lists / "climb_test_split2.txt").write_text("a_climb_#1!_0.avi 2 \n")
    names = ("climb/a_climb_#1!_0.avi", "climb/b_climb_0.mp4", "climb/c_climb_0.avi", "a_climb_stairs_0/1.png")
    videos = touch(tmp_path / "videos", *names)
    planned = ucf101.plan_hmdb51("hmdb", folder=videos, annotations=lists)
    columns = ("path", "kind", "split", "label", "rate", "sampling")
    assert [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()] == [
        (b"climb/a_climb_#1!_0.avi", "video", "train", "climb", None, "stride:2"),
        (b"climb/b_climb_0.mp4", "video", "test", "climb", None, "stride:2"),
        (b"a_climb_stairs_0", "frames", "test", "climb_stairs", 30.0, "stride:2"),
    ]
    assert planned.counts == {"listed": 5, "found": 3, "no_file": 1, "malformed": 1, "of other splits": 1}
    assert planned.files == {"label_map_hmdb.json": ["climb", "climb_stairs"]}
    with pytest.raises(ValueError, match=r"there is no file CLASS_test_split3\.txt in"):
        ucf101.plan_hmdb51("hmdb", folder=videos, annotations=lists, number=3)
    with pytest.raises(ValueError, match="split 0 of HMDB51 does not exist"):
        ucf101.plan_hmdb51("hmdb", folder=videos, annotations=lists, number=0)


def test_real_annotations_of_hmdb51(shared: Path, tmp_path: Path) -> None:
    """70 for training and 30 for testing of each class; three of the 51 classes are in the excerpt."""
    planned = ucf101.plan_hmdb51("hmdb", folder=tmp_path, annotations=shared / "annotations" / "hmdb51")
    assert planned.counts == {"listed": 300, "found": 0, "no_file": 300}
    splits = planned.dropped["split"].to_pylist()
    assert (splits.count("train"), splits.count("test")) == (210, 90)
    assert planned.files["label_map_hmdb.json"] == ["brush_hair", "cartwheel", "wave"]


def test_tabs_quotes_and_backslashes(lists: Path, tmp_path: Path) -> None:
    (lists / "trainlist02.txt").write_text('Archery\\v_Archery_g08_c01.avi\t1\n"YoYo/v_YoYo_g08_c01.avi",2\n')
    videos = touch(tmp_path / "videos", "v_Archery_g08_c01.avi", "v_YoYo_g08_c01.avi", "a_climb_0.avi")
    planned = ucf101.plan_ucf101("ucf", folder=videos, annotations=lists, number=2)
    assert planned.requests["label"].to_pylist() == ["Archery", "YoYo"]
    (lists / "climb_test_split1.txt").write_text("a_climb_0.avi\t1\r\n")
    assert ucf101.plan_hmdb51("hmdb", folder=videos, annotations=lists).requests["label"].to_pylist() == ["climb"]
    (lists / "climb_test_split1.txt").write_text("a_climb_0.avi,7\n")
    (note,) = ucf101.plan_hmdb51("hmdb", folder=videos, annotations=lists).notes
    assert "nothing that can be read" in note and "'a_climb_0.avi,7' is not" in note
