import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from empty_files import touch

from dataset_builders.plan import DROPPED_SCHEMA, REQUEST_SCHEMA, SourcePlan
from dataset_builders.sources.kinetics import plan
from dataset_builders.sources.kinetics_files import Version, kinetics_roots, match_files, parse_names
from dataset_builders.sources.kinetics_lists import read_annotations

A, B, C, D = "-aaaaaaaaaA", "-aaaaaaaaaa", "b_b-bbbbbbb", "ccccccccccc"  # the first two differ by case only


def csv(path: Path, *rows: str, header: str = "label,youtube_id,time_start,time_end,split") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def taken(planned: SourcePlan) -> dict[str, tuple[str, bytes]]:
    assert planned.requests.schema == REQUEST_SCHEMA and planned.dropped.schema == DROPPED_SCHEMA
    return {row["source_id"]: (row["root"], row["path"]) for row in planned.requests.to_pylist()}


def gone(planned: SourcePlan) -> set[tuple[Any, ...]]:
    return {tuple(row[name] for name in ("root", "path", "source_id", "reason")) for row in planned.dropped.to_pylist()}


def test_csv_of_every_year(tmp_path: Path) -> None:
    quoted = csv(
        tmp_path / "k400.csv", f'"dying hair",{A},7,17,train,0', header="label,youtube_id,time_start,time_end,split,is_cc"
    )
    assert read_annotations(quoted)[0].to_pylist() == [
        {"youtube_id": A, "start": 7.0, "end": 17.0, "label": "dying hair", "split": "train"}
    ]
    test = csv(tmp_path / "k600.csv", f"{A},0,10,test", f"{B},3,13,test", header="youtube_id,time_start,time_end,split")
    assert read_annotations(test)[0]["label"].null_count == 2
    other = csv(tmp_path / "x.csv", f"validate,12.5,2.5,{A},NA", header="Split,end-time,start time,Video-ID,label-name")
    assert read_annotations(other)[0].to_pylist() == [
        {"youtube_id": A, "start": 2.5, "end": 12.5, "label": "NA", "split": "val"}
    ]
    windows = tmp_path / "k700_validate.csv"
    windows.write_bytes(f"\ufefflabel,youtube_id\r\nyoga,{A}\r\n\r\nzumba,{B}".encode())
    table, malformed = read_annotations(windows)
    assert table["split"].to_pylist() == ["val", "val"] and table["start"].null_count == 2 and not malformed


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_lists_that_spreadsheets_saved(tmp_path: Path, mark: str) -> None:
    """Marks between the fields, quotes, UTF-16, an apostrophe before a "-", addresses for ids: all mean the same rows."""
    header, ids = ["label", "youtube_id", "time_start", "time_end"], [f"'{A}", f"https://www.youtube.com/watch?v={B}"]
    rows = [header, *(['"yoga, or ""so"""', id, "1.5", "11.0"] for id in ids)]
    path = tmp_path / "train.csv"
    path.write_bytes("\r\n".join(mark.join(row) for row in rows).encode("utf-16"))
    table, malformed = read_annotations(path)
    assert not malformed
    columns = ("youtube_id", "start", "end", "label")
    assert [tuple(row[name] for name in columns) for row in table.to_pylist()] == [
        (A, 1.5, 11.0, 'yoga, or "so"'),
        (B, 1.5, 11.0, 'yoga, or "so"'),
    ]


def test_when_nothing_matches_the_list_and_the_folder_are_quoted(tmp_path: Path) -> None:
    folder, path = tmp_path / "videos", csv(tmp_path / "train.csv", f"yoga,{A},0,10,train")
    folder.mkdir()
    (folder / "other.mp4").touch()
    notes = plan("k", versions={400: Version(annotations=[path], folder=folder)}).notes
    (note,) = [note for note in notes if A in note]
    assert "begins with 'label,youtube_id," in note and f"{A}_000010_000020.mp4" in note and "'other.mp4'" in note


