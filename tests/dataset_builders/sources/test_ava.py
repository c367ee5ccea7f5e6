from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.plan import REQUEST_SCHEMA, expected_clips
from dataset_builders.sources import ava

ROWS = """_-Z6wFjXtGQ,0902,0.063,0.049,0.524,0.996,12,0
-5KQ66BBWC4,0902,0.031,0.162,0.670,0.995,12,0
-5KQ66BBWC4,0903,0.031,0.162,0.670,0.995,17,0
label,youtube_id,time_start
gone,1000,0.1,0.1,0.2,0.2,1,0
../up,1000,0.1,0.1,0.2,0.2,1,0
frames,1000,0.1,0.1,0.2,0.2,1,0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(ROWS)
    (tmp_path / "names.txt").write_text("_-Z6wFjXtGQ.mkv\n-5KQ66BBWC4.mp4\nvalidation.webm\nnoextension\n")
    names = ("_-Z6wFjXtGQ.mkv", "sub/-5KQ66BBWC4.mp4", "validation.webm", "other.mp4", "sub/frames/image_000001.jpg")
    return touch(tmp_path / "movies", *names)


@pytest.mark.parametrize(("trimmed", "start", "end"), [(False, 900.0, 1800.0), (True, 0.0, 900.0)])
def test_a_request_for_each_training_movie(folder: Path, tmp_path: Path, trimmed: bool, start: float, end: float) -> None:
    names = tmp_path / "names.txt"
    planned = ava.plan("ava", folder=folder, train=tmp_path / "train.csv", file_names=names, trimmed=trimmed)
    assert planned.requests.schema == REQUEST_SCHEMA
    columns = ("path", "kind", "split", "source_id", "start", "end", "rate", "clip_frames", "sampling")
    assert [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()] == [
        (b"_-Z6wFjXtGQ.mkv", "video", "train", "_-Z6wFjXtGQ", start, end, 30.0, 300, "stride:4"),
        (b"sub/-5KQ66BBWC4.mp4", "video", "train", "-5KQ66BBWC4", start, end, 30.0, 300, "stride:4"),
        (b"sub/frames", "frames", "train", "frames", None, None, 30.0, 300, "stride:4"),
    ]
    assert [(row["reason"], row["source_id"] or row["path"]) for row in planned.dropped.to_pylist()] == [
        ("malformed", None),
        ("malformed", None),
        ("malformed", None),
        ("no_file", "gone"),
        ("not_listed", b"other.mp4"),
    ]
    assert planned.dropped["detail"][0].as_py().startswith(f"{tmp_path}/train.csv:4: 'label,youtube_id,time_start' is neither")
    assert planned.dropped["detail"][2].as_py() == f"{names}:4: 'noextension' is no name of a file"
    assert planned.counts == {
        "listed": 7,
        "found": 3,
        "no_file": 1,
        "not_listed": 1,
        "malformed": 3,
        "of other splits": 1,
        "clips at most": 270,
    }
    assert expected_clips(planned.requests, 60).to_pylist() == [90, 90, 90]


def test_the_papers_21150_clips(tmp_path: Path) -> None:
    """235 movies of 15 minutes at 30 frames per second."""
    movies = [f"{'-_x'[number % 3]}{number:010d}" for number in range(235)]
    (tmp_path / "train.csv").write_text("".join(f"{movie},0902,0,0,1,1,12,0\n" * 3 for movie in movies))
    folder = touch(tmp_path / "movies", *(f"{movie}.mkv" for movie in movies))
    planned = ava.plan("ava", folder=folder, train=tmp_path / "train.csv")
    assert planned.counts == {"listed": 235, "found": 235, "clips at most": 21_150}
    assert sum(expected_clips(planned.requests, 60).to_pylist()) == 21_150


def test_an_empty_list_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("\n")
    with pytest.raises(ValueError, match=r"no movie in .*train\.csv; the file ava_train_v2\.2\.csv"):
        ava.plan("ava", folder=folder, train=tmp_path / "train.csv")


def test_real_annotations(shared: Path) -> None:
    like, files = shared / "clips" / "derived" / "ava_like", shared / "annotations" / "ava"
    train, names = like / "ava_train_v2.2.csv", like / "ava_file_names_trainval_v2.1.txt"
    planned = ava.plan("ava", folder=like / "videos", train=train, file_names=names, trimmed=True)
    assert planned.requests["path"].to_pylist() == [b"ut_canvas_00.mp4", b"ut_canvas_01.mp4", b"ut_canvas_02.mp4"]
    assert planned.counts == {"listed": 3, "found": 3, "clips at most": 270}

    names = files / "ava_file_names_trainval_v2.1.txt"
    planned = ava.plan("ava", folder=like / "videos", train=files / "mmaction2_ava_sample.csv", file_names=names)
    assert planned.counts == {"listed": 2, "found": 0, "no_file": 2, "not_listed": 3, "clips at most": 0}
    assert [row for row in planned.dropped["source_id"].to_pylist() if row] == ["0f39OWEqJ24", "_-Z6wFjXtGQ"]
    assert ava.plan("ava", folder=like / "videos", train=files / "ava_test_v2.2.txt").counts["listed"] == 131
    assert ava.plan("ava", folder=like / "videos", train=files / "ava_val_v2.2_sample.csv").counts["listed"] == 1


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_lists_that_spreadsheets_saved(folder: Path, tmp_path: Path, mark: str) -> None:
    rows = ["-5KQ66BBWC4", "902.0", "0.031", "0.162", "0.670", "0.995", "12", "0"]
    (tmp_path / "train.csv").write_text("\ufeff" + mark.join(f'"{cell}"' for cell in rows) + "\r\n")
    planned = ava.plan("ava", folder=folder, train=tmp_path / "train.csv")
    assert planned.requests["source_id"].to_pylist() == ["-5KQ66BBWC4"]
    assert not planned.notes and "malformed" not in planned.counts
