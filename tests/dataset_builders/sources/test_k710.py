import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dataset_builders.sources import kinetics
from dataset_builders.sources.k710 import OFFICIAL_PLACES, RENAMED, Merge, class_key, merge


def table(*rows: tuple[str, str, str | None]) -> pa.Table:
    """(id, split, label) rows; the start tells rows apart."""
    return pa.table(
        {
            "youtube_id": [row[0] for row in rows],
            "start": [float(number) for number in range(len(rows))],
            "end": [number + 10.0 for number in range(len(rows))],
            "label": pa.array([row[2] for row in rows], pa.string()),
            "split": [row[1] for row in rows],
        }
    )


def kept(merged: Merge) -> dict[str, tuple[str, int, str]]:
    rows = merged.table.select(["youtube_id", "split", "version", "label"]).to_pylist()
    assert len({row["youtube_id"] for row in rows}) == len(rows)
    return {row["youtube_id"]: (row["split"], row["version"], row["label"]) for row in rows}


def gone(merged: Merge) -> set[tuple[str, int, str, str]]:
    columns = ["youtube_id", "version", "split", "reason"]
    return {tuple(row[name] for name in columns) for row in merged.dropped.to_pylist()}


def test_newest_version_wins_and_leaks_leave_training_or_validation() -> None:
    versions = {
        400: table(
            ("same", "train", "a"), ("leak", "val", "a"), ("gone", "test", None), ("own", "train", "b"), ("v", "val", "b")
        ),
        600: table(("same", "train", "a"), ("leak", "train", "a"), ("gone", "train", "b"), ("v", "val", "b")),
        700: table(("same", "train", "c"), ("leak", "train", "a"), ("twice", "train", "c"), ("twice", "train", "c")),
    }
    merged = merge(versions)
    assert kept(merged) == {
        "same": ("train", 700, "c"),  # the newest version's label
        "leak": ("val", 400, "a"),
        "own": ("train", 400, "b"),
        "v": ("val", 600, "b"),
        "twice": ("train", 700, "c"),
    }
    assert gone(merged) == {
        ("same", 400, "train", "duplicate"),
        ("same", 600, "train", "duplicate"),
        ("leak", 600, "train", "leak"),
        ("leak", 700, "train", "leak"),
        ("gone", 600, "train", "leak"),  # only a test list has it besides
        ("v", 400, "val", "duplicate"),
        ("twice", 700, "train", "duplicate"),
    }
    assert merged.table.filter(pc.equal(merged.table["youtube_id"], "twice"))["start"].to_pylist() == [2.0]  # the first listed
    details = {(row["youtube_id"], row["version"]): row["detail"] for row in merged.dropped.to_pylist()}
    assert details["gone", 600] == "K600 train; the same YouTube id is in K400 test"
    assert details["same", 400] == "K400 train; the row of K700 train is kept"
    report = merged.report
    assert report["ids with two labels (the newest version's is kept)"] == 1
    assert report["leaking rows, taken from train"] == 3
    assert report["  K600 train rows that K400 val has"] == 1
    assert report["  K600 train rows that K400 test has"] == 1
    assert report["duplicate rows of an id"] == 4
    assert (report["train"], report["val"]) == (3, 2)
    assert report["train: difference from the paper's 658,340"] == 3 - 658_340
    assert any("3 classes, not 710" in note for note in merged.notes)

    paper = merge(versions, leaks="from-val")
    assert kept(paper)["leak"] == ("train", 700, "a")
    assert kept(paper)["gone"] == ("train", 600, "b")  # the paper has no eye on test lists
    assert ("leak", 400, "val", "leak") in gone(paper)


def test_every_row_is_kept_or_dropped_exactly_once() -> None:
    merged = merge({400: table(("a", "train", "x"), ("a", "val", "x"), ("a", "train", "y")), 600: table(("a", "test", None))})
    rows = pa.concat_tables([merged.table, merged.dropped.select(merged.table.column_names)])
    assert sorted(zip(rows["version"].to_pylist(), rows["row"].to_pylist(), strict=True)) == [(400, 0), (400, 1), (400, 2)]


