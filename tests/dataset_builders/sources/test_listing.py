import os
from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.sources.folder import list_files
from dataset_builders.sources.listing import Listing, existing_folder, list_videos, match, stems


def test_listed_folders_of_frames_are_one_video_each(tmp_path: Path) -> None:
    touch(tmp_path, b"a.webm", b"b/1.jpg", b"b/2.jpg", b"c/b/d.webm", b"c/x.txt", b"e/1.png", b"e/f/g.mp4", b"latin\xe9/1.jpg")
    (tmp_path / "empty").mkdir()
    listing = list_videos(os.fsencode(tmp_path), lambda parent, name: name in (b"b", b"empty", b"latin\xe9"))
    # c/b is a folder of videos in spite of its name; e is a folder of frames that nobody asked for
    assert listing.paths[: listing.num_files] == [b"a.webm", b"c/b/d.webm", b"c/x.txt", b"e/f/g.mp4"]
    assert listing.paths[listing.num_files :] == [b"b", b"e", b"latin\xe9"]


def test_listing_without_images_is_that_of_a_plain_folder(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    touch(tmp_path, b"elsewhere/video", b"folder/a/file", b"folder/b.mp4", b"folder/line\nbreak")
    (folder / "a" / "up").symlink_to(folder)  # a loop
    (folder / "c").symlink_to(folder / "a")
    (folder / "far").symlink_to(elsewhere)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "self").symlink_to("self")
    os.mkfifo(folder / "pipe")
    listing = list_videos(os.fsencode(folder), lambda parent, name: False)
    assert listing.paths == list_files(os.fsencode(folder))
    assert b"pipe" not in listing.paths
    assert b"broken" in listing.paths
    assert list_videos(os.fsencode(folder)) == listing


def test_stems_keep_all_but_the_last_extension_of_files() -> None:
    paths = [b"a/b.c/d.e.mp4", b"x/.hidden", b"noextension", b"-id.mp4", b"f/folder.of.frames"]
    assert stems(Listing(paths, 4)) == [b"d.e", b".hidden", b"noextension", b"-id", b"folder.of.frames"]


def test_match_finds_each_id_once() -> None:
    files = [b"1.mp4", b"1.webm", b"2/3.mp4", b"9.txt", b"latin\xe9.mp4"]
    listing = Listing([*files, b"2", b"frames/1"], len(files))
    chosen, (repeated, unlisted), spares = match("own", ["3", "1", "4", "2"], listing)
    assert chosen.tolist() == [2, 0, -1, 5]
    assert repeated["path"].to_pylist() == [b"1.webm", b"frames/1"]  # another file, and a folder of frames
    assert unlisted["path"].to_pylist() == [b"9.txt", b"latin\xe9.mp4"]
    assert spares == {0: [b"1.webm"]}  # of the same kind
    assert match("own", ["a"], Listing([], 0))[0].tolist() == [-1]
    assert match("own", [], Listing([b"a"], 1))[1][1]["path"].to_pylist() == [b"a"]


def test_a_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        existing_folder(tmp_path / "nowhere")
    assert existing_folder(os.fsencode(tmp_path)) == os.fsencode(tmp_path)
