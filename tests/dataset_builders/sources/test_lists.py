import os
from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.plan import DROPPED_SCHEMA, REQUEST_SCHEMA, clip_keys
from dataset_builders.sources import lists


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [b"k400/a.mp4", b"my clips/b 1.mp4", b"k400/extra.mp4", b"k400/latin\xe9.mp4", b"readme"]
    names += [b"SomethingV2/182040/img_%05d.jpg" % number for number in range(1, 59)]
    names += [b"AVA2.2/-_m1/image_%06d.jpg" % number for number in range(1, 601)]
    names += [b"gaps/i_%d.png" % number for number in (0, 1, 2, 5, 6, 7, 10)]
    touch(tmp_path / "data" / "empty")
    return touch(tmp_path / "data", *names)


def write(tmp_path: Path, text: str | bytes, name: str = "train.csv") -> Path:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name


def test_an_official_pre_training_list(folder: Path, tmp_path: Path) -> None:
    train = write(
        tmp_path,
        b"k400/a.mp4 0 -1\n/nas/my clips/b 1.mp4 0 -1\n%s/k400/latin\xe9.mp4 0 -1\nSomethingV2/182040 1 58\n"
        b"AVA2.2/-_m1 1 300\nAVA2.2/-_m1 301 300\nk400/a.mp4 0 -1\n" % os.fsencode(folder),
    )
    planned = lists.plan("old", folder=folder, train=train, replace=("/nas", str(folder)))
    assert planned.requests.schema == REQUEST_SCHEMA
    assert planned.dropped.schema == DROPPED_SCHEMA
    columns = ("path", "kind", "seconds", "rate", "first_frame", "num_images", "sampling")
    video = ("video", None, None, None, None, "stride:4")
    assert [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()] == [
        (b"k400/a.mp4", *video),
        (b"my clips/b 1.mp4", *video),
        (b"k400/latin\xe9.mp4", *video),
        (b"SomethingV2/182040", "frames", 58 / 12, 12.0, 0, 58, "stride:2"),
        (b"AVA2.2/-_m1", "frames", 10.0, 30.0, 0, 300, "stride:4"),
        (b"AVA2.2/-_m1", "frames", 10.0, 30.0, 300, 300, "stride:4"),
    ]
    assert len(set(clip_keys(planned.requests))) == 6
    assert [(row["reason"], row["source_id"], row["path"], row["detail"]) for row in planned.dropped.to_pylist()] == [
        ("duplicate", "k400/a.mp4", None, f"{train}:7 repeats {train}:1"),
        ("not_listed", None, b"k400/extra.mp4", "no list has it"),
        ("not_listed", None, b"readme", "no list has it"),
        ("not_listed", None, b"gaps", "no list has it"),  # a folder of frames is one video
    ]
    assert planned.counts == {"listed": 7, "found": 6, "not_listed": 3, "duplicate": 1}
    chosen = lists.plan("old", folder=folder, train=write(tmp_path, "SomethingV2/182040 1 58\nnone 0 -1"), sampling="stride:3")
    assert chosen.requests["sampling"].to_pylist() == ["stride:3"]


def test_the_number_in_a_name_is_found_where_numbers_have_gaps(folder: Path, tmp_path: Path) -> None:
    train = write(tmp_path, "gaps 0 3\ngaps 5 3\ngaps 1 4\ngaps 10 1\ngaps 11 1\ngaps 3 1\n")
    planned = lists.plan("old", folder=folder, train=train, columns="path start total", rate=25)
    rows = [(row["first_frame"], row["num_images"], row["seconds"]) for row in planned.requests.to_pylist()]
    assert rows == [(0, 3, 0.12), (3, 3, 0.12), (6, 1, 0.04)]
    details = [row["detail"] for row in planned.dropped.to_pylist() if row["reason"] == "no_file"]
    assert details == [
        f"{train}:3: the images 1 to 4 are wanted, and 2 of these 4 are there",
        f"{train}:5: the images 11 to 11 are wanted, and 0 of these 1 are there",
        f"{train}:6: the images 3 to 3 are wanted, and 0 of these 1 are there",
    ]