def test_an_id_in_two_splits_of_one_version_is_a_leak() -> None:
    versions = {700: table(("a", "train", "x"), ("a", "val", "x"))}
    assert kept(merge(versions)) == {"a": ("val", 700, "x")}
    assert kept(merge(versions, "from-val")) == {"a": ("train", 700, "x")}


def test_renamed_classes_become_one_whatever_their_spelling() -> None:
    versions = {
        400: table(("a", "train", "dying_hair"), ("b", "train", '"passing American football (not in game)"')),
        600: table(
            ("c", "train", "dyeing hair"), ("d", "train", "passing american football (not in game)"), ("e", "train", None)
        ),
    }
    merged = merge(versions)
    assert merged.labels == ["dyeing hair", "passing American football (not in game)"]
    assert merged.maps == {400: [0, 1], 600: [0, 1]}
    assert kept(merged)["e"] == ("train", 600, None)
    assert merged.report["rows without a label"] == 1
    alone = merge({400: versions[400]})  # one version keeps its own names
    assert alone.labels == ["dying hair", "passing American football (not in game)"]
    assert merge({400: versions[400]}, label_map=["zumba", "dyeing hair", RENAMED[class_key(alone.labels[1])]]).maps == {
        400: [1, 2]
    }


def test_class_keys_keep_what_tells_classes_apart() -> None:
    assert class_key("massaging_person\u2019s_head") == class_key("massaging person's head")
    assert class_key("hugging (not baby)") != class_key("hugging baby")
    assert class_key('"using  segway" ') == "using segway"


def test_errors_name_what_is_wrong() -> None:
    good = table(("a", "train", "x"))
    with pytest.raises(ValueError, match="--leaks 'from-test'"):
        merge({400: good}, leaks="from-test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lacks 1 of the lists' classes"):
        merge({400: good}, label_map=["y"])
    with pytest.raises(ValueError, match="2 lines but 1 different"):
        merge({400: good}, label_map=["x", "X"])
    with pytest.raises(ValueError, match="class list of Kinetics-400"):
        merge({400: good}, classes={400: ["y"]})


def lists(shared: Path) -> dict[int, pa.Table]:
    """The real lists, cut short; the map of versions that a user would give."""
    versions = {}
    for version in (400, 600, 700):
        found = sorted((shared / "annotations" / f"kinetics{version}").glob("*.csv"))
        read = [kinetics.read_annotations(path) for path in found]
        assert len(read) >= 2 and not any(malformed for _, malformed in read)
        versions[version] = pa.concat_tables([part for part, _ in read])
    return versions


def test_real_lists(shared: Path) -> None:
    versions = lists(shared)
    merged = merge(versions)
    rows = merged.dropped.to_pylist()
    # 268 ids of the K400 val excerpt are in that of K600, none in its test excerpt
    assert sum(row["version"] == 400 and row["reason"] == "duplicate" for row in rows) == 268
    assert merged.report["rows of K400 val"] == 1003
    assert not any("test" in row["detail"] for row in rows)
    leaks = [row for row in rows if row["reason"] == "leak"]
    assert [(row["youtube_id"], row["version"], row["split"]) for row in leaks] == [("---QUuC4vJs", 700, "train")]
    assert sum(len(part) for part in versions.values()) == len(merged.table) + len(rows) + 200  # two test excerpts of 100
    paper = merge(versions, "from-val")
    assert [row["split"] for row in paper.dropped.to_pylist() if row["reason"] == "leak"] == ["val"]