def test_malformed_rows_are_named_by_line_and_value(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    rows = [
        b"label,youtube_id,time_start,time_end,split",
        f"yoga,{A},0,10,train".encode(),
        b"yoga,#NAME?,0,10,train",
        b"",
        f"yoga,{B},zero,10,train".encode(),
        f"yoga,{B},10,10,train".encode(),
        f"yoga,{B},0,10".encode(),
        f"yoga,{B},0,10,train,1,2".encode(),
        f"yoga,{B},0,10,trian".encode(),
        f'"yoga,{B},0,10,train'.encode(),  # would swallow the rows below
        f'yo"ga,"{B},0,10,train'.encode(),
        f"y\xe9ga,{B},0,10,train".encode("latin-1"),
        f'"tai ""chi""",{B},0,10,train'.encode(),
        f"yoga,{C},-1,10,train".encode(),
        f"yoga,{C}x,0,10,train".encode(),
        f" yoga , {C} , 0 ,10,Training".encode(),
    ]
    path.write_bytes(b"\n".join(rows))
    table, malformed = read_annotations(path)
    assert table["youtube_id"].to_pylist() == [A, B, C]
    assert table["label"].to_pylist() == ["yoga", 'tai "chi"', "yoga"]
    lines = [3, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15]
    assert [int(sentence.split(":")[0].removeprefix("train.csv line ")) for sentence in malformed] == lines
    assert malformed[0] == "train.csv line 3: youtube_id '#NAME?' is not 11 characters of A-Z a-z 0-9 _ -"
    assert "'zero' is not a number" in malformed[1] and "'trian'" in malformed[5]


def test_malformed_rows_far_into_a_long_list(tmp_path: Path) -> None:
    """Line numbers hold beyond the first block that the CSV parser reads (1 MiB)."""
    rows = [f'"some label",{number:011},0,10,train' for number in range(60_000)]
    rows[50_000] = "only,three,fields"
    rows[55_000] = '"unpaired'
    table, malformed = read_annotations(csv(tmp_path / "train.csv", *rows))
    assert len(table) == 59_998
    assert [sentence.split(":")[0] for sentence in malformed] == ["train.csv line 50002", "train.csv line 55002"]


def entry(label: str | None, segment: list[float], subset: str) -> dict[str, Any]:
    annotations: dict[str, Any] = {"label": label, "segment": segment}
    return {"annotations": annotations, "duration": 10.0, "subset": subset, "url": "https://www.youtube.com/watch?v=x"}


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    good = {A: entry("yoga", [7.0, 17.0], "training"), B: entry("zumba", [0, 10], "validate")}
    bad = {
        "short": entry("yoga", [0, 10], "test"),
        C: entry("yoga", [5, 5], "test"),
        D: entry("yoga", [1], "test"),
        "x" * 11: 7,
    }
    path.write_text(json.dumps(good | bad))
    table, malformed = read_annotations(path)
    assert table.to_pylist() == [
        {"youtube_id": A, "start": 7.0, "end": 17.0, "label": "yoga", "split": "train"},
        {"youtube_id": B, "start": 0.0, "end": 10.0, "label": "zumba", "split": "val"},
    ]
    assert len(malformed) == 4 and "'short'" in malformed[0]
    path.write_text(
        json.dumps({A: entry("yoga", [0, 10], "test")})[:-1] + f', "{A}": {json.dumps(entry("x", [0, 9], "test"))}}}'
    )
    assert len(read_annotations(path)[0]) == 2  # an id that stands there twice is not lost
    unlabelled = {A: {"annotations": {"segment": [3, 13]}, "subset": "test"}}
    path.write_text(json.dumps(unlabelled))
    assert read_annotations(path)[0].to_pylist() == [
        {"youtube_id": A, "start": 3.0, "end": 13.0, "label": None, "split": "test"}
    ]
    path.write_text(json.dumps({A: entry("yoga", [5, None], "test")}))
    with pytest.raises(ValueError, match=r"no row that can be understood; the first of 1: train\.json line 1: end '' is not"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (b"a,b\n1,2\n", "is no Kinetics list"),
        (b"youtube_id,time_start\n-aaaaaaaaaA,1\n", "both of time_start and time_end"),
        (b"youtube_id\n-aaaaaaaaaA\n", "no split column"),
        (b'{"a": {"annotations": ', "not valid JSON"),
        (b"[1, 2]", "is no Kinetics list"),
        (
            b'{"database": {}}',
            "no row that can be understood; the first of 1: list.csv line 1: .*neither annotations nor subset",
        ),
        ("youtube_id\n".encode("utf-16"), "no split column"),
        (b"\xff\xfea", "begins as UTF-16 and is none"),
    ],
)
def test_files_that_are_no_list(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_annotations(path)


def test_missing_files_and_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_annotations(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"no list \(\.csv or \.json\) of Kinetics-400"):
        plan("kinetics", versions={400: Version(annotations=[tmp_path])})
    train = csv(tmp_path / "train.csv", f"yoga,{A},0,10,train")
    with pytest.raises(ValueError, match="there is no folder"):
        plan("kinetics", versions={400: Version(annotations=[train], folder=tmp_path / "none")})
    with pytest.raises(ValueError, match="splits"):
        plan("kinetics", versions={400: Version(annotations=[train])}, splits=("holdout",))


def test_file_names() -> None:
    names = {
        b"abseiling/-0WZKTu0xwk_000010_000020.mp4": ("-0WZKTu0xwk", 10.0),
        b"train/riding a bike/0wR5jVB-WPk_000417_000427.MP4": ("0wR5jVB-WPk", 417.0),
        b"--bcdefghij.webm": ("--bcdefghij", None),
        b"deep/er/__bcdefghij.mp4.mkv": ("__bcdefghij", None),  # what old downloaders leave
        b"abc_1_2defg.mp4": ("abc_1_2defg", None),  # an id that looks like times
        b"abc_000_111_000001_000011.mp4": ("abc_000_111", 1.0),
        b"l\xe4bel/line\nbreak/abcdefghijk_1_11.mkv": ("abcdefghijk", 1.0),
        b"abcdefghijk.mp4.part": (None, None),
        b"abcdefghijk.json": (None, None),
        b"._abcdefghijk.mp4": (None, None),
        b"abcdefghijkl.mp4": (None, None),
        b"abcdefghijk_000010.mp4": (None, None),
        b"abcdefghijk": (None, None),
    }
    ids, start = parse_names(pa.array(list(names), pa.binary()))
    assert ids.to_pylist() == [pair[0] for pair in names.values()]
    assert [None if np.isnan(value) else value for value in start] == [pair[1] for pair in names.values()]
    ids, start = parse_names(pa.array([], pa.binary()))
    assert len(ids) == len(start) == 0


def test_matching_by_time() -> None:
    nan = np.nan
    # one video of three segments: exact before near, near before untimed, untimed last; no file twice
    match = match_files(np.zeros(4, int), np.array([10.0, 11.0, 50.0, 90.0]), np.zeros(3, int), np.array([11.0, 10.0, nan]))
    assert match.tolist() == [1, 0, 2, -1]
    assert match_files(np.array([0]), np.array([10.0]), np.array([0, 0]), np.array([nan, 11.0])).tolist() == [1]
    assert match_files(np.array([0]), np.array([10.0]), np.array([0, -1]), np.array([11.5, 10.0])).tolist() == [-1]
    assert match_files(np.array([0]), np.array([nan]), np.array([0]), np.array([10.0])).tolist() == [0]  # a list without times
    assert match_files(np.array([3]), np.array([1.0]), np.array([], int), np.array([])).tolist() == [-1]
    assert match_files(np.array([], int), np.array([]), np.array([0]), np.array([1.0])).tolist() == []


def test_a_large_matching_agrees_with_a_slow_one() -> None:
    rng = np.random.default_rng(1)
    row_video, file_video = rng.integers(0, 300, 400), rng.integers(-1, 300, 500)
    row_start = rng.integers(0, 6, 400).astype(float)
    file_start = np.where(rng.random(500) < 0.3, np.nan, rng.integers(0, 6, 500))
    pairs = []
    for row in range(400):
        for file in np.flatnonzero(file_video == row_video[row]).tolist():
            cost = abs(file_start[file] - row_start[row])
            if np.isnan(cost) or cost <= 1:
                pairs.append((2.0 if np.isnan(cost) else cost, file, row))
    expected, used = np.full(400, -1), set()
    for _, file, row in sorted(pairs):
        if expected[row] < 0 and file not in used:
            expected[row] = file
            used.add(file)
    assert match_files(row_video, row_start, file_video, file_start).tolist() == expected.tolist()


def test_650_000_files_are_matched() -> None:
    rng = np.random.default_rng(2)
    number = 650_000
    ids = [f"{value:011}" for value in rng.permutation(number).tolist()]
    names = [
        f"some label/{youtube_id}_{place % 300:06}_{place % 300 + 10:06}.mp4".encode() for place, youtube_id in enumerate(ids)
    ]
    found, start = parse_names(pa.array(names, pa.binary()))
    assert found.to_pylist() == ids
    order = rng.permutation(number)
    video = np.arange(number)
    assert (match_files(video[order], start[order], video, start) == order).all()


def test_every_layout_and_every_leftover(tmp_path: Path) -> None:
    rows = [f"a label,{id_},{start},{start + 10},train" for id_, start in ((A, 5), (B, 6), (C, 7), (D, 8), ("e" * 11, 9))]
    lists = [csv(tmp_path / "lists" / "train.csv", *rows, f"a label,{'v' * 11},0,10,val", "a label,bad,0,10,train")]
    folder = touch(
        tmp_path / "videos",
        f"train/a label/{A}_000005_000015.mp4",
        f"train/a_label/{A}_000005_000015.webm",  # the same again
        f"{B}.mkv",
        f"x/y/{C}_000008_000018.avi",  # a second off
        f"train/{D}_000099_000109.mp4",  # another part of the video
        f"{'v' * 11}.mp4",
        f"{'n' * 11}.mp4",
        "train.csv",
        b"\xff.mp4",
    )
    versions = {400: Version(annotations=lists, folder=folder)}
    planned = plan("kinetics", versions=versions, sampling="stride:4")
    assert taken(planned) == {
        A: ("k400", f"train/a label/{A}_000005_000015.mp4".encode()),
        B: ("k400", f"{B}.mkv".encode()),
        C: ("k400", f"x/y/{C}_000008_000018.avi".encode()),
    }
    assert gone(planned) == {
        (None, None, None, "malformed"),
        (None, None, D, "no_file"),
        (None, None, "e" * 11, "no_file"),
        ("k400", f"train/a_label/{A}_000005_000015.webm".encode(), A, "duplicate"),
        ("k400", f"train/{D}_000099_000109.mp4".encode(), D, "not_listed"),
        ("k400", f"{'v' * 11}.mp4".encode(), "v" * 11, "not_chosen"),
        ("k400", f"{'n' * 11}.mp4".encode(), "n" * 11, "not_listed"),
        ("k400", b"train.csv", None, "not_listed"),
        ("k400", b"\xff.mp4", None, "not_listed"),
    }
    row = planned.requests.to_pylist()[0]
    assert (row["source"], row["kind"], row["split"], row["label"]) == ("kinetics", "video", "train", "a label")
    assert (row["start"], row["end"], row["seconds"], row["sampling"]) == (None, None, 10.0, "stride:4")
    assert planned.counts["files in k400"] == 9 and planned.counts["ids without a file"] == 2
    assert planned.counts["files without a listed id"] == 4 and planned.counts["train requests"] == 3
    assert planned.files == {"label_map_k400.json": ["a label"]}
    assert any("1 annotation rows" in note for note in planned.notes)
    assert any("1 files have no times" in note for note in planned.notes)

    both = plan("kinetics", versions=versions, splits=("train", "val"), untrimmed=True)
    assert both.requests["split"].to_pylist() == ["train"] * 3 + ["val"]
    times = {row["source_id"]: (row["start"], row["end"]) for row in both.requests.to_pylist()}
    assert times == {A: (None, None), B: (6.0, 16.0), C: (None, None), "v" * 11: (0.0, 10.0)}
    assert kinetics_roots(versions) == {"k400": os.fsencode(folder)}


def test_videos_are_borrowed_from_other_versions(tmp_path: Path) -> None:
    """Every id is in K400 and K700; the K700 row wins, its file is often elsewhere."""
    starts = {A: (5, 5), B: (5, 5), C: (5, 40), D: (5, 40)}  # in K400, in K700
    k400 = csv(
        tmp_path / "k400.csv", *(f"dying hair,{name},{times[0]},{times[0] + 10},train" for name, times in starts.items())
    )
    k700 = csv(tmp_path / "k700.csv", *(f"zumba,{name},{times[1]},{times[1] + 10},train" for name, times in starts.items()))
    videos400 = touch(
        tmp_path / "400",
        f"{A}_000005_000015.mp4",  # K700 has its own
        f"{B}_000005_000015.mp4",  # the same part: lent to K700's row
        f"{C}_000005_000015.mp4",  # another part: K400's row stands in
        f"{D}.mp4",  # says nothing, so it is what K400's list says
    )
    videos700 = touch(tmp_path / "700", f"val/{A}_000005_000015.mp4")
    versions = {400: Version(annotations=[k400], folder=videos400), 700: Version(annotations=[k700], folder=videos700)}
    planned = plan("kinetics", versions=versions)
    assert taken(planned) == {
        A: ("k700", f"val/{A}_000005_000015.mp4".encode()),
        B: ("k400", f"{B}_000005_000015.mp4".encode()),
        C: ("k400", f"{C}_000005_000015.mp4".encode()),
        D: ("k400", f"{D}.mp4".encode()),
    }
    labels = dict(zip(*(planned.requests[name].to_pylist() for name in ("source_id", "label")), strict=True))
    assert labels == {A: "zumba", B: "zumba", C: "dyeing hair", D: "dyeing hair"}
    assert gone(planned) == {
        ("k400", f"{A}_000005_000015.mp4".encode(), A, "duplicate"),
        (None, None, B, "duplicate"),
        (None, None, C, "duplicate"),
        (None, None, D, "duplicate"),
    }
    assert planned.counts["taken from another version's folder"] == 1
    assert planned.counts["taken with another version's times and label"] == 2
    assert planned.counts["ids with two labels (the newest version's is kept)"] == 4
    assert set(planned.files) == {"label_map_k710.json", "label_710to400.json", "label_710to700.json"}

    whole = plan("kinetics", versions=versions, untrimmed=True)  # now D's file has K700's part, too
    row = next(row for row in whole.requests.to_pylist() if row["source_id"] == D)
    assert (row["label"], row["start"], row["end"]) == ("zumba", 40.0, 50.0)


def test_one_folder_for_all_versions(tmp_path: Path) -> None:
    k400 = csv(tmp_path / "k400.csv", f"yoga,{A},5,15,train", f"yoga,{B},5,15,train")
    k600 = csv(tmp_path / "k600.csv", f"yoga,{A},5,15,train", f"yoga,{C},5,15,val")
    folder = touch(tmp_path / "all", f"{A}.mp4", f"{B}.mp4", f"{C}.mp4", f"{D}.mp4")
    versions = {
        400: Version(annotations=[k400], folder=folder),
        600: Version(annotations=[k600], folder=tmp_path / "." / "all"),
    }
    planned = plan("kinetics", versions=versions, splits=("train", "val"))
    assert taken(planned) == {
        A: ("k600", f"{A}.mp4".encode()),
        B: ("k400", f"{B}.mp4".encode()),
        C: ("k600", f"{C}.mp4".encode()),
    }
    assert gone(planned) == {(None, None, A, "duplicate"), ("k600", f"{D}.mp4".encode(), D, "not_listed")}


def test_leaks_name_their_files(tmp_path: Path) -> None:
    k400 = csv(tmp_path / "k400.csv", f"yoga,{A},5,15,val")
    k600 = csv(tmp_path / "k600.csv", f"yoga,{A},5,15,train", f"yoga,{B},5,15,train")
    test = csv(tmp_path / "test.csv", f"{B},5,15,test", header="youtube_id,time_start,time_end,split")
    videos = [touch(tmp_path / name, f"{A}.mp4", f"{B}.mp4") for name in ("400", "600")]
    versions = {400: Version(annotations=[k400, test], folder=videos[0]), 600: Version(annotations=[k600], folder=videos[1])}
    planned = plan("kinetics", versions=versions, splits=("train", "val"))
    assert taken(planned) == {A: ("k400", f"{A}.mp4".encode())}
    assert gone(planned) == {
        ("k600", f"{A}.mp4".encode(), A, "leak"),
        ("k600", f"{B}.mp4".encode(), B, "leak"),
        ("k400", f"{B}.mp4".encode(), B, "leak"),
    }
    assert any("No test list of K600" in note for note in planned.notes)
    paper = plan("kinetics", versions=versions, splits=("train", "val"), leaks="from-val")
    assert taken(paper) == {A: ("k600", f"{A}.mp4".encode()), B: ("k600", f"{B}.mp4".encode())}


def test_lists_in_a_folder_and_lists_without_videos(tmp_path: Path) -> None:
    csv(tmp_path / "lists" / "train.csv", f"yoga,{A},5,15,train")
    (tmp_path / "lists" / "train.json").write_text("the same rows again, which are not read")
    (tmp_path / "lists" / "val.json").write_text(json.dumps({B: entry("yoga", [0, 10], "validate")}))
    (tmp_path / "lists" / "readme.txt").touch()
    planned = plan("kinetics", versions={600: Version(annotations=[tmp_path / "lists"])}, splits=("train", "val"))
    assert planned.counts["rows of K600 train"] == planned.counts["rows of K600 val"] == 1
    assert gone(planned) == {(None, None, A, "no_file"), (None, None, B, "no_file")} and len(planned.requests) == 0


def test_the_order_of_requests_does_not_follow_the_lists(tmp_path: Path) -> None:
    rows = [f"label {number % 7},{number * 7919 % 100000:011},0,10,{('train', 'val')[number % 2]}" for number in range(50)]
    folder = touch(tmp_path / "videos", *(f"{row.split(',')[1]}.mp4" for row in rows))
    plans = [
        plan(
            "k",
            versions={700: Version(annotations=[csv(tmp_path / f"{i}.csv", *order)], folder=folder)},
            splits=("val", "train"),
        )
        for i, order in enumerate((rows, rows[::-1]))
    ]
    assert plans[0].requests.equals(plans[1].requests) and plans[0].files == plans[1].files
    ids, splits = (plans[0].requests[name].to_pylist() for name in ("source_id", "split"))
    assert splits == ["val"] * 25 + ["train"] * 25 and ids == sorted(ids[:25]) + sorted(ids[25:])


def test_real_lists_and_a_real_folder(shared: Path) -> None:
    lists = shared / "annotations"
    k400 = Version(
        annotations=[lists / "kinetics400"],
        folder=shared / "clips" / "derived" / "kinetics_like" / "k400",
        classes=lists / "kinetics400" / "label_map_k400.txt",
    )
    versions = {400: k400, 600: Version(annotations=[lists / "kinetics600"]), 700: Version(annotations=[lists / "kinetics700"])}
    planned = plan(
        "kinetics", versions=versions, splits=("train", "val"), label_map=lists / "kinetics710" / "label_map_k710.txt"
    )
    # K600's val list has it as well and wins; K400's folder lends the file
    assert taken(planned) == {"R6llTwEh07w": ("k400", b"val/using segway/R6llTwEh07w_000000_000010.mp4")}
    assert planned.counts["taken from another version's folder"] == 1
    assert planned.files["label_710to400.json"] == json.loads((lists / "kinetics710" / "label_710to400.json").read_text())
    assert planned.counts["classes"] == 710