def test_what_does_not_fit_the_disk_is_named(folder: Path, tmp_path: Path) -> None:
    train = write(
        tmp_path, "k400/a.mp4 1 16\ngaps 0 -1\nk400/none.mp4 0 -1\n/elsewhere/a.mp4 0 -1\n../up.mp4 0 -1\nempty 1 5\nx y\n"
    )
    planned = lists.plan("old", folder=folder, train=train, rate=25)
    details = [(row["reason"], row["detail"]) for row in planned.dropped.to_pylist() if row["reason"] != "not_listed"]
    outside = f"is not below {folder}; `replace` can change how paths begin"
    assert details == [
        ("malformed", f"{train}:7: 'x y' is not 'path start total' with two numbers at the end"),
        ("malformed", f"{train}:1 wants 16 images, but it is a file; a video has the total -1"),
        ("malformed", f"{train}:2 wants a video, but it is a folder; a folder of frames has the total of its images"),
        ("no_file", f"{train}:3 lists it"),
        ("no_file", f"{train}:4 '/elsewhere/a.mp4' {outside}"),
        ("no_file", f"{train}:5 '../up.mp4' {outside}"),
        ("no_file", f"{train}:6: the folder holds no images"),
    ]
    assert planned.counts["listed"] == 7
    assert planned.notes == (f"old: nothing of what the lists have is usable; the first line: {details[0][1]}",)


def test_fine_tuning_lists(folder: Path, tmp_path: Path) -> None:
    train, val = write(tmp_path, "k400/a.mp4 1\nmy clips/b 1.mp4,0\ngaps 1\n"), write(tmp_path, "my clips/b 1.mp4 0", "val.csv")
    labels = write(tmp_path, "run\nwalk\n", "labels.txt")
    planned = lists.plan("old", folder=folder, train=train, val=[val], labels=labels, rate=25)
    columns = ("path", "kind", "split", "label", "num_images", "sampling")
    assert [tuple(row[name] for name in columns) for row in planned.requests.to_pylist()] == [
        (b"k400/a.mp4", "video", "train", "walk", None, "stride:4"),
        (b"gaps", "frames", "train", "walk", 7, "stride:4"),
        (b"my clips/b 1.mp4", "video", "val", "run", None, "stride:4"),
    ]
    assert planned.counts["leak"] == 1
    ssv2 = write(tmp_path, "SomethingV2/182040 58 3\nSomethingV2/182040 59 3\ngaps 4 3\n")
    planned = lists.plan("old", folder=folder, train=ssv2, columns="folder total label", rate=12)
    assert [(row["first_frame"], row["num_images"], row["label"]) for row in planned.requests.to_pylist()] == [
        (0, 58, "3"),
        (0, 4, "3"),
    ]


def test_other_spellings_of_a_path_are_the_same_video(folder: Path, tmp_path: Path) -> None:
    train = write(tmp_path, f"./k400/a.mp4 1\nmy clips//b 1.mp4 1\n{folder}/k400/../k400/extra.mp4 1\nk400/extra.mp4 1\n")
    val = write(tmp_path, f"{folder}/k400/a.mp4 1\n", "val.csv")
    planned = lists.plan("own", folder=folder, train=train, val=val)
    rows = [(row["path"], row["split"]) for row in planned.requests.to_pylist()]
    assert rows == [(b"my clips/b 1.mp4", "train"), (b"k400/extra.mp4", "train"), (b"k400/a.mp4", "val")]
    assert (planned.counts["leak"], planned.counts["duplicate"]) == (1, 1)


def test_csv_lists_have_splits_of_their_own(folder: Path, tmp_path: Path) -> None:
    text = 'path,label,split,licence\n"my clips/b 1.mp4",run,val,CC0\nk400/a.mp4,walk,,\nk400/a.mp4,walk,nope,\n'
    planned = lists.plan("own", folder=folder, train=write(tmp_path, text))
    rows = [(row["path"], row["split"], row["label"], row["extra"]) for row in planned.requests.to_pylist()]
    assert rows == [(b"my clips/b 1.mp4", "val", "run", '{"licence": "CC0"}'), (b"k400/a.mp4", "train", "walk", None)]
    assert planned.counts["malformed"] == 1


