import os
from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.sources.folder import list_files, plan
from dataset_builders.sources.listing import list_videos

NAMES = [b"plain.mp4", b".hidden", b"noextension", b"-i.mp4", b"%04d.mp4", b"line\nbreak", b"latin\xe9.mp4", "é.mp4".encode()]


def test_every_file_is_listed_once_in_a_fixed_order(tmp_path: Path) -> None:
    expected = [os.path.join(directory, name) for directory in (b"", b"deep/er", b".hidden-folder") for name in NAMES]
    assert list_files(os.fsencode(touch(tmp_path, *expected))) == sorted(expected)


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    touch(tmp_path, "folder/a/file", "elsewhere/video")
    (folder / "a" / "up").symlink_to(folder)  # a loop
    (folder / "b").symlink_to(folder / "a")  # a second way to the same files
    (folder / "far").symlink_to(elsewhere)
    (folder / "link").symlink_to(elsewhere / "video")
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "self").symlink_to("self")
    os.mkfifo(folder / "pipe")
    assert list_files(os.fsencode(folder)) == [b"a/file", b"broken", b"far/video", b"link", b"self"]


def test_no_link_leads_to_what_nobody_named(tmp_path: Path) -> None:
    touch(tmp_path, "home/letters/private", "home/videos/a.mp4")
    folder = tmp_path / "home" / "videos"
    for name, target in (("up", ".."), ("z:", "/"), ("proc", "/proc"), ("beside", "../letters")):
        (folder / name).symlink_to(target)
    assert list_files(os.fsencode(folder)) == [b"a.mp4", b"beside/private"]


def test_folders_that_look_like_splits_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "Validation/run/b.mp4")
    (note,) = plan("own", folder=tmp_path).notes
    assert "Validation, train are all taken for the split train" in note and "own:val=FOLDER/Validation" in note
    assert not plan("own", folder=tmp_path / "train").notes


def test_the_dataset_inside_the_folder_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "dataset/shards/x.tar", "video")
    assert list_files(os.fsencode(tmp_path)) == [b"dataset/shards/x.tar", b"video"]
    touch(tmp_path, "dataset/.build/lock")
    assert list_files(os.fsencode(tmp_path)) == [b"video"]
    assert list_videos(os.fsencode(tmp_path), lambda parent, name: False).paths == [b"video"]  # every source


def test_labels_from_folders(tmp_path: Path) -> None:
    touch(tmp_path, "zumba/a.mp4", "yoga/deep/b.mp4", "c.mp4")
    requests = plan("own", folder=tmp_path, labels_from_folder=True).requests.to_pylist()
    assert [(row["path"], row["label"]) for row in requests] == [
        (b"c.mp4", None),
        (b"yoga/deep/b.mp4", "deep"),
        (b"zumba/a.mp4", "zumba"),
    ]
    assert plan("own", folder=tmp_path).requests["label"].null_count == 3
    with pytest.raises(ValueError, match="source own: there is no folder"):
        plan("own", folder=tmp_path / "nowhere")
