import os
import re
from pathlib import Path

from dataset_builders.folder import clip_key, list_files

NAMES = [b"plain.mp4", b".hidden", b"noextension", b"-i.mp4", b"%04d.mp4", b"line\nbreak", b"latin\xe9.mp4", "é.mp4".encode()]


def test_every_file_is_listed_once_in_a_fixed_order(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    for directory in (b"", b"deep/er", b".hidden-folder"):
        os.makedirs(os.path.join(root, directory), exist_ok=True)
        for name in NAMES:
            Path(os.fsdecode(os.path.join(root, directory, name))).touch()
    expected = sorted(os.path.join(directory, name) for directory in (b"", b"deep/er", b".hidden-folder") for name in NAMES)
    assert list_files(root) == expected


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    (folder / "a").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "video").touch()
    (folder / "a" / "file").touch()
    (folder / "a" / "up").symlink_to(folder)  # a loop
    (folder / "b").symlink_to(folder / "a")  # a second way to the same files
    (folder / "far").symlink_to(elsewhere)
    (folder / "link").symlink_to(elsewhere / "video")
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "self").symlink_to("self")
    os.mkfifo(folder / "pipe")
    assert list_files(os.fsencode(folder)) == [b"a/file", b"broken", b"far/video", b"link", b"self"]


def test_the_dataset_inside_the_folder_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "dataset" / "shards").mkdir(parents=True)
    (tmp_path / "dataset" / "shards" / "x.tar").touch()
    (tmp_path / "video").touch()
    assert list_files(os.fsencode(tmp_path), exclude=os.fsencode(tmp_path / "dataset")) == [b"video"]


def test_keys_are_safe_readable_and_distinct() -> None:
    paths = [*NAMES, b"a/plain.mp4", b"dots..in...name.mp4", b"a" * 240 + b".mp4", "прыжок_人物.mp4".encode()]
    keys = [clip_key("source", path) for path in paths]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{10,71}", key) for key in keys)
    assert len(set(keys)) == len(keys)
    assert keys[0].startswith("plain-")
    assert clip_key("other", paths[0]) != keys[0]
    # part of what a dataset is: the same on every machine and in every version
    assert clip_key("videos", b"folder/clip 1.mp4") == "clip-1-" + clip_key("videos", b"folder/clip 1.mp4")[-10:]
    assert clip_key("videos", b"folder/clip 1.mp4")[-10:] == "2712ac4e38"