def test_links_to_one_folder_are_found_by_either_name(folder: Path, tmp_path: Path) -> None:
    (folder / "again").symlink_to(folder / "k400")
    planned = lists.plan("own", folder=folder, train=write(tmp_path, "again/a.mp4 1\nk400/a.mp4 1\n"))
    assert planned.requests["path"].to_pylist() == [b"again/a.mp4", b"k400/a.mp4"]


def test_without_a_folder_only_what_is_named_is_looked_at(folder: Path, tmp_path: Path) -> None:
    """Relative paths are relative to the list, absolute ones to the root of the file system; keys go with the former."""
    train = write(folder, f"k400/a.mp4 1\n./k400/none.mp4 1\n{folder}/my clips/b 1.mp4 1\n../other/c.mp4 1\ngaps 1\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "c.mp4").touch()
    planned = lists.plan("own", train=train, rate=25)
    rows = [(row["root"], row["path"], row["kind"]) for row in planned.requests.to_pylist()]
    near = "own:list"
    assert rows == [
        (near, b"k400/a.mp4", "video"),
        ("own", os.fsencode(f"{folder}/my clips/b 1.mp4")[1:], "video"),
        (near, b"../other/c.mp4", "video"),
        (near, b"gaps", "frames"),
    ]
    assert lists.roots("own", train=train) == {"own": b"/", near: os.fsencode(folder)}
    assert [(row["reason"], row["path"]) for row in planned.dropped.to_pylist()] == [("no_file", None)]
    assert planned.counts == {"listed": 5, "found": 4, "no_file": 1}
    for row in planned.requests.to_pylist():
        assert os.path.exists(os.path.join(lists.roots("own", train=train)[row["root"]], row["path"]))
    folder.rename(tmp_path / "moved")
    again = lists.plan("own", train=tmp_path / "moved" / train.name, rate=25)
    keys = clip_keys(planned.requests)
    assert clip_keys(again.requests) == [keys[0], *keys[2:]]


def test_what_older_builds_took_for_a_folder_is_not_walked(folder: Path, tmp_path: Path) -> None:
    """Without --list-root they had "/", and the keys of a dataset that was begun so stay."""
    train = write(tmp_path, f"{folder}/k400/a.mp4 1\n")
    plans = [lists.plan("own", train=train), lists.plan("own", train=train, folder="/")]
    (tmp_path / "slash").symlink_to("/")
    plans.append(lists.plan("own", train=write(tmp_path, str(folder)[1:] + "/k400/a.mp4 1\n"), folder=tmp_path / "slash"))
    for planned in plans:
        assert planned.requests["root"].to_pylist() == ["own"]
        assert planned.requests["path"].to_pylist() == [os.fsencode(folder)[1:] + b"/k400/a.mp4"]
        assert not len(planned.dropped)
    assert lists.roots("own", train="/train.csv") == {"own": b"/"}  # both are one folder there
    assert lists.searched("own", "/") == lists.searched("own", tmp_path / "slash") == lists.searched("own", None) == {}
    assert lists.searched("own", folder) == {"own": os.fsencode(folder)}


def test_lists_in_several_folders_and_spellings(folder: Path, tmp_path: Path) -> None:
    """One video by whatever name: relative to either list, absolute, through a link."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "nas").symlink_to(folder)
    train = write(folder, "k400/a.mp4 1\nk400/extra.mp4 1\nmy clips/b 1.mp4 1\n")
    val = write(tmp_path / "lists", f"../data/k400/a.mp4 1\n{tmp_path}/nas/k400/extra.mp4 1\n", "val.csv")
    planned = lists.plan("own", train=train, val=val)
    rows = [(row["root"], row["path"], row["split"]) for row in planned.requests.to_pylist()]
    assert rows == [
        ("own:list", b"my clips/b 1.mp4", "train"),
        ("own:list", b"k400/a.mp4", "val"),
        ("own", os.fsencode(tmp_path)[1:] + b"/nas/k400/extra.mp4", "val"),
    ]
    assert planned.counts["leak"] == 2
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "there" / "c.mp4").touch()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "deep")
    linked = write(tmp_path / "link", "../c.mp4 1\n")  # `..` is what the system takes it for
    (row,) = lists.plan("own", train=linked).requests.to_pylist()
    assert os.path.samefile(
        os.path.join(lists.roots("own", train=linked)["own:list"], row["path"]), tmp_path / "there" / "c.mp4"
    )
    nothing = lists.plan("own", train=write(tmp_path, "x/a.mp4 1\n"))
    assert "relative paths are taken from the list's own folder" in nothing.notes[1]


def test_errors(folder: Path, tmp_path: Path) -> None:
    train = write(tmp_path, "gaps 1\n")
    with pytest.raises(ValueError, match="none of the lists"):
        lists.plan("own", folder=folder)
    with pytest.raises(ValueError, match="columns 'path' are not known; allowed are 'path label'"):
        lists.plan("own", folder=folder, train=train, columns="path")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"source own: gaps is a folder of frames.*give `rate`"):
        lists.plan("own", folder=folder, train=train)
    with pytest.raises(ValueError, match="frames at rate 0"):
        lists.plan("own", folder=folder, train=train, rate=0)


def test_a_list_of_real_clips(shared: Path, tmp_path: Path) -> None:
    """The official layout, written for the clips that are there."""
    clips = sorted(path for path in (shared / "clips" / "videos").rglob("*") if path.is_file())
    train = write(tmp_path, "".join(f"/old/{path.relative_to(shared)} 0 -1\n" for path in clips))
    planned = lists.plan("old", folder=shared / "clips" / "videos", train=train, replace=("/old", str(shared)))
    assert planned.counts == {"listed": len(clips), "found": len(clips)}
    paths = [os.path.join(os.fsencode(shared), b"clips/videos", path) for path in planned.requests["path"].to_pylist()]
    assert paths == [os.fsencode(path) for path in clips]


def test_ids_other_extensions_and_backslashes_find_their_files(folder: Path, tmp_path: Path) -> None:
    """And a leak is one whatever a list calls the video; a backslash that is in a file's name stays."""
    (folder / "odd\\c.mp4").touch()
    train = write(tmp_path, "a 0\nk400/extra.avi 1\nmy clips\\b 1.mp4 2\nodd\\c.mp4 3\nk400/none 4\n")
    planned = lists.plan("own", folder=folder, train=train, val=write(tmp_path, "k400/extra.mp4 1", "val.csv"))
    rows = [(row["path"], row["split"], row["label"]) for row in planned.requests.to_pylist()]
    paths = [(b"k400/a.mp4", "0"), (b"my clips/b 1.mp4", "2"), (rb"odd\c.mp4", "3")]
    assert rows == [*((path, "train", label) for path, label in paths), (b"k400/extra.mp4", "val", "1")]
    assert (planned.counts["leak"], planned.counts["no_file"]) == (1, 1)
    assert planned.counts["files with another extension than listed, or one at all"] == 2
    beside = lists.plan("own", train=write(folder / "k400", "a 0\nextra.avi 1\n"))
    assert beside.requests["path"].to_pylist() == [b"a.mp4", b"extra.mp4"]


def test_when_nothing_matches_the_list_and_the_folder_are_quoted(folder: Path, tmp_path: Path) -> None:
    (note,) = lists.plan("own", folder=folder, train=write(tmp_path, "nobody/x.mp4 1\n")).notes
    assert "begins with 'nobody/x.mp4 1'" in note and f"'nobody/x.mp4', with any extension, was looked for in {folder}" in note
    assert "others, such as 'k400/a.mp4'" in note