def test_official_label_map_and_maps(shared: Path) -> None:
    folder = shared / "annotations"
    official = kinetics.read_classes(folder / "kinetics710" / "label_map_k710.txt")
    names = {
        version: kinetics.read_classes(folder / f"kinetics{version}" / f"label_map_k{version}.txt")
        for version in (400, 600, 700)
    }
    wanted = {
        version: json.loads((folder / "kinetics710" / f"label_710to{version}.json").read_text()) for version in (400, 600, 700)
    }
    assert json.loads((folder / "kinetics710" / "k710_identical_label_merge.json").read_text()) == RENAMED

    merged = merge(lists(shared), label_map=official, classes=names)
    assert merged.labels == official and len(official) == 710
    assert merged.maps == wanted
    assert any("'hugging' is labelled 'hugging baby'" in note for note in merged.notes)

    # K400's own, old names, sorted, give the same map: the tiny lists have every class
    only_400 = {400: lists(shared)[400]}
    assert merge(only_400, label_map=official).maps[400] == wanted[400]

    # without the map: the names as the 15 renamings have it
    own = merge({400: lists(shared)[400], 600: table(*((f"{i:011}", "train", name) for i, name in enumerate(names[600])))})
    assert "hugging (not baby)" in own.labels and "hugging" not in own.labels
    assert set(OFFICIAL_PLACES) - set(RENAMED) == {"chopping vegetables"}


def generated(num_videos: int) -> tuple[dict[int, pa.Table], dict[str, int]]:
    """Lists as long as the real ones with planted duplicates and leaks, and what must be found in them.

    Video v is in version K400, K600, K700 if bit 0, 1, 2 of its membership says so, in the split that its kind says:
    kinds 0-6 train everywhere; 7 val everywhere; 8 val in its oldest version, train in the others; 9 test in its oldest.
    """
    rng = np.random.default_rng(0)
    membership = rng.integers(1, 8, num_videos)
    kind = rng.integers(0, 10, num_videos)
    ids = np.char.add("-", np.char.zfill(rng.permutation(num_videos).astype(str), 10))
    oldest = np.array([0, 0, 1, 0, 2, 0, 1, 0])[membership]
    versions = {}
    for bit, version in enumerate((400, 600, 700)):
        video = rng.permutation(np.flatnonzero(membership >> bit & 1))
        split = np.where(kind[video] == 7, 1, 0)
        split[(kind[video] == 8) & (oldest[video] == bit)] = 1
        split[(kind[video] == 9) & (oldest[video] == bit)] = 2
        labels = np.array([f"class {number}" for number in range(version)], object)[video % version]
        columns = {
            "youtube_id": pa.array(ids[video].tolist()),
            "start": pa.array((video % 300).astype(float)),
            "end": pa.array((video % 300) + 10.0),
            "label": pa.array(labels.tolist()),
            "split": pa.array(["train", "val", "test"]).take(pa.array(split)),
        }
        versions[version] = pa.table(columns)
    copies = np.array([bin(number).count("1") for number in range(8)])[membership]
    return versions, {
        "leaking rows, taken from train": int((copies - 1)[kind >= 8].sum()),
        "duplicate rows of an id": int((copies - 1)[kind < 8].sum()),
        "train": int((kind < 7).sum()),
        "val": int(((kind == 7) | (kind == 8)).sum()),
    }


@pytest.mark.slow
def test_a_generated_list_of_over_a_million_rows() -> None:
    versions, expected = generated(720_000)
    assert sum(map(len, versions.values())) > 1_200_000
    merged = merge(versions)
    assert {name: merged.report[name] for name in expected} == expected
    assert len(merged.table) == expected["train"] + expected["val"] == pc.count_distinct(merged.table["youtube_id"]).as_py()
    tests = sum(merged.report[f"rows of K{version} test"] for version in versions)
    assert len(merged.table) + len(merged.dropped) + tests == sum(map(len, versions.values()))
    reordered = merge(dict(reversed(versions.items())))
    assert reordered.table.equals(merged.table) and reordered.report == merged.report
