from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.plan import DROPPED_SCHEMA, REQUEST_SCHEMA
from dataset_builders.sources import frames


def test_every_folder_of_images_is_a_clip(tmp_path: Path) -> None:
    touch(tmp_path / "empty")
    touch(tmp_path / "run" / "a", *(f"img_{number:05d}.jpg" for number in range(1, 31)), "flow_x_00001.jpg")
    touch(tmp_path, "run/b/0.png", "run/b/1.png", "run/b/5.png", "thumbnails/x.mp4", "thumbnails/x.jpg", "thumbnails/y.jpg")
    touch(tmp_path, b"walk/latin\xe9/image_000007.JPG", b"walk/latin\xe9/image_000008.jpeg", "readme.txt")
    planned = frames.plan("own", folder=tmp_path, rate=25, split="val", labels_from_folder=True)
    assert planned.requests.schema == REQUEST_SCHEMA
    assert planned.dropped.schema == DROPPED_SCHEMA
    columns = ("path", "kind", "split", "label", "seconds", "rate", "first_frame", "num_images", "sampling")
    assert [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()] == [
        (b"run/a", "frames", "val", "run", 1.2, 25.0, None, None, "seconds:0.133333"),
        (b"run/b", "frames", "val", "run", 0.12, 25.0, None, None, "seconds:0.133333"),
        (b"walk/latin\xe9", "frames", "val", "walk", 0.08, 25.0, None, None, "seconds:0.133333"),
    ]
    assert [(row["reason"], row["path"], row["detail"]) for row in planned.dropped.to_pylist()] == [
        ("not_listed", b"readme.txt", "is no image"),
        ("not_listed", b"thumbnails", "its 2 images lie beside 1 videos, and are no frames"),
        ("not_listed", b"thumbnails/x.mp4", "is no image"),
    ]
    counts = {"found": 3, "images": 35, "not_listed": 3, "with gaps in their numbers": 1, "images passed over": 1}
    assert planned.counts == counts
    assert frames.plan("own", folder=tmp_path, rate=25).requests["label"].null_count == 3


def test_the_folder_itself_can_be_the_clip(tmp_path: Path) -> None:
    planned = frames.plan("own", folder=touch(tmp_path / "clip", "1.jpg", "2.jpg"), rate=10, labels_from_folder=True)
    assert [(row["path"], row["label"], row["seconds"]) for row in planned.requests.to_pylist()] == [(b".", None, 0.2)]


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 1e6])
def test_impossible_rates(tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match="source own: frames at rate"):
        frames.plan("own", folder=tmp_path, rate=rate)


def test_real_frames(shared: Path) -> None:
    folder = shared / "clips" / "derived" / "ucf101_rawframes"
    planned = frames.plan("ucf", folder=folder, rate=25, labels_from_folder=True)
    assert planned.counts == {"found": 1, "images": 25, "with gaps in their numbers": 0, "images passed over": 0}
    (row,) = planned.requests.to_pylist()
    assert (row["path"], row["label"], row["seconds"]) == (b"ApplyEyeMakeup/v_000001", "ApplyEyeMakeup", 1.0)
