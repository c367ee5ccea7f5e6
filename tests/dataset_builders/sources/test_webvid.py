import json
from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.plan import DROPPED_SCHEMA, REQUEST_SCHEMA
from dataset_builders.sources import webvid

HEADER = "videoid,name,page_idx,page_dir,duration,contentUrl\n"


def write_list(path: Path, ids: list[int], duration: str = "PT00H01M05S") -> Path:
    rows = [f'{video},"Red, ""quoted"" and\nlong",1,000001_000050,{duration},https://example.invalid/x.mp4\n' for video in ids]
    path.write_text(HEADER + "".join(rows))
    return path


def make_videos(folder: Path, ids: list[int]) -> Path:
    return touch(folder, *(f"000001_000050/{video}.mp4" for video in ids))


def test_rows_with_files_are_taken(tmp_path: Path) -> None:
    train, val = write_list(tmp_path / "train.csv", [5, 3, 4, 3, 9]), write_list(tmp_path / "val.csv", [9, 8])
    folder = make_videos(tmp_path / "videos", [1, 3, 5, 9])
    (folder / "3.webm").touch()
    planned = webvid.plan("webvid", folder=folder, train=train, val=val)
    assert planned.requests.schema == REQUEST_SCHEMA
    assert planned.dropped.schema == DROPPED_SCHEMA
    extra = {"name": 'Red, "quoted" and\nlong', "page_dir": "000001_000050", "contentUrl": "https://example.invalid/x.mp4"}
    assert [json.loads(text) for text in planned.requests["extra"].to_pylist()] == [extra] * 3
    columns = ("path", "split", "source_id", "seconds", "label")
    assert [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()] == [
        (b"000001_000050/5.mp4", "train", "5", 65.0, None),
        (b"000001_000050/3.mp4", "train", "3", 65.0, None),
        (b"000001_000050/9.mp4", "val", "9", 65.0, None),
    ]
    assert [(row["reason"], row["source_id"] or row["path"]) for row in planned.dropped.to_pylist()] == [
        ("duplicate", "3"),
        ("leak", "9"),
        ("duplicate", b"3.webm"),
        ("not_listed", b"000001_000050/1.mp4"),
    ]
    assert planned.counts == {
        "listed": 7,
        "found": 3,
        "chosen": 3,
        "not_chosen": 0,
        "no_file": 2,
        "not_listed": 1,
        "duplicate": 2,
        "leak": 1,
    }
    assert planned.notes == ("webvid: 250,000 training videos were asked for and 2 are there: 249,998 fewer",)
    assert webvid.plan("webvid", folder=folder, train=train, val=val, splits=("train",)).counts["chosen"] == 2


def test_the_choice_is_by_seed_and_grows_with_the_folder(tmp_path: Path) -> None:
    ids = list(range(1000, 2000))
    train, folder = write_list(tmp_path / "train.csv", ids), make_videos(tmp_path / "videos", ids[:900])

    def chosen(seed: int) -> list[str]:
        planned = webvid.plan("webvid", folder=folder, train=train, val=None, number=100, seed=seed)
        assert planned.counts["chosen"] == 100
        assert planned.counts["chosen"] + planned.counts["not_chosen"] + planned.counts["no_file"] == 1000
        return planned.requests["source_id"].to_pylist()

    before = chosen(0)
    assert before == sorted(before) == chosen(0)
    assert chosen(1) != before
    write_list(train, ids[::-1])  # another order of the list is the same choice, in that order
    assert chosen(0) == before[::-1]
    make_videos(folder, ids)
    after = set(chosen(0))
    assert after - set(before) <= {str(video) for video in ids[900:]}
    assert len(after & set(before)) > 70


def test_rows_that_cannot_be_understood(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_bytes(
        HEADER.encode()
        + b"1,caf\xe9,2,3,PT00H00M17S,u\n2,short\n\xff,x,2,3,PT00H00M17S,u\n../4,x,2,3,nonsense,u\n5,x,2,3,soon,u\n"
    )
    planned = webvid.plan("webvid", folder=make_videos(tmp_path / "videos", [1, 2, 5]), train=train, number=None)
    assert planned.requests["source_id"].to_pylist() == ["1", "5"]
    assert planned.requests["seconds"].to_pylist() == [17.0, None]
    assert [row["detail"] for row in planned.dropped.to_pylist() if row["reason"] == "malformed"] == [
        f"{train}:3: 2 columns instead of 6: '2,short'",
        f"{train}:4: videoid b'\\xff' is no id",
        f"{train}:5: videoid b'../4' is no id",
    ]
    assert planned.notes == ()


def test_other_orders_and_missing_columns(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_text("contentUrl,videoid,page_dir\nhttps://example.invalid/1.mp4,1,a\n")
    planned = webvid.plan("webvid", folder=make_videos(tmp_path / "videos", [1]), train=train)
    assert planned.requests["seconds"].to_pylist() == [None]


def test_errors(tmp_path: Path) -> None:
    train, empty = write_list(tmp_path / "train.csv", [1]), tmp_path / "empty.csv"
    empty.touch()
    with pytest.raises(ValueError, match="none of the annotation files"):
        webvid.plan("webvid", folder=tmp_path)
    with pytest.raises(ValueError, match="number 0"):
        webvid.plan("webvid", folder=tmp_path, train=train, number=0)
    with pytest.raises(ValueError, match=r"nowhere\.csv cannot be read: No such file"):
        webvid.plan("webvid", folder=tmp_path, train=tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"empty\.csv: is no CSV list of videos: Empty CSV file"):
        webvid.plan("webvid", folder=tmp_path, train=empty)
    empty.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"empty\.csv: has no column videoid"):
        webvid.plan("webvid", folder=tmp_path, train=empty)


def test_real_annotations(shared: Path) -> None:
    like = shared / "clips" / "derived" / "webvid_like"
    planned = webvid.plan("webvid", folder=like / "videos", train=like / "results_2M_val_like.csv")
    assert planned.counts == {"listed": 9, "found": 2, "chosen": 2, "not_chosen": 0, "no_file": 7}
    assert planned.requests["source_id"].to_pylist() == ["9000000006", "9000000007"]
    assert planned.requests["seconds"].to_pylist() == [4.0, 7.0]
    real = shared / "annotations" / "webvid" / "test_webvid.csv"
    planned = webvid.plan("webvid", folder=like / "videos", train=real)
    assert planned.counts == {"listed": 20, "found": 0, "chosen": 0, "not_chosen": 0, "no_file": 20, "not_listed": 2}
    rows, malformed = webvid._read(real, "train")
    assert not malformed
    assert sorted(rows["seconds"].to_pylist())[-2:] == [35.0, 60.0]
